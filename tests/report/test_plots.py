"""Plots: what they draw, and that they stay small."""

from __future__ import annotations

import numpy as np
import pytest

from scepsy_hpc.formats.spans import Span
from scepsy_hpc.report import plots


def test_calls_in_flight_are_counted_by_time():
    """One call from 0 to 1 s and one from 0.5 to 2 s, in three bins."""
    level = plots._mean_level(
        np.array([0.0, 0.5]), np.array([1.0, 2.0]), np.array([0.0, 0.5, 1.0, 3.0])
    )
    assert level == pytest.approx([1.0, 2.0, 0.5])


def test_the_latency_line_meets_every_run():
    """Of few runs each is a step; of many the last is always there, at 1."""
    times, shares = plots._ended_within([float(n) for n in range(11, 1, -1)])
    assert times == pytest.approx(np.arange(2.0, 12.0))
    assert shares == pytest.approx(np.arange(1, 11) / 10)
    times, shares = plots._ended_within(list(range(5000)))
    assert (times[0], times[-1], shares[-1]) == (0.0, 4999.0, 1.0)
    assert len(times) == len(shares) <= plots.MOST_POINTS


def test_plots_of_a_long_batch_stay_small():
    """Ten thousand runs draw no more points than the eye sees."""
    rng = np.random.default_rng(1)
    starts = np.sort(rng.uniform(0, 1e4, 10_000))
    spans = [
        Span(
            run_id=f"r{i}",
            span_id=f"s{i}",
            kind="llm",
            llm="writer",
            start_s=float(start),
            end_s=float(start) + 5.0,
            status="ok",
        )
        for i, start in enumerate(starts)
    ]
    assert len(plots.calls_in_flight(spans)) < 100_000
    drawn = plots.latency_distribution({"rag": rng.exponential(5, 10_000)}, {"mean": 5.0})
    assert len(drawn) < 100_000
    assert "rag (10000 runs)" in drawn
