"""Bundles on disk: what is accepted, what is refused and with which line, and atomic writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scepsy_hpc.bundles.library import find_bundles, resolve_bundle, save_bundle
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import sha256_file
from scepsy_hpc.formats.bundle import BundleHeader, load_bundle
from scepsy_hpc.formats.points import Point, read_points

HEADER = BundleHeader(
    model="org/tiny",
    engine="vllm",
    engine_version="0.1",
    engine_args={"max_num_seqs": 8, "enforce_eager": True},
    precision="bf16",
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    how="measured",
    source="a test",
    licence="Apache-2.0",
    date="2026-01-01",
    points_sha256="",
)


def _point(concurrency: float, **changes: object) -> Point:
    latency_s = 1.0 + 0.1 * concurrency
    point = Point(
        tp_degree=1,
        gpu_share_pct=100,
        load="closed",
        concurrency=concurrency,
        throughput_rps=concurrency / latency_s,
        latency_mean_s=latency_s,
        input_tokens_mean=512.0,
        output_tokens_mean=64.0,
    )
    return replace(point, **changes)  # type: ignore[arg-type]


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = (
    "tp_degree,gpu_share_pct,load,concurrency,throughput_rps,latency_mean_s,"
    "input_tokens_mean,output_tokens_mean,ttft_mean_s,room"
)


def test_saved_bundle_reads_back_equal(tmp_path: Path) -> None:
    """What is saved is read back unchanged, under the folder the contract names."""
    points = [_point(1, ttft_mean_s=0.5, saturated=False), _point(8, link="nvlink")]
    saved = save_bundle(tmp_path, HEADER, points, "my load")
    assert saved.path == tmp_path / "h100_sxm" / "org__tiny" / "vllm-0.1" / "my_load"
    again = load_bundle(saved.path)
    assert again.header == saved.header
    assert again.points[0].saturated is False
    assert again.points[1].link == "nvlink"
    assert again.points[1].throughput_rps == pytest.approx(points[1].throughput_rps)
    assert again.sha256 == sha256_file(saved.path / "points.csv")


def test_find_goes_by_content_not_by_path(tmp_path: Path) -> None:
    """A bundle under any path is found; one just being written (hidden folder) is not."""
    saved = save_bundle(tmp_path / "a", HEADER, [_point(1)], "w")
    moved = tmp_path / "elsewhere" / "x"
    moved.parent.mkdir()
    saved.path.rename(moved)
    hidden = save_bundle(tmp_path / "b", HEADER, [_point(2)], "w")
    hidden.path.rename(hidden.path.with_name(".w.half"))
    found = find_bundles([tmp_path, tmp_path / "elsewhere"])
    assert [bundle.header.model for bundle in found] == ["org/tiny"]
    assert found[0].path == moved


def test_saving_again_replaces_the_old_bundle(tmp_path: Path) -> None:
    """A second save of the same key leaves one bundle, the new one, and no temporary folder."""
    save_bundle(tmp_path, HEADER, [_point(1)], "w")
    save_bundle(tmp_path, HEADER, [_point(1), _point(2)], "w")
    (found,) = find_bundles(tmp_path)
    assert len(found.points) == 2
    assert [p.name for p in found.path.parent.iterdir()] == ["w"]


def test_unknown_columns_are_passed_over(tmp_path: Path) -> None:
    """A column this version does not know changes no point."""
    path = _write(tmp_path / "points.csv", GOOD, "1,100,closed,2,1.0,2.0,512,64,,north")
    known = GOOD.removesuffix(",room")
    plain = _write(tmp_path / "plain.csv", known, "1,100,closed,2,1.0,2.0,512,64,")
    assert read_points(path) == read_points(plain)


def test_empty_cell_is_unknown(tmp_path: Path) -> None:
    """An empty optional cell is None, never zero."""
    path = _write(tmp_path / "points.csv", GOOD, "1,100,closed,2,1.0,2.0,512,64,,")
    assert read_points(path)[0].ttft_mean_s is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,100,closed,2,1.0,2.2,512,64,,", "line 3.*Little's law by \\+10.0%; allowed is 5%"),
        ("1,100,closed,2,nan,2.0,512,64,,", "line 3: throughput_rps: .*finite"),
        ("1,100,closed,2,-1,2.0,512,64,,", "line 3: throughput_rps: .*greater than 0"),
        ("1,100,closed,,1.0,2.0,512,64,,", "line 3: concurrency: is empty"),
        ("1,100,open,2,1.0,2.0,512,64,,", "line 3: arrival_rate_rps: is empty"),
        ("1,100,closed,2,1.0,,512,64,,", "line 3: latency_mean_s: is empty"),
        ("1,120,closed,2,1.0,2.0,512,64,,", "line 3: gpu_share_pct: .*less than or equal to 100"),
        ("0,100,closed,2,1.0,2.0,512,64,,", "line 3: tp_degree: .*greater than or equal to 1"),
        ("1,100,ajar,2,1.0,2.0,512,64,,", "line 3: load: .*'open' or 'closed'"),
        ("1,100,closed,1,1.0,1.0,512,64,,", "line 3: repeats the operating point of .*line 2"),
        ("1,100,closed,2,1.0,2.0,512", "line 3: has 7 cells, the header has 10"),
    ],
)
def test_bad_row_names_its_line(tmp_path: Path, row: str, message: str) -> None:
    """Each bad row is refused with one line that names file, line, column and what is allowed."""
    path = _write(tmp_path / "points.csv", GOOD, "1,100,closed,1,1.0,1.0,512,64,,", row)
    with pytest.raises(InputError, match=message) as caught:
        read_points(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_required_column_is_named(tmp_path: Path) -> None:
    """A table without a required column says which."""
    path = _write(tmp_path / "points.csv", "tp_degree,gpu_share_pct,load,throughput_rps", "1,1,1,1")
    with pytest.raises(InputError, match="'latency_mean_s' is missing"):
        read_points(path)


def test_percentiles_must_ascend(tmp_path: Path) -> None:
    """A p50 above the p95 is refused before anything is written."""
    bad = _point(1, latency_p50_s=2.0, latency_p95_s=1.0)
    with pytest.raises(InputError, match="latency_p50_s 2 is above latency_p95_s 1"):
        save_bundle(tmp_path / "p", HEADER, [bad], "w")
    assert not (tmp_path / "p").exists()


def test_changed_points_are_noticed(tmp_path: Path) -> None:
    """Points edited after the bundle was written do not match its digest and are refused."""
    saved = save_bundle(tmp_path, HEADER, [_point(1)], "w")
    path = saved.path / "points.csv"
    path.write_text(path.read_text().replace(",512,", ",513,"))
    with pytest.raises(InputError, match="points_sha256"):
        find_bundles(tmp_path)


def test_unknown_key_of_the_header_lists_the_known(tmp_path: Path) -> None:
    """A misspelt key of bundle.yaml is an error that lists the known keys."""
    saved = save_bundle(tmp_path, HEADER, [_point(1)], "w")
    path = saved.path / "bundle.yaml"
    path.write_text(path.read_text().replace("licence:", "license:"))
    with pytest.raises(InputError, match=r"license: unknown key; known keys: .*licence"):
        load_bundle(saved.path)


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    """A root that is not there is an input error; an empty one has no bundles."""
    with pytest.raises(InputError, match="no such folder"):
        find_bundles(tmp_path / "none")
    assert find_bundles(tmp_path) == []


def test_resolve_takes_a_path_and_names_what_it_tried(tmp_path: Path) -> None:
    """An absolute folder resolves to itself; one that is nowhere names the places searched."""
    saved = save_bundle(tmp_path, HEADER, [_point(1)], "w")
    assert resolve_bundle(str(saved.path)) == saved.path.resolve()
    with pytest.raises(InputError, match=r"nowhere/at_all nor .*profiles"):
        resolve_bundle("nowhere/at_all")


def test_names_cannot_leave_the_root(tmp_path: Path) -> None:
    """A model name with dots and slashes still lands below the root."""
    header = replace(HEADER, model="../../etc", engine_version="../1")
    saved = save_bundle(tmp_path / "p", header, [_point(1)], "..")
    assert (tmp_path / "p").resolve() in saved.path.resolve().parents
