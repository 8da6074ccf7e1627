"""Curves: measured points as they are, transfers by the engine model, limits of memory, flags."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planning_cases import (
    ENGINE,
    SHAPES,
    bundle,
    curve_of,
    engine_points,
    has_flag,
    open_point,
    point,
)

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.curves.evidence import evidence_for
from scepsy_hpc.planning.curves.making import make_curve
from scepsy_hpc.planning.curves.sources import NoCurveError

TOKENS = TokenLengths(1000.0, 100.0)


def test_measured_points_are_used_as_they_are() -> None:
    """At its own TP, share and tokens (within 5%) a bundle's points are the curve.

    Three are too few for an engine model: what lies between and past them is said to be lines.
    """
    points = [point(1, 1.0), point(4, 3.0), point(16, 3.01)]
    curve = curve_of(bundle(points), tokens=TokenLengths(1030.0, 98.0))
    assert curve.server.concurrency == (1.0, 4.0, 16.0)
    assert curve.server.throughput_rps == (1.0, 3.0, 3.01)
    assert [flag.partition(":")[0] for flag in curve.flags] == ["straight_lines"]
    assert curve.capacity_rps == 3.01
    assert curve.engine is None
    assert curve.memory_gib == 78.0


def test_rising_curve_is_a_lower_bound() -> None:
    """While throughput still rises, and with one point, capacity is flagged a lower bound."""
    assert has_flag(curve_of(bundle([point(1, 1.0), point(4, 3.0)])), "capacity_lower_bound")
    assert has_flag(curve_of(bundle([point(8, 3.0)])), "capacity_lower_bound")
    saturated = [point(1, 1.0), point(4, 3.0, saturated=True)]
    assert not has_flag(curve_of(bundle(saturated)), "capacity_lower_bound")


def test_transfer_to_other_tokens() -> None:
    """Where the engine model is exact, a curve of unmeasured tokens is what the engine does."""
    tokens = TokenLengths(3000.0, 300.0)
    curve = curve_of(bundle(engine_points(SHAPES)), tokens=tokens)
    for k in (1.0, 16.0, 64.0):
        expected = ENGINE.closed_loop(k, tokens.inputs, tokens.outputs).throughput_rps
        assert float(curve.server.rate_rps(k)) == pytest.approx(expected, rel=0.01)
    assert has_flag(curve, "transferred")


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
    found = float(curve_of(made, tokens=tokens).server.rate_rps(16.0))
    assert 0.95 * far < found < 0.98 * far


def test_share_without_points_is_derived() -> None:
    """Half a GPU does at most half of the whole GPU with as many calls on each half, flagged."""
    made = bundle(engine_points(SHAPES))
    whole, half = curve_of(made), curve_of(made, share=50)
    assert has_flag(half, "derived")
    assert not has_flag(whole, "derived")
    for k in half.server.concurrency:
        both = 2.0 * float(half.server.rate_rps(k))
        assert both <= float(whole.server.rate_rps(2.0 * k)) * (1.0 + 1e-9)
    assert half.capacity_rps > 0.4 * whole.capacity_rps
    # Reading a token's 100,000 bytes of context on half of 3.35 TB/s takes 60 ns, not 23.
    halved = replace(ENGINE.at_share(50), context_token_s=1e5 / (3.35e12 / 2.0))
    together = 0.5 * ENGINE.closed_loop(32.0, 1000.0, 100.0).throughput_rps
    expected = min(halved.closed_loop(16.0, 1000.0, 100.0).throughput_rps, together)
    assert float(half.server.rate_rps(16.0)) == pytest.approx(expected, rel=0.01)


def test_own_points_of_a_share_go_first() -> None:
    """A share that was measured is not derived."""
    made = bundle([*engine_points(SHAPES), point(1, 0.5, gpu_share_pct=50)])
    curve = curve_of(made, share=50)
    assert curve.server.throughput_rps == (0.5,)
    assert not has_flag(curve, "derived")


def test_groups_and_cpu_slices_are_not_derived() -> None:
    """Shares of tensor-parallel groups and of CPU slices count only where measured."""
    group = bundle(engine_points(SHAPES, tp_degree=2))
    with pytest.raises(NoCurveError, match="only where measured"):
        curve_of(group, share=50, tp=2)
    with pytest.raises(NoCurveError, match="MPS"):
        curve_of(bundle(engine_points(SHAPES), gpu_type="cpu_slice"), share=50)


def test_memory_must_hold_weights_and_a_call() -> None:
    """Weights above the share's memory, or no room for one call's KV cache, refuse the kind."""
    points = engine_points(SHAPES)
    with pytest.raises(NoCurveError, match="weights do not fit"):
        curve_of(bundle(points, weights_gib=40.0), share=50)
    with pytest.raises(NoCurveError, match="KV cache of one call"):
        curve_of(bundle(points, weights_gib=77.99))
    with pytest.raises(NoCurveError, match="min_memory_gib"):
        curve_of(bundle(points), share=25, min_memory_gib=20.0)


def test_kv_cache_caps_what_was_not_measured() -> None:
    """A modelled curve ends where the KV cache is full; a measured one proves that it fitted."""
    points = engine_points(SHAPES)
    # 1,100 tokens x 8 calls of 100,000 bytes are 0.82 GiB.
    sizes = {"weights_gib": 78.0 - 0.82}
    modelled = curve_of(bundle(points, how="modelled", **sizes))
    assert modelled.server.concurrency[-1] == pytest.approx(8.0, rel=0.01)
    assert has_flag(modelled, "kv_limited")
    assert has_flag(modelled, "modelled")
    assert curve_of(bundle(points, **sizes)).server.concurrency[-1] == 64.0


def test_only_saturated_open_points_are_no_curve() -> None:
    """Saturated open points give capacity, never latency."""
    full = open_point(3.0, 2.0, 60.0, saturated=True)
    with pytest.raises(NoCurveError, match="saturated"):
        curve_of(bundle([full]))


def test_a_bad_fit_is_refused() -> None:
    """Points no engine could make carry no transfer; at their own shape they still count."""
    rng = np.random.default_rng(0)
    wild = [
        point(k, float(rng.uniform(0.1, 50.0)), input_tokens_mean=i, output_tokens_mean=o)
        for i, o in SHAPES
        for k in (1, 4, 16, 64)
    ]
    with pytest.raises(NoCurveError, match="misses"):
        curve_of(bundle(wild), tokens=TokenLengths(3000.0, 300.0))
    assert curve_of(bundle(wild)).capacity_rps > 0


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
    assert has_flag(curve_of(made), "simulated")
