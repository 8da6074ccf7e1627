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
from scepsy_hpc.planning.curves.making import make_curve, with_engine_args
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


def test_a_sweep_with_sampled_lengths_is_one_curve() -> None:
    """Mean lengths that differ by 0.1% from point to point are one sweep, with all its points."""
    made = [
        replace(p, input_tokens_mean=1000.0 + i, output_tokens_mean=100.0 - 0.05 * i)
        for i, p in enumerate(engine_points(SHAPES[:1], concurrency=(1, 4, 16, 64)))
    ]
    curve = curve_of(bundle(made))
    assert curve.held_at == (1.0, 4.0, 16.0, 64.0)
    for p in made:
        assert float(curve.server.rate_rps(p.concurrency or 1.0)) == pytest.approx(p.throughput_rps)
    equal = curve_of(bundle(engine_points(SHAPES[:1], concurrency=(1, 4, 16, 64))))
    assert curve.capacity_rps == pytest.approx(equal.capacity_rps, rel=0.02)


def test_points_at_one_concurrency_are_averaged_by_calls() -> None:
    """900 calls at 2 s and 100 at 4 s: 2.2 s a call, and so many a second."""
    points = [
        point(8, 4.0, num_requests=900),
        point(8, 2.0, num_requests=100, output_tokens_mean=101),
    ]
    curve = curve_of(bundle(points))
    assert curve.server.closed(8.0)[1] == pytest.approx(2.2)


def test_capacity_follows_the_model_to_the_batch_limit() -> None:
    """Measured up to 64 in flight the curve goes on to max_num_seqs as the engine does."""
    made = bundle(engine_points(SHAPES), engine_args={"max_num_seqs": 200})
    curve = curve_of(made)
    assert curve.server.concurrency[-1] == 200.0
    true = replace(ENGINE, max_num_seqs=200)
    for k in (90.0, 150.0, 200.0, 400.0):
        expected = true.closed_loop(k, 1000.0, 100.0).throughput_rps
        assert float(curve.server.rate_rps(k)) == pytest.approx(expected, rel=0.02)
    assert has_flag(curve, "extrapolated: capacity")
    assert curve.engine is not None
    assert curve.engine.max_num_seqs == 200
    assert curve.basis.last == 64.0


def test_the_batch_the_workflow_asks_for_bounds_what_was_measured() -> None:
    """max_num_seqs 16 of the workflow, profiled without: no more than sixteen run at once."""
    evidence = next(evidence_for("org/model", "h100_sxm", [bundle(engine_points(SHAPES))]))
    kind = Parallelism("h100_sxm", None, 1, 100)
    curve = make_curve(evidence, kind, TOKENS, engine_args={"max_num_seqs": 16})
    assert curve.server.concurrency[-1] == 16.0
    assert curve.capacity_rps == float(curve_of(bundle(engine_points(SHAPES))).server.rate_rps(16))
    assert has_flag(curve, "batch_limited")


@pytest.mark.parametrize("where", [(1, 4, 16, 64), (1, 4, 12, 64)])
def test_points_past_the_batch_are_no_capacity(where: tuple[int, ...]) -> None:
    """A profile of max_num_seqs 16 with points at 64: calls beyond sixteen wait for a seat."""
    true = replace(ENGINE, max_num_seqs=16)
    points = engine_points(SHAPES, where, engine=true)
    curve = curve_of(bundle(points, engine_args={"max_num_seqs": 16}))
    assert curve.server.concurrency[-1] == 16.0
    expected = true.closed_loop(16.0, 1000.0, 100.0).throughput_rps
    assert curve.capacity_rps == pytest.approx(expected, rel=0.03)
    flag = next(text for text in curve.flags if text.startswith("batch_limited"))
    assert "up to 64 calls in flight, are left out of capacity" in flag
    assert "times as much" not in flag


def test_points_that_contradict_the_batch_are_said() -> None:
    """X(64) is 2.5 X(16) though sixteen run at most: left out, and the user is asked."""
    points = [point(1, 1.0), point(16, 4.0), point(64, 10.0)]
    curve = curve_of(bundle(points, engine_args={"max_num_seqs": 16}))
    assert curve.capacity_rps == 4.0
    assert has_flag(curve, "batch_limited: the batch holds 16 calls of this length; points past it")
    assert any("2.5 times as much: was the limit another" in flag for flag in curve.flags)
    # A recorded default counts like an argument; of an unknown version it is a guess.
    assert curve_of(bundle([point(1, 1.0), point(512, 9.0)])).server.concurrency[-1] == 512.0
    old = bundle([point(256, 8.0), point(512, 9.0)], engine_version="0.8.5")
    assert curve_of(old).capacity_rps == 8.0
    unknown = bundle([point(256, 8.0), point(512, 9.0)], engine_version="unknown")
    assert curve_of(unknown).capacity_rps == 9.0


