"""Points between and below those that were measured, by the fitted engine model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from planning_cases import ENGINE, SHAPES, bundle, curve_of, engine_points, has_flag, point


def test_a_fitted_model_covers_low_concurrency() -> None:
    """Where a model passed its hold-out, latency below the first point follows it, flagged."""
    points = engine_points(SHAPES, concurrency=(8, 16, 32, 64))
    curve = curve_of(bundle(points))
    alone_s = ENGINE.closed_loop(1.0, 1000.0, 100.0).latency_s
    assert curve.latency_s(0.01) == pytest.approx(alone_s, rel=0.02)
    for p in points[:4]:
        assert float(curve.server.rate_rps(p.concurrency or 0.0)) == p.throughput_rps
    assert curve.held_at == (8.0, 16.0, 32.0, 64.0)
    assert has_flag(curve, "below_first_concurrency: below 8")
    # A first point far up leaves no gap either.
    far = curve_of(bundle(engine_points(SHAPES, concurrency=(32, 64, 128))))
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
    curve = curve_of(bundle(points))
    for k in (1.0, 2.0, 8.0, 30.0, 64.0):
        expected = 0.9 * ENGINE.closed_loop(k, 1000.0, 100.0).throughput_rps
        assert float(curve.server.rate_rps(k)) == pytest.approx(expected, rel=0.01)
    line = np.interp(8.0, [4.0, 16.0], [curve.server.rate_rps(k) for k in (4.0, 16.0)])
    assert float(curve.server.rate_rps(8.0)) > 1.05 * line
    assert curve.held_at == (1.0, 4.0, 16.0, 64.0)
    assert has_flag(curve, "between points: fitted engine model")


def test_gaps_too_short_to_matter_are_not_flagged() -> None:
    """Where the fitted model stays within 2% of straight lines nothing rests on it."""
    curve = curve_of(bundle(engine_points(SHAPES, concurrency=(1, 2, 3, 4))))
    assert curve.server.concurrency[:4] == (1.0, 2.0, 3.0, 4.0)
    assert not has_flag(curve, "between points")


def test_filled_points_are_no_new_capacity() -> None:
    """Between two points throughput stays between theirs, whatever the model's own shape is."""
    points = [
        *engine_points(SHAPES[1:]),
        *engine_points(SHAPES[:1], concurrency=(1, 4)),
        point(64, engine_points(SHAPES[:1], concurrency=(4,))[0].throughput_rps * 1.01),
    ]
    curve = curve_of(bundle(points))
    low, high = (float(curve.server.rate_rps(k)) for k in (4.0, 64.0))
    inside = [
        x
        for k, x in zip(curve.server.concurrency, curve.server.throughput_rps, strict=True)
        if 4.0 < k < 64.0
    ]
    assert len(inside) > 5
    assert all(low <= x <= high for x in inside)
    # Nor do calls past a measured plateau do much more, though the model would have them.
    assert curve.capacity_rps == pytest.approx(high, rel=0.1)
    assert not has_flag(curve, "capacity_lower_bound")


def test_unknown_first_tokens_stay_unknown_between_points() -> None:
    """Where no point knows its TTFT the curve has none, not even past its points."""
    points = [replace(p, ttft_mean_s=None) for p in engine_points(SHAPES)]
    assert all(math.isnan(ttft_s) for ttft_s in curve_of(bundle(points)).ttft_s)


def test_without_a_fit_points_are_joined_by_lines() -> None:
    """Too few points for a fit: throughput is linear in the calls in flight, as it stands."""
    curve = curve_of(bundle([point(1, 1.0), point(16, 4.0), point(64, 6.0)]))
    assert curve.server.concurrency == (1.0, 16.0, 64.0)
    assert float(curve.server.rate_rps(40.0)) == pytest.approx(5.0)
