"""Curves: measured points as they are, transfers by the engine model, limits of memory, flags."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from planning_cases import ENGINE, bundle, engine_points, open_point, point

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import evidence_for, no_evidence
from scepsy_hpc.planning.curves.making import NoCurveError, make_curve

SHAPES = ((1000.0, 100.0), (4000.0, 200.0), (500.0, 1.0), (2000.0, 400.0))
TOKENS = TokenLengths(1000.0, 100.0)


def _curve(
    made: Bundle, share: int = 100, tp: int = 1, tokens: TokenLengths = TOKENS, **more: float
) -> Curve:
    evidence = next(evidence_for(made.header.model, made.header.gpu_type, [made]))
    link = None if tp == 1 else "nvlink"
    return make_curve(evidence, Parallelism(made.header.gpu_type, link, tp, share), tokens, **more)


def _has(curve: Curve, flag: str) -> bool:
    return any(text.startswith(flag) for text in curve.flags)


def test_measured_points_are_used_as_they_are() -> None:
    """At its own TP, share and tokens (within 5%) a bundle's points are the curve, unflagged."""
    points = [point(1, 1.0), point(4, 3.0), point(16, 3.01)]
    curve = _curve(bundle(points), tokens=TokenLengths(1030.0, 98.0))
    assert curve.server.concurrency == (1.0, 4.0, 16.0)
    assert curve.server.throughput_rps == (1.0, 3.0, 3.01)
    assert curve.flags == ()
    assert curve.capacity_rps == 3.01
    assert curve.memory_gib == 78.0


def test_rising_curve_is_a_lower_bound() -> None:
    """While throughput still rises, and with one point, capacity is flagged a lower bound."""
    assert _has(_curve(bundle([point(1, 1.0), point(4, 3.0)])), "capacity_lower_bound")
    assert _has(_curve(bundle([point(8, 3.0)])), "capacity_lower_bound")
    saturated = [point(1, 1.0), point(4, 3.0, saturated=True)]
    assert not _has(_curve(bundle(saturated)), "capacity_lower_bound")


def test_below_the_first_concurrency() -> None:
    """Below the first measured concurrency latency is flat, and says so at such a load only."""
    curve = _curve(bundle([point(8, 4.0), point(32, 8.0)]))
    assert curve.latency_s(0.1) == pytest.approx(2.0, rel=1e-3)
    assert any(f.startswith("below_first") for f in curve.flags_at(0.1))
    assert not any(f.startswith("below_first") for f in curve.flags_at(6.0))


def test_a_fitted_model_covers_low_concurrency() -> None:
    """Where a model passed its hold-out, latency below the first point follows it, flagged."""
    points = engine_points(SHAPES, concurrency=(8, 16, 32, 64))
    curve = _curve(bundle(points))
    alone_s = ENGINE.closed_loop(1.0, 1000.0, 100.0).latency_s
    assert curve.latency_s(0.01) == pytest.approx(alone_s, rel=0.02)
    for p in points[:4]:
        assert float(curve.server.rate_rps(p.concurrency or 0.0)) == p.throughput_rps
    assert curve.held_at == (8.0, 16.0, 32.0, 64.0)
    assert _has(curve, "transferred: below 8")
    # A first point far up leaves no gap either.
    far = _curve(bundle(engine_points(SHAPES, concurrency=(32, 64, 128))))
    six_s = ENGINE.closed_loop(6.0, 1000.0, 100.0).latency_s
    assert far.server.closed(6.0)[1] == pytest.approx(six_s, rel=0.02)


def test_a_fitted_model_fills_gaps_between_points() -> None:
    """Between distant points the curve follows the fitted model through both ends, flagged."""
    points = [
        point(
            p.concurrency or 1.0,
            p.throughput_rps * (1.0 if p.input_tokens_mean > 1000 else 0.9),
            input_tokens_mean=p.input_tokens_mean,
            output_tokens_mean=p.output_tokens_mean,
        )
        for p in engine_points(SHAPES)
    ]
    curve = _curve(bundle(points))
    for k in (1.0, 2.0, 8.0, 30.0, 64.0):
        expected = 0.9 * ENGINE.closed_loop(k, 1000.0, 100.0).throughput_rps
        assert float(curve.server.rate_rps(k)) == pytest.approx(expected, rel=0.01)
    line = np.interp(8.0, [4.0, 16.0], [curve.server.rate_rps(k) for k in (4.0, 16.0)])
    assert float(curve.server.rate_rps(8.0)) > 1.05 * line
    assert curve.held_at == (1.0, 4.0, 16.0, 64.0)
    assert _has(curve, "between points: fitted engine model")


def test_gaps_too_short_to_matter_are_not_flagged() -> None:
    """Where the fitted model stays within 2% of straight lines nothing rests on it."""
    curve = _curve(bundle(engine_points(SHAPES, concurrency=(1, 2, 3, 4))))
    assert curve.server.concurrency == (1.0, 2.0, 3.0, 4.0)
    assert not _has(curve, "between points")