def test_capacity_from_open_points_alone() -> None:
    """2 calls/s at 1 s: an arrival finds X(3) = 3, half as much again as was ever done."""
    curve = curve_of(bundle([open_point(2.0, 2.0, 1.0)]))
    assert curve.capacity_rps == pytest.approx(3.0)
    assert has_flag(curve, "extrapolated: capacity, 1.5 times the most that was measured")
    # A closed point at that throughput is a measurement of it.
    both = curve_of(bundle([open_point(2.0, 2.0, 1.0), point(4, 3.0)]))
    assert not has_flag(both, "extrapolated")


def test_a_saturated_point_is_the_capacity_of_open_ones() -> None:
    """2.5 calls/s was the most under too many arrivals: that, not the 3 an arrival finds."""
    saturated = open_point(9.0, 2.5, 60.0, saturated=True)
    curve = curve_of(bundle([open_point(2.0, 2.0, 1.0), saturated]))
    assert curve.capacity_rps == pytest.approx(2.5)
    assert not has_flag(curve, "extrapolated")
    assert curve_of(bundle([point(4, 3.0), saturated])).capacity_rps == 3.0


def test_kv_cache_ends_what_is_extrapolated() -> None:
    """Room for 100 calls of 1,100 tokens, 64 measured: the curve goes on to 100 and no further."""
    room_gib = 100 * 1100 * 100_000 / 2**30
    curve = curve_of(bundle(engine_points(SHAPES), weights_gib=78.0 - room_gib))
    assert curve.server.concurrency[-1] == pytest.approx(100.0)


def test_an_unknown_batch_limit_ends_at_the_last_point() -> None:
    """An engine of which no default is recorded: capacity is that of the last point, flagged."""
    curve = curve_of(bundle(engine_points(SHAPES), engine="other"))
    assert curve.server.concurrency[-1] == 64.0
    assert has_flag(curve, "batch_limit_unknown")


def test_a_falling_curve_is_not_driven_past_its_peak() -> None:
    """Throughput falls from 32 to 64 calls in flight: capacity is what it is at 64."""
    slower = {1: 1.0, 4: 1.0, 16: 1.0, 32: 1.0, 64: 0.6}
    points = [
        replace(p, throughput_rps=p.throughput_rps * f, latency_mean_s=p.latency_mean_s / f)
        for p in engine_points(SHAPES, concurrency=tuple(slower))
        for f in [slower[int(p.concurrency or 1)]]
    ]
    curve = curve_of(bundle(points))
    assert curve.server.concurrency[-1] == 64.0
    assert curve.capacity_rps == curve.server.throughput_rps[-1] < max(curve.server.throughput_rps)
    assert has_flag(curve, "falls_after_peak") or has_flag(curve, "straight_lines")


def test_a_tp_degree_that_heads_do_not_divide_by() -> None:
    """Eight KV heads do not go over three GPUs; of unknown heads three are doubted."""
    points = engine_points(SHAPES)
    with pytest.raises(NoCurveError, match="8 KV heads do not divide by it; measured are TP 1"):
        curve_of(bundle(points, model="Qwen/Qwen3-8B"), tp=3)
    curve_of(bundle(points, model="Qwen/Qwen3-8B"), tp=4)
    flag = "transferred: TP 3 from TP 1 by the fitted engine model; engines start only where"
    assert has_flag(curve_of(bundle(points), tp=3), flag)
    assert not any("engines start" in text for text in curve_of(bundle(points), tp=4).flags)


def test_an_unmeasured_tp_degree_is_transferred() -> None:
    """TP 4 from TP 1 and 2 of an engine whose factors are halves: flagged, and about right."""
    points = []
    for tp in (1, 2):
        halved = replace(
            ENGINE, step_s=0.002 + 0.016 / tp, prefill_token_s=4e-5 / tp, context_token_s=4e-8 / tp
        )
        points += [*engine_points(SHAPES, engine=halved, tp_degree=tp)]
    made = bundle(points, link="nvlink")
    curve = curve_of(made, tp=4)
    true = replace(ENGINE, step_s=0.006, prefill_token_s=1e-5, context_token_s=1e-8)
    for k in (1.0, 16.0, 64.0):
        expected = true.closed_loop(k, 1000.0, 100.0).latency_s
        assert curve.server.closed(k)[1] == pytest.approx(expected, rel=0.1)
    assert has_flag(curve, "transferred: TP 4 from TP 2")
    assert curve.basis.kind == "transferred"
    assert curve.interval_pct(16.0) > curve_of(made, tp=2).interval_pct(16.0)


