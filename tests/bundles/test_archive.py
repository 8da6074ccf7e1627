"""Bundles between labs: what goes out comes back, and what does not belong is refused."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from scepsy_hpc.bundles.archive import export_bundles, import_bundles, verify_bundles
from scepsy_hpc.bundles.library import find_bundles, save_bundle
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle, BundleHeader, load_bundle, save_bundle_files
from scepsy_hpc.formats.points import Point


def _bundle(root: Path, model: str = "org/tiny", latency_s: float = 1.0) -> Bundle:
    header = BundleHeader(
        model=model,
        engine="vllm",
        engine_version="0.1",
        engine_args={},
        precision="bf16",
        gpu_type="h100_sxm",
        gpu_memory_gib=80.0,
        how="measured",
        source="a test",
        licence="CC0-1.0",
        date="2026-01-01",
        points_sha256="",
    )
    point = Point(
        tp_degree=1,
        gpu_share_pct=100,
        load="closed",
        concurrency=1.0,
        throughput_rps=1.0 / latency_s,
        latency_mean_s=latency_s,
        input_tokens_mean=10.0,
        output_tokens_mean=5.0,
    )
    return save_bundle(root, header, [point], "w")


def _with_a_column(bundle: Bundle) -> Bundle:
    """The bundle as another program might write it, with a column that we do not know."""
    head, row = (bundle.path / "points.csv").read_text().splitlines()
    save_bundle_files(bundle.path, bundle.header, f"{head},room\n{row},north\n".encode())
    return load_bundle(bundle.path)


def _archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_round_trip_keeps_points_and_extra_columns(tmp_path: Path) -> None:
    """Exported and imported, a bundle has the same digest, and says which archive it came from."""
    ours = [_with_a_column(_bundle(tmp_path / "a")), _bundle(tmp_path / "a", "org/other")]
    archive = export_bundles(ours, tmp_path / "share.tar.gz")
    theirs = import_bundles(archive, tmp_path / "b")
    assert [b.sha256 for b in theirs] == [b.sha256 for b in ours]
    assert theirs[0].header == replace(ours[0].header, imported_from="share.tar.gz")
    assert "room" in (theirs[0].path / "points.csv").read_text()
    assert len(find_bundles(tmp_path / "b")) == 2


def test_the_same_bundles_make_the_same_bytes(tmp_path: Path) -> None:
    """An archive can be compared by its digest."""
    ours = [_bundle(tmp_path / "a")]
    first = export_bundles(ours, tmp_path / "1.tar.gz").read_bytes()
    assert export_bundles(ours, tmp_path / "2.tar.gz").read_bytes() == first


def test_other_points_are_not_overwritten_by_chance(tmp_path: Path) -> None:
    """A bundle that is there with other points is refused; on purpose it is replaced."""
    archive = export_bundles([_bundle(tmp_path / "a", latency_s=2.0)], tmp_path / "s.tar.gz")
    mine = _bundle(tmp_path / "b", latency_s=1.0)
    with pytest.raises(InputError, match="is there with other points"):
        import_bundles(archive, tmp_path / "b")
    assert find_bundles(tmp_path / "b")[0].sha256 == mine.sha256
    (replaced,) = import_bundles(archive, tmp_path / "b", replace_existing=True)
    assert replaced.points[0].latency_mean_s == 2.0
    assert import_bundles(archive, tmp_path / "b")[0].sha256 == replaced.sha256


@pytest.mark.parametrize("name", ["../o/bundle.yaml", "/o/bundle.yaml", "a/../../points.csv"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Absolute and climbing paths are refused before anything is written."""
    archive = _archive(tmp_path / "bad.tar.gz", (tarfile.TarInfo(name), b"x"))
    with pytest.raises(InputError, match="leads out of the archive"):
        import_bundles(archive, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_links_and_other_files_are_refused(tmp_path: Path) -> None:
    """A link under an allowed name, and a file under another, do not belong."""
    link = tarfile.TarInfo("w/points.csv")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for member in (link, tarfile.TarInfo("w/run.sh")):
        archive = _archive(tmp_path / "bad.tar.gz", (member, b""))
        with pytest.raises(InputError, match="does not belong in a bundle archive"):
            import_bundles(archive, tmp_path / "b")


def test_changed_points_stop_the_whole_import(tmp_path: Path) -> None:
    """One bad bundle among good ones: nothing is written, and verify says which it is."""
    good, bad = _bundle(tmp_path / "a"), _bundle(tmp_path / "a", "org/zz")
    path = bad.path / "points.csv"
    path.write_text(path.read_text().replace(",10,", ",11,"))
    archive = export_bundles([good, bad], tmp_path / "s.tar.gz")
    with pytest.raises(InputError, match="points_sha256"):
        import_bundles(archive, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    for place in (archive, tmp_path / "a"):
        first, second = verify_bundles(place)
        assert (first.num_points, first.problem) == (1, None)
        assert "org__zz" in second.name
        assert "points_sha256" in (second.problem or "")


def test_what_is_no_archive_is_one_line(tmp_path: Path) -> None:
    """A missing file, a text file, a cut-off archive, and a folder without bundles."""
    archive = export_bundles([_bundle(tmp_path / "a")], tmp_path / "s.tar.gz")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:200])
    text = tmp_path / "text.tar.gz"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none.tar.gz", "no such file"),
        (text, "not a bundle archive"),
        (cut, "not a bundle archive"),
        (tmp_path / "empty", "holds no bundle"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            verify_bundles(path)
        assert "\n" not in str(caught.value)


def test_two_bundles_for_one_place_are_refused(tmp_path: Path) -> None:
    """Two versions of one bundle cannot travel together: the second would replace the first."""
    pair = [_bundle(tmp_path / "a"), _bundle(tmp_path / "b", latency_s=2.0)]
    with pytest.raises(InputError, match="the same bundle to an archive"):
        export_bundles(pair, tmp_path / "s.tar.gz")
