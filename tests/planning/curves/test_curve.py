"""What a curve answers: latency and flags at a load, the distribution of a call."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planning_cases import bundle, curve_of, open_point, point

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


def test_what_a_call_finds() -> None:
    """Poisson arrivals see time averages: M/M/1 at 0.6 holds 1.5 calls, none in 40% of the time."""
    curve = curve_of(bundle([point(1, 1.0)]))
    weights, calls = curve.seen_by_a_call(0.6)
    assert weights @ calls == pytest.approx(0.6 / 0.4, rel=1e-3)
    assert weights[calls == 0.0].sum() == pytest.approx(0.4, rel=1e-6)
    assert curve.slowness_s(np.array([1.0, 2.0])) == pytest.approx([1.0, 2.0])
    with pytest.raises(ValueError, match="must be below the limit"):
        curve.seen_by_a_call(4.0, 4)