def test_filled_points_are_no_new_capacity() -> None:
    """Between two points throughput stays between theirs, whatever the model's own shape is."""
    points = [
        *engine_points(SHAPES[1:]),
        *engine_points(SHAPES[:1], concurrency=(1, 4)),
        point(64, engine_points(SHAPES[:1], concurrency=(4,))[0].throughput_rps * 1.01),
    ]
    curve = _curve(bundle(points))
    low, high = (float(curve.server.rate_rps(k)) for k in (4.0, 64.0))
    inside = [
        x
        for k, x in zip(curve.server.concurrency, curve.server.throughput_rps, strict=True)
        if 4.0 < k < 64.0
    ]
    assert len(inside) > 5
    assert all(low <= x <= high for x in inside)
    assert curve.capacity_rps == high
    assert not _has(curve, "capacity_lower_bound")


def test_unknown_first_tokens_stay_unknown_between_points() -> None:
    """Where neither end knows its TTFT the points between have none."""
    points = [replace(p, ttft_mean_s=None) for p in engine_points(SHAPES)]
    assert all(math.isnan(ttft_s) for ttft_s in _curve(bundle(points)).ttft_s)


def test_without_a_fit_points_are_joined_by_lines() -> None:
    """Too few points for a fit: throughput is linear in the calls in flight, as it stands."""
    curve = _curve(bundle([point(1, 1.0), point(16, 4.0), point(64, 6.0)]))
    assert curve.server.concurrency == (1.0, 16.0, 64.0)
    assert float(curve.server.rate_rps(40.0)) == pytest.approx(5.0)


def test_transfer_to_other_tokens() -> None:
    """Where the engine model is exact, a curve of unmeasured tokens is what the engine does."""
    tokens = TokenLengths(3000.0, 300.0)
    curve = _curve(bundle(engine_points(SHAPES)), tokens=tokens)
    for k in (1.0, 16.0, 64.0):
        expected = ENGINE.closed_loop(k, tokens.inputs, tokens.outputs).throughput_rps
        assert float(curve.server.rate_rps(k)) == pytest.approx(expected, rel=0.01)
    assert _has(curve, "transferred")


def test_transfer_is_held_to_the_nearest_shape() -> None:
    """Where the nearest shape is 7% slower than the model, a part of that is carried over."""
    slow = [
        point(
            p.concurrency or 1.0,
            p.throughput_rps * 0.93,
            input_tokens_mean=p.input_tokens_mean,
            output_tokens_mean=p.output_tokens_mean,
        )
        for p in engine_points(((3200.0, 300.0),))
    ]
    made = bundle([*engine_points(SHAPES), *slow])
    tokens = TokenLengths(3000.0, 300.0)
    far = ENGINE.closed_loop(16.0, tokens.inputs, tokens.outputs).throughput_rps
    found = float(_curve(made, tokens=tokens).server.rate_rps(16.0))
    assert 0.95 * far < found < 0.98 * far


def test_share_without_points_is_derived() -> None:
    """Half a GPU is slower, by less than half, and flagged; the whole GPU is not."""
    made = bundle(engine_points(SHAPES))
    whole, half = _curve(made), _curve(made, share=50)
    assert _has(half, "derived")
    assert not _has(whole, "derived")
    assert 0.5 * whole.capacity_rps < half.capacity_rps < whole.capacity_rps
    expected = ENGINE.at_share(50).closed_loop(16.0, 1000.0, 100.0).throughput_rps
    assert float(half.server.rate_rps(16.0)) == pytest.approx(expected, rel=0.01)


def test_own_points_of_a_share_go_first() -> None:
    """A share that was measured is not derived."""
    made = bundle([*engine_points(SHAPES), point(1, 0.5, gpu_share_pct=50)])
    curve = _curve(made, share=50)
    assert curve.server.throughput_rps == (0.5,)
    assert not _has(curve, "derived")


def test_groups_and_cpu_slices_are_not_derived() -> None:
    """Shares of tensor-parallel groups and of CPU slices count only where measured."""
    group = bundle(engine_points(SHAPES, tp_degree=2))
    with pytest.raises(NoCurveError, match="only where measured"):
        _curve(group, share=50, tp=2)
    with pytest.raises(NoCurveError, match="MPS"):
        _curve(bundle(engine_points(SHAPES), gpu_type="cpu_slice"), share=50)


def test_memory_must_hold_weights_and_a_call() -> None:
    """Weights above the share's memory, or no room for one call's KV cache, refuse the kind."""
    points = engine_points(SHAPES)
    with pytest.raises(NoCurveError, match="weights do not fit"):
        _curve(bundle(points, weights_gib=40.0), share=50)
    with pytest.raises(NoCurveError, match="KV cache of one call"):
        _curve(bundle(points, weights_gib=77.99))
    with pytest.raises(NoCurveError, match="min_memory_gib"):
        _curve(bundle(points), share=25, min_memory_gib=20.0)


