"""What a curve answers: latency and flags at a load, the distribution of a call."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planning_cases import SHAPES, bundle, curve_of, engine_points, open_point, point

from scepsy_hpc.planning.curves.bursts import Bursts


def test_below_the_first_concurrency() -> None:
    """Below the first measured concurrency latency is flat, and says so at such a load only."""
    curve = curve_of(bundle([point(8, 4.0), point(32, 8.0)]))
    assert curve.latency_s(0.1) == pytest.approx(2.0, rel=1e-3)
    assert any(f.startswith("below_first") for f in curve.flags_at(0.1))
    assert not any(f.startswith("below_first") for f in curve.flags_at(6.0))


def test_open_points_are_used_under_single_arrivals() -> None:
    """Open points give the latency at their rates; a saturated one only raises the capacity."""
    points = [
        open_point(0.5, 0.5, 1.5),
        open_point(1.0, 1.0, 2.0),
        open_point(3.0, 2.0, 60.0, saturated=True),
    ]
    curve = curve_of(bundle(points))
    assert curve.latency_s(0.75) == pytest.approx(1.75)
    assert curve.latency_s(0.01) == pytest.approx(1.5)
    assert curve.capacity_rps == 2.0
    assert curve.latency_s(1.5) == pytest.approx(4.0)
    assert any(f.startswith("extrapolated") for f in curve.flags_at(1.5))
    assert math.isinf(curve.latency_s(2.0))
    assert curve.latency_s(0.75, bursts=Bursts(4.0)) > curve.latency_s(0.75)


def test_call_times_have_the_mean_latency() -> None:
    """The distribution of a call at a load averages to its latency, and TTFT is inside it."""
    curve = curve_of(bundle(engine_points(SHAPES)))
    for bursts in (Bursts(), Bursts(4.0)):
        for replicas in (1, 5):
            load_rps = 0.5 * replicas * curve.capacity_rps
            weights, latency_s, ttft_s = curve.call_times(load_rps, replicas, bursts)
            mean_s = float(weights @ latency_s)
            assert mean_s == pytest.approx(curve.latency_s(load_rps, replicas, bursts), rel=1e-9)
            assert np.all(ttft_s <= latency_s)
            assert np.all(ttft_s > 0)
