"""What a curve answers: latency and flags at a load, the distribution of a call."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from planning_cases import ENGINE, SHAPES, bundle, curve_of, engine_points, open_point, point

from scepsy_hpc.formats.points import Point
from scepsy_hpc.planning.curves.bursts import Bursts


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
    assert curve.latency_s(2.0, bursts=Bursts(4.0)) > curve.latency_s(2.0)


def _poisson_s(rate_rps: float, delay_s: float, work_s: float) -> float:
    weights, k, total, mean = 1.0, 0, 1.0, 0.0
    while k < 2000:
        k += 1
        weights *= rate_rps * (delay_s + work_s * k) / k
        total += weights
        mean += k * weights
    return mean / total / rate_rps


@pytest.mark.parametrize("left_out", range(5))
def test_a_held_out_open_point_is_foretold(left_out: int) -> None:
    """Open points of two shapes, one rate left out: its latency within 5%, no other evidence."""
    points = []
    for inputs, outputs in ((1000.0, 100.0), (3000.0, 50.0)):
        for load in (0.1, 0.3, 0.5, 0.65, 0.8):
            points.append(_open_engine_point(inputs, outputs, load))
    held = points.pop(left_out)
    curve = curve_of(bundle(points))
    found_s = curve.latency_s(held.arrival_rate_rps or 0.0)
    assert found_s == pytest.approx(held.latency_mean_s, rel=0.05)


def _open_engine_point(inputs: float, outputs: float, load: float) -> Point:
    """Poisson arrivals at a part of what the engine does at 256 calls in flight, exactly."""
    times_s = [ENGINE.closed_loop(k, inputs, outputs).latency_s for k in range(1, 257)]
    rate = load * 256 / times_s[-1]
    weight, total, mean = 1.0, 1.0, 0.0
    for k in range(1, 20_000):
        weight *= rate * times_s[min(k, 256) - 1] / min(k, 256)
        total += weight
        mean += k * weight
    made = open_point(rate, rate, mean / total / rate)
    return replace(made, input_tokens_mean=inputs, output_tokens_mean=outputs)


def test_a_wide_interval_is_said() -> None:
    """Modelled points may be off by more than half: a flag; measured ones between points not."""
    points = engine_points(SHAPES)
    assert any(
        f.startswith("wide_interval")
        for f in curve_of(bundle(points, how="modelled")).flags_at(3.0)
    )
    assert not any(f.startswith("wide_interval") for f in curve_of(bundle(points)).flags_at(3.0))
