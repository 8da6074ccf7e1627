"""What a curve answers: latency and flags at a load, the distribution of a call."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planning_cases import SHAPES, bundle, curve_of, engine_points, open_point, point


def test_below_the_first_concurrency() -> None:
    """Below the first measured concurrency latency is flat, and says so at such a load only."""
    curve = curve_of(bundle([point(8, 4.0), point(32, 8.0)]))
    assert curve.latency_s(0.1) == pytest.approx(2.0, rel=1e-3)
    assert any(f.startswith("below_first") for f in curve.flags_at(0.1))
    assert not any(f.startswith("below_first") for f in curve.flags_at(6.0))


def test_open_points_give_back_their_latency_under_single_arrivals() -> None:
    """An open point stands where its calls find the engine: Poisson arrivals then wait as long.

    A saturated one only raises the capacity. The true engine is a queue with one server beside a
    constant delay, whose latency at a rate is known in closed form.
    """
    delay_s, work_s = 1.0, 0.1
    rates = (0.5, 2.0, 5.0, 7.0)
    # A birth-death server of X(k) = k / (delay + work k), summed by hand.
    points = [open_point(rate, rate, _poisson_s(rate, delay_s, work_s)) for rate in rates]
    full = open_point(30.0, 9.9, 60.0, saturated=True)
    curve = curve_of(bundle([*points, full]))
    for rate in rates:
        found_s = curve.latency_s(rate)
        assert found_s == pytest.approx(_poisson_s(rate, delay_s, work_s), rel=0.03)
    assert curve.capacity_rps == pytest.approx(9.9)
    assert math.isinf(curve.latency_s(9.9))
    assert curve.latency_s(2.0, burst=4) > curve.latency_s(2.0)


def _poisson_s(rate_rps: float, delay_s: float, work_s: float) -> float:
    weights, k, total, mean = 1.0, 0, 1.0, 0.0
    while k < 2000:
        k += 1
        weights *= rate_rps * (delay_s + work_s * k) / k
        total += weights
        mean += k * weights
    return mean / total / rate_rps


def test_call_times_have_the_mean_latency() -> None:
    """The distribution of a call at a load averages to its latency, and TTFT is inside it."""
    curve = curve_of(bundle(engine_points(SHAPES)))
    for burst in (1, 4):
        weights, latency_s, ttft_s = curve.call_times(0.5 * curve.capacity_rps, burst)
        mean_s = float(weights @ latency_s)
        assert mean_s == pytest.approx(curve.latency_s(0.5 * curve.capacity_rps, burst), rel=1e-3)
        assert np.all(ttft_s <= latency_s)
        assert np.all(ttft_s > 0)