def test_two_halves_read_no_more_than_the_memory_gives() -> None:
    """A small batch on each half: the weights are read twice in the time of no less than two."""
    # 60 GiB at 3.35 TB/s take 19.2 ms, of a step of 20.
    fast = replace(ENGINE, step_s=0.020)
    made = bundle(engine_points(SHAPES, engine=fast), weights_gib=60.0, gpu_memory_gib=141.0)
    half = curve_of(made, share=50)
    bytes_per_s = 2.0 * 60.0 * 2**30 * 100.0 / half.server.closed(1.0)[1]
    assert bytes_per_s <= 3.35e12


def test_where_the_figures_come_from() -> None:
    """Measured in range, extrapolated outside; modelled and derived throughout; they sum to 100."""
    points = engine_points(SHAPES, concurrency=(4, 8, 16, 32))
    curve = curve_of(bundle(points))
    low, high = curve.rests_on(0.01), curve.rests_on(0.999 * curve.capacity_rps)
    assert low.extrapolated_pct > 95.0
    assert high.extrapolated_pct > 50.0
    busy = curve.rests_on(0.6 * float(curve.server.rate_rps(32.0)))
    assert busy.measured_pct > 50.0
    assert busy.measured_pct + busy.extrapolated_pct == pytest.approx(100.0)
    assert curve_of(bundle(points, how="modelled")).rests_on(1.0).modelled_pct == 100.0
    assert curve_of(bundle(points), share=50).rests_on(1.0).derived_pct == 100.0
    moved = curve_of(bundle(points), tokens=TokenLengths(3000.0, 300.0))
    assert moved.rests_on(1.0).transferred_pct > 0.0
    assert curve.rests_on(10.0 * curve.capacity_rps).extrapolated_pct == 100.0


def test_intervals_widen_away_from_points() -> None:
    """Between points, below, past, at another shape, at a share: wider each time."""
    made = bundle(engine_points(SHAPES, concurrency=(4, 8, 16, 32)))
    own, moved = curve_of(made), curve_of(made, tokens=TokenLengths(3000.0, 300.0))
    assert own.interval_pct(8.0) < own.interval_pct(2.0)
    assert own.interval_pct(8.0) < own.interval_pct(64.0) < own.interval_pct(512.0)
    assert own.interval_pct(8.0) < moved.interval_pct(8.0) < moved.interval_pct(64.0)
    assert curve_of(made, share=50).interval_pct(8.0) > own.interval_pct(8.0)


def test_groups_over_a_slow_link_are_not_made_up() -> None:
    """Points at TP 1, and of groups over NVLink: nothing is said of a group over PCIe."""
    points = [*engine_points(SHAPES), *engine_points(SHAPES, tp_degree=2, link="nvlink")]
    evidence = next(evidence_for("org/model", "h100_sxm", [bundle(points)]))
    with pytest.raises(NoCurveError, match="no points of any group over pcie"):
        make_curve(evidence, Parallelism("h100_sxm", "pcie", 2, 100), TOKENS)
    with pytest.raises(NoCurveError, match="no points of any group over pcie"):
        make_curve(evidence, Parallelism("h100_sxm", "pcie", 4, 100), TOKENS)


def test_saturated_points_of_a_nearer_shape_do_not_hide_the_others() -> None:
    """A shape with nothing but a saturated open point is made from the next one."""
    near = replace(
        open_point(9.0, 8.0, 30.0, saturated=True), input_tokens_mean=900.0, output_tokens_mean=90.0
    )
    made = bundle([*engine_points(SHAPES), near])
    curve = curve_of(made, tokens=TokenLengths(900.0, 90.0))
    assert has_flag(curve, "transferred: from calls of 1000 input")


def test_other_engine_arguments_are_no_measurement() -> None:
    """Profiled with one argument, run with another: transferred, in words and in parts."""
    evidence = next(evidence_for("org/model", "h100_sxm", [bundle(engine_points(SHAPES))]))
    curve = with_engine_args(curve_of(bundle(engine_points(SHAPES))), evidence, {"dtype": "fp8"})
    assert has_flag(curve, "transferred: engine_args dtype")
    assert curve.rests_on(1.0).measured_pct == 0.0


def test_parts_of_a_statement_are_those_of_a_queue_in_closed_form() -> None:
    """Two points, at one call and at two, of a server that is flat from two on: M/M/2.

    Half loaded, the calls that end with at most two in flight are those of the closed form.
    """
    curve = curve_of(bundle([point(1, 1.0), point(2, 2.0)]))
    utilisation = 0.5
    # Weights of 0, 1, 2, ... in M/M/2 at utilisation r: 1, 2r, 2r^2, 2r^3, ...
    weights = [2.0 * utilisation**k for k in range(1, 60)]
    ending = [w * min(k, 2) for k, w in enumerate(weights, start=1)]
    expected = 100.0 * sum(ending[:2]) / sum(ending)
    assert curve.rests_on(1.0).measured_pct == pytest.approx(expected)
