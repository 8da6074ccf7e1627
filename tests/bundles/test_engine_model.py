"""The engine model: exact where the engine is exact, honest about its error elsewhere."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from scepsy_hpc.bundles.engine_model import BadFitError, fit_bundle, fit_engine_model
from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.bundles.mps_slowdown import MEASURED_SLOWDOWN, slowdown
from scepsy_hpc.bundles.step_time import EngineModel, kv_tokens_that_fit
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.points import Point

TRUE = EngineModel(step_s=0.01, prefill_token_s=2e-5, sequence_s=1e-4, context_token_s=1e-8)
SHAPES = ((512, 64), (2048, 64), (512, 256), (4096, 512))


def _points(model: EngineModel, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Point]:
    return [_point(model, k, i, o) for i, o in shapes for k in (1, 4, 16, 64)]


def _point(model: EngineModel, concurrency: float, inputs: float, outputs: float) -> Point:
    steady = model.closed_loop(concurrency, inputs, outputs)
    return Point(
        tp_degree=1,
        gpu_share_pct=100,
        load="closed",
        concurrency=concurrency,
        throughput_rps=steady.throughput_rps,
        latency_mean_s=steady.latency_s,
        input_tokens_mean=inputs,
        output_tokens_mean=outputs,
        ttft_mean_s=steady.ttft_s,
    )


def test_fit_finds_the_factors_that_made_the_points() -> None:
    """Points of a known engine give back its step time, and no error on held-out points."""
    found = fit_engine_model(_points(TRUE))
    assert found.step_s == pytest.approx(TRUE.step_s, rel=1e-3)
    assert found.prefill_token_s == pytest.approx(TRUE.prefill_token_s, rel=1e-3)
    assert found.sequence_s == pytest.approx(TRUE.sequence_s, rel=1e-2)
    assert found.context_token_s == pytest.approx(TRUE.context_token_s, rel=1e-2)
    assert found.quality is not None
    assert found.quality.held_out_shape == pytest.approx(0.0, abs=1e-3)


def test_a_few_odd_points_do_not_bend_the_rest() -> None:
    """With two of sixteen points off by a factor of two the others are still met."""
    points = _points(TRUE)
    for i in (3, 9):
        doubled = points[i].latency_mean_s * 2
        points[i] = replace(
            points[i], latency_mean_s=doubled, throughput_rps=(points[i].concurrency or 1) / doubled
        )
    found = fit_engine_model(points)
    assert found.closed_loop(16, 512, 256).latency_s == pytest.approx(
        TRUE.closed_loop(16, 512, 256).latency_s, rel=0.02
    )


def test_alone_a_call_lasts_one_prefill_and_its_decodes() -> None:
    """At concurrency 1 latency is the sum of its steps, written out by hand."""
    steady = TRUE.closed_loop(1, 1000, 11)
    prefill_step_s = 0.01 + 2e-5 * 1000
    decode_steps_s = 10 * (0.01 + 1e-4 + 1e-8 * (1000 + 5.5))
    assert steady.latency_s == pytest.approx(prefill_step_s + decode_steps_s)
    assert steady.throughput_rps * steady.latency_s == pytest.approx(1.0)


def test_prefill_only_calls_share_steps_up_to_the_token_budget() -> None:
    """Output 1: calls join one step while the budget lasts; beyond it throughput stays flat."""
    model = replace(TRUE, max_num_batched_tokens=2000)
    two, four, eight = (model.closed_loop(k, 1000, 1).throughput_rps for k in (2, 4, 8))
    assert two == pytest.approx(2 / (0.01 + 2000 * 2e-5))
    assert four == pytest.approx(two)
    assert eight == pytest.approx(two)
    assert model.closed_loop(4, 1000, 1).tpot_s is None


def test_calls_beyond_the_kv_cache_wait() -> None:
    """A cache for ten calls: throughput at 20 is that at 10, latency doubles, TTFT has the wait."""
    model = replace(TRUE, kv_tokens=10 * 600.0)
    ten, twenty = model.closed_loop(10, 500, 100), model.closed_loop(20, 500, 100)
    assert twenty.num_running == 10
    assert twenty.throughput_rps == pytest.approx(ten.throughput_rps)
    assert twenty.latency_s == pytest.approx(2 * ten.latency_s)
    assert twenty.ttft_s == pytest.approx(ten.ttft_s + ten.latency_s)


def test_a_call_that_cannot_fit_is_refused() -> None:
    """A single call larger than the cache is an input error that says both sizes."""
    with pytest.raises(InputError, match="600 tokens does not fit a KV cache of 500"):
        replace(TRUE, kv_tokens=500.0).closed_loop(1, 500, 100)


def test_cached_prefix_needs_no_prefill() -> None:
    """Tokens found in the prefix cache take off their prefill time and nothing else."""
    plain, cached = TRUE.closed_loop(1, 1000, 50), TRUE.closed_loop(1, 1000, 50, 600)
    assert plain.latency_s - cached.latency_s == pytest.approx(600 * TRUE.prefill_token_s)


def test_too_few_points_are_refused() -> None:
    """Three points carry no model of four factors."""
    with pytest.raises(BadFitError, match="3 points are too few"):
        fit_engine_model(_points(TRUE)[:3])


def test_a_bad_fit_is_refused_with_its_figure() -> None:
    """Points that follow no engine are refused, and the message says by how much they miss."""
    shuffled = _points(TRUE)
    spoiled = [
        replace(p, latency_mean_s=p.latency_mean_s * f, throughput_rps=p.throughput_rps / f)
        for p, f in zip(shuffled, [1, 3, 0.3, 1.7] * 4, strict=True)
    ]
    with pytest.raises(BadFitError, match=r"misses the latency of .* by \d+\.\d%"):
        fit_engine_model(spoiled)
    quality = fit_engine_model(spoiled, refuse=False).quality
    assert quality is not None
    assert (quality.held_out_point or 0) > 0.15


def test_one_shape_tells_prefill_from_decode_by_ttft() -> None:
    """With one token shape the TTFT of a lone call still separates prefill from decoding."""
    points = _points(TRUE, ((1000, 50),))
    alone = replace(points[0], ttft_mean_s=TRUE.step_time_s(1000, 0, 0))
    found = fit_engine_model([alone, *points[1:]])
    expected = TRUE.closed_loop(8, 250, 50).latency_s
    assert found.closed_loop(8, 250, 50).latency_s == pytest.approx(expected, rel=0.05)


def test_share_slowdown_is_the_published_table_between_and_below() -> None:
    """Measured shares are met exactly, 55% is between, 15% is twice the slow-down of 30%."""
    for share, factors in MEASURED_SLOWDOWN.items():
        assert slowdown(share) == pytest.approx(factors)
    assert slowdown(55) == pytest.approx(((1.7 + 1.45) / 2, (1.15 + 1.09) / 2))
    assert slowdown(15) == pytest.approx((5.2, 2.95))
    with pytest.raises(ValueError, match=r"gpu_share_pct \(0\)"):
        slowdown(0)


def test_a_derived_share_slows_prefill_more_than_decode() -> None:
    """Half a GPU by the table: prefill x1.7, decode x1.15, and the model says it is derived."""
    half = TRUE.at_share(50)
    assert half.derived
    assert half.prefill_token_s == pytest.approx(1.7 * TRUE.prefill_token_s)
    assert half.step_s == pytest.approx(1.15 * TRUE.step_s)
    assert not TRUE.at_share(100).derived


def test_kv_tokens_leave_room_for_weights_and_reserve() -> None:
    """Half of two 82 GiB GPUs, less the reserve and 40 GiB of weights, holds 40 GiB of cache."""
    assert kv_tokens_that_fit(82, 2, 50, 40, 2**20) == pytest.approx(40 * 1024)


def _shipped(model: str, engine_version: str, precision: str) -> Bundle:
    return next(
        b
        for b in find_bundles(shipped_path("profiles") / "h100_sxm")
        if (b.header.model, b.header.engine_version, b.header.precision)
        == (model, engine_version, precision)
    )


def test_fit_of_a_bundle_takes_memory_and_share_from_it() -> None:
    """A share without points is derived from the whole GPU, with the cache that share leaves."""
    bundle = _shipped("Qwen/Qwen3-8B", "0.24.0", "bf16")
    whole, half = fit_bundle(bundle, 1), fit_bundle(bundle, 1, 50)
    assert not whole.derived
    assert half.derived
    assert half.kv_tokens == pytest.approx(
        kv_tokens_that_fit(80, 1, 50, bundle.header.weights_gib or 0, 147456)
    )
    assert (half.kv_tokens or 0) < (whole.kv_tokens or 0) / 2


def test_weights_that_do_not_fit_are_refused() -> None:
    """A quarter of a GPU cannot hold 32B parameters: the line names both sizes."""
    bundle = _shipped("Qwen/Qwen3-32B", "0.24.0", "bf16")
    with pytest.raises(InputError, match=r"weights_gib 61.02 does not fit 1 x 25% of 80 GiB"):
        fit_bundle(bundle, 1, 25)


@pytest.mark.parametrize("how", ["measured", "modelled"])
def test_held_out_error_of_the_shipped_bundles(how: str) -> None:
    """Held-out concurrency within 5% and held-out token shape within 15%, median over fits."""
    points, shapes = [], []
    for bundle in find_bundles(shipped_path("profiles") / "h100_sxm"):
        for tp_degree in sorted({p.tp_degree for p in bundle.points}):
            mine = [p for p in bundle.points if p.tp_degree == tp_degree]
            if bundle.header.how != how or len(mine) < 8:
                continue
            quality = fit_engine_model(mine, refuse=False).quality
            assert quality is not None
            points.append(quality.held_out_point)
            shapes.append(quality.held_out_shape)
    assert len(points) >= 20
    assert median(p for p in points if p is not None) < 0.05
    assert median(s for s in shapes if s is not None) < 0.15
