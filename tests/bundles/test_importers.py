"""Tables of curves from elsewhere become bundles that say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from scepsy_hpc.bundles.importers import TABLE_COLUMNS, import_csv
from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.bundles.published_sizes import published_kv_bytes_per_token, published_weights_gib
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path


def _table(path: Path, *rows: str, columns: tuple[str, ...] = TABLE_COLUMNS) -> Path:
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


def _row(model: str = "org/tiny", concurrency: float = 4, latency_s: float = 2.0) -> str:
    throughput = concurrency / latency_s
    return f"h100_sxm,vllm,0.1,{model},1,512,64,{concurrency},{throughput},0.5,0.02,{latency_s}"


def test_rows_become_points_with_their_origin(tmp_path: Path) -> None:
    """A row keeps its figures; the bundle says modelled, source and licence."""
    path = _table(tmp_path / "t.csv", _row(), _row(concurrency=8, latency_s=3.0))
    done = import_csv("modelled", path, tmp_path / "out", date="2026-01-02")
    (bundle,) = done.bundles
    assert (len(bundle.points), done.dropped) == (2, {})
    assert bundle.header.how == "modelled"
    assert bundle.header.licence == "Apache-2.0"
    assert bundle.header.date == "2026-01-02"
    assert bundle.header.weights_gib is None
    assert [(p.concurrency, p.latency_mean_s) for p in bundle.points] == [(4.0, 2.0), (8.0, 3.0)]
    assert bundle.path.name == "token-grid"


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    """Rows that break Little's law, lack a figure or repeat are dropped, each under its reason."""
    broken = "h100_sxm,vllm,0.1,org/tiny,1,512,64,16,9.0,0.5,0.02,2.0"
    lacking = "h100_sxm,vllm,0.1,org/tiny,1,512,64,16,,0.5,0.02,2.0"
    path = _table(tmp_path / "t.csv", _row(), broken, lacking, _row())
    done = import_csv("modelled", path, tmp_path / "out")
    assert sum(len(bundle.points) for bundle in done.bundles) == 1
    assert sorted(done.dropped.values()) == [1, 1, 1]
    assert "breaks Little's law by more than 5%" in done.dropped


def test_modelled_rows_must_fit_the_memory(tmp_path: Path) -> None:
    """A modelled 70B in 16 bits on one 80 GiB GPU is left out: it could not run."""
    path = _table(tmp_path / "t.csv", _row("meta-llama/Llama-3.1-70B"))
    done = import_csv("modelled", path, tmp_path / "out")
    assert done.bundles == ()
    assert done.dropped == {"the weights do not fit the GPU memory": 1}


def test_two_precisions_get_two_bundles(tmp_path: Path) -> None:
    """Precisions of one engine do not overwrite each other."""
    columns = (*TABLE_COLUMNS, "precision")
    path = _table(tmp_path / "t.csv", _row() + ",fp8", _row() + ",", columns=columns)
    import_csv("silicon", path, tmp_path / "out")
    found = find_bundles(tmp_path / "out")
    assert sorted(b.header.precision for b in found) == ["fp8", "unknown"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["z9,vllm,0.1,org/tiny,1,512,64,4,2,0.5,0.02,2"],
            "line 2: gpu_type: 'z9' is not in",
        ),
        (["h100_sxm,vllm,0.1,m,1,512,64,4,fast,0.5,0.02,2"], "line 2: throughput_rps: .*'fast'"),
    ],
)
def test_nonsense_names_its_line(tmp_path: Path, rows: list[str], message: str) -> None:
    """A cell that is not what its column holds is an error with file and line."""
    with pytest.raises(InputError, match=message):
        import_csv("silicon", _table(tmp_path / "t.csv", *rows), tmp_path / "out")


def test_shipped_bundles_read_and_say_what_they_are() -> None:
    """Every shipped bundle passes the checks and names its source and licence."""
    found = find_bundles(shipped_path("profiles"))
    assert {b.header.how for b in found} == {"measured", "modelled"}
    assert {b.header.licence for b in found} == {"Apache-2.0"}
    assert sum(len(b.points) for b in found if b.header.how == "measured") == 653


def test_published_sizes() -> None:
    """Sizes follow from published counts: 2 x layers x KV heads x head size x 2 bytes a token."""
    assert published_kv_bytes_per_token("Qwen/Qwen3-32B") == 2 * 64 * 8 * 128 * 2
    assert published_weights_gib("Qwen/Qwen3-32B", "bf16") == pytest.approx(61.0, abs=0.1)
    assert published_weights_gib("Qwen/Qwen3-32B", "fp8") == pytest.approx(32.0, abs=0.1)
    assert published_weights_gib("org/unheard-of", "bf16") is None