def test_kv_cache_caps_what_was_not_measured() -> None:
    """A modelled curve ends where the KV cache is full; a measured one proves that it fitted."""
    points = engine_points(SHAPES)
    # 1,100 tokens x 8 calls of 100,000 bytes are 0.82 GiB.
    sizes = {"weights_gib": 78.0 - 0.82}
    modelled = _curve(bundle(points, how="modelled", **sizes))
    assert modelled.server.concurrency[-1] == pytest.approx(8.0, rel=0.01)
    assert _has(modelled, "kv_limited")
    assert _has(modelled, "modelled")
    assert _curve(bundle(points, **sizes)).server.concurrency[-1] == 64.0


def test_sizes_must_be_known(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """A GPU bundle without sizes and without a local config is refused by key; a slice is not."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for key in ("weights_gib", "kv_bytes_per_token"):
        with pytest.raises(InputError, match=key):
            _curve(bundle([point(1, 1.0)], **{key: None}))
    cpu = bundle([point(1, 1.0)], gpu_type="cpu_slice", weights_gib=None, kv_bytes_per_token=None)
    assert _curve(cpu).capacity_rps == 1.0


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


def test_open_points_are_used_under_single_arrivals() -> None:
    """Open points give the latency at their rates; a saturated one only raises the capacity."""
    points = [
        open_point(0.5, 0.5, 1.5),
        open_point(1.0, 1.0, 2.0),
        open_point(3.0, 2.0, 60.0, saturated=True),
    ]
    curve = _curve(bundle(points))
    assert curve.latency_s(0.75) == pytest.approx(1.75)
    assert curve.latency_s(0.01) == pytest.approx(1.5)
    assert curve.capacity_rps == 2.0
    assert curve.latency_s(1.5) == pytest.approx(4.0)
    assert any(f.startswith("extrapolated") for f in curve.flags_at(1.5))
    assert math.isinf(curve.latency_s(2.0))
    assert curve.latency_s(0.75, burst=4) > curve.latency_s(0.75)


def test_only_saturated_open_points_are_no_curve() -> None:
    """Saturated open points give capacity, never latency."""
    full = open_point(3.0, 2.0, 60.0, saturated=True)
    with pytest.raises(NoCurveError, match="saturated"):
        _curve(bundle([full]))


def test_a_bad_fit_is_refused() -> None:
    """Points no engine could make carry no transfer; at their own shape they still count."""
    rng = np.random.default_rng(0)
    wild = [
        point(k, float(rng.uniform(0.1, 50.0)), input_tokens_mean=i, output_tokens_mean=o)
        for i, o in SHAPES
        for k in (1, 4, 16, 64)
    ]
    with pytest.raises(NoCurveError, match="misses"):
        _curve(bundle(wild), tokens=TokenLengths(3000.0, 300.0))
    assert _curve(bundle(wild)).capacity_rps > 0


def test_call_times_have_the_mean_latency() -> None:
    """The distribution of a call at a load averages to its latency, and TTFT is inside it."""
    curve = _curve(bundle(engine_points(SHAPES)))
    for burst in (1, 4):
        weights, latency_s, ttft_s = curve.call_times(0.5 * curve.capacity_rps, burst)
        mean_s = float(weights @ latency_s)
        assert mean_s == pytest.approx(curve.latency_s(0.5 * curve.capacity_rps, burst), rel=1e-3)
        assert np.all(ttft_s <= latency_s)
        assert np.all(ttft_s > 0)


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


def test_links_are_part_of_the_key() -> None:
    """A group over NVLink says nothing about PCIe; one GPU needs no link."""
    made = bundle(engine_points(SHAPES, tp_degree=2), link="nvlink")
    evidence = next(evidence_for("org/model", "h100_sxm", [made]))
    with pytest.raises(NoCurveError, match="pcie"):
        make_curve(evidence, Parallelism("h100_sxm", "pcie", 2, 100), TOKENS)
    assert make_curve(evidence, Parallelism("h100_sxm", "nvlink", 2, 100), TOKENS).capacity_rps > 0


def test_simulated_engines_are_flagged() -> None:
    """A curve of a simulated engine says that nothing was measured."""
    made = bundle([point(1, 1.0)], engine="simulated", how="modelled")
    assert _has(_curve(made), "simulated")


def test_a_model_without_profile_lists_what_there_is() -> None:
    """The error names the model, the GPU type, and the profiles that exist."""
    error = no_evidence("org/other", ["h100_sxm"], [bundle([point(1, 1.0)])], None)
    assert "org/other" in str(error)
    assert "org/model on h100_sxm" in str(error)
