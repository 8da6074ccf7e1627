"""Bootstrap intervals of means and percentiles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scepsy_hpc.planning.simulation.percentiles import bootstrap_intervals, run_intervals


def test_bootstrap_intervals() -> None:
    """Intervals hold the figures, tighten with more runs, and are absent for a single run."""
    chance = np.random.default_rng(3)
    few, many = chance.exponential(size=30), chance.exponential(size=3000)
    widths = []
    for values in (few, many):
        found = bootstrap_intervals(values, seed=0)
        low, high = found["latency_mean_s"]
        assert low < values.mean() < high
        low95, high95 = found["latency_p95_s"]
        assert low95 <= np.percentile(values, 95) <= high95
        widths.append(high - low)
    # 95% of a normal: 2 x 1.96 standard errors of the mean.
    assert widths[1] == pytest.approx(2 * 1.96 * many.std() / math.sqrt(3000), rel=0.15)
    assert widths[0] > 3 * widths[1]
    assert bootstrap_intervals(few[:1], seed=0) == {}


def test_intervals_are_over_runs() -> None:
    """More draws of the same runs are no new evidence: the interval stays as wide."""
    runs = np.random.default_rng(1).normal(10.0, 2.0, size=(60, 1))
    few, many = run_intervals(runs, 0), run_intervals(np.repeat(runs, 100, axis=1), 0)
    for key in ("latency_mean_s", "latency_p50_s", "latency_p95_s"):
        assert few[key] == pytest.approx(many[key], rel=0.02)
    low, high = few["latency_mean_s"]
    assert low < runs.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * runs.std() / math.sqrt(60), rel=0.2)
    assert run_intervals(runs[:1], 0) == {}
