"""Which profiles speak for a model, in which order, and what they must say."""

from __future__ import annotations

import pytest
from planning_cases import bundle, curve_of, point

from scepsy_hpc.errors import InputError
from scepsy_hpc.planning.curves.evidence import evidence_for, no_evidence


def test_sizes_must_be_known(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """A GPU bundle without sizes and without a local config is refused by key; a slice is not."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for key in ("weights_gib", "kv_bytes_per_token"):
        with pytest.raises(InputError, match=key):
            curve_of(bundle([point(1, 1.0)], **{key: None}))
    cpu = bundle([point(1, 1.0)], gpu_type="cpu_slice", weights_gib=None, kv_bytes_per_token=None)
    assert curve_of(cpu).capacity_rps == 1.0


def test_sizes_from_a_local_config(tmp_path: object) -> None:
    """Without sizes in the bundle they come from the model's config.json and checkpoint."""
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "config.json").write_text(
        '{"num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 2,'
        ' "hidden_size": 512, "dtype": "bfloat16"}'
    )
    (folder / "model.safetensors").write_bytes(b"0" * 1024)
    made = bundle([point(1, 1.0)], model=str(folder), weights_gib=None, kv_bytes_per_token=None)
    evidence = next(evidence_for(str(folder), "h100_sxm", [made]))
    assert evidence.sizes is not None
    assert evidence.sizes.kv_bytes_per_token == 2 * 10 * 2 * 64 * 2
    assert evidence.sizes.weights_gib == 1024 / 2**30


def test_preferred_evidence() -> None:
    """Startable engines, real ones, curves and measurements go first, then the newest version."""
    curve_points = [point(1, 1.0), point(2, 1.5), point(4, 2.0)]
    bundles = [
        bundle(curve_points, engine="trtllm", engine_version="9.0"),
        bundle(curve_points, engine="simulated", engine_version="1.0", how="modelled"),
        bundle(curve_points, engine_version="0.30.0", how="modelled"),
        bundle([point(8, 4.0)], engine_version="0.40.0"),
        bundle(curve_points, engine_version="0.9.0"),
        bundle(curve_points, engine_version="0.10.0"),
    ]
    order = [
        (e.merged.header.engine, e.merged.header.engine_version)
        for e in evidence_for("org/model", "h100_sxm", bundles)
    ]
    assert order == [
        ("vllm", "0.10.0"),
        ("vllm", "0.9.0"),
        ("vllm", "0.30.0"),
        ("vllm", "0.40.0"),
        ("simulated", "1.0"),
        ("trtllm", "9.0"),
    ]
    only = list(evidence_for("org/model", "h100_sxm", bundles, "vllm-0.9.0"))
    assert [e.merged.header.engine_version for e in only] == ["0.9.0"]


def test_a_model_without_profile_lists_what_there_is() -> None:
    """The error names the model, the GPU type, and the profiles that exist."""
    error = no_evidence("org/other", ["h100_sxm"], [bundle([point(1, 1.0)])], None)
    assert "org/other" in str(error)
    assert "org/model on h100_sxm" in str(error)
