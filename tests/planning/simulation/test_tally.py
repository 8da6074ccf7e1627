"""What a tally keeps: sums, percentiles, and no more room the longer it goes on."""

from __future__ import annotations

import numpy as np
import pytest

from scepsy_hpc.planning.simulation.tally import (
    MOST_SMALL,
    NUM_SECTIONS,
    Seen,
    Series,
    Tally,
    widened,
)


def test_percentiles_are_within_half_a_percent() -> None:
    """Over six decades of latencies, whatever the distribution."""
    chance = np.random.default_rng(1)
    for values in (chance.lognormal(0.0, 2.0, 50_000), chance.exponential(0.01, 50_000)):
        series = Series()
        for number, value in enumerate(values.tolist()):
            series.file(number, value)
        series.flush()
        whole = Seen.of(series)
        for part in (0.5, 0.95, 0.99):
            exact = float(np.quantile(values, part))
            assert whole.quantile_s(part) == pytest.approx(exact, rel=0.006)
            low, high = widened((whole.quantile_s(part),) * 2, whole.slack)
            assert low <= float(np.quantile(values, part, method="inverted_cdf")) <= high
        assert series.sums.sum() == pytest.approx(values.sum())
        assert (whole.least_s, whole.most_s) == (values.min(), values.max())
    assert np.isnan(Seen.of(Series()).quantile_s(0.5))


def test_percentiles_lie_within_what_was_seen() -> None:
    """Equal latencies have exact ones in every section, and none of what a bin leaves open."""
    series = Series()
    for number in range(5000):
        series.file(number, 7.0 if number < 3000 else 7.01)
    series.flush()
    first = Seen.of(series, slice(0, 1))
    assert (first.quantile_s(0.5), first.quantile_s(0.99), first.slack) == (7.0, 7.0, 0.0)
    whole = Seen.of(series)
    assert 7.0 <= whole.quantile_s(0.5) <= 7.01
    assert whole.slack == pytest.approx(0.01 / 7.0)
    filled = np.isfinite(series.least)
    assert np.array_equal(filled, np.isfinite(series.most))
    assert np.array_equal(filled, series.histogram.sum(axis=1) > 0)
    assert 0 < filled.sum() < NUM_SECTIONS


def test_batches_stay_in_order_as_they_are_put_together() -> None:
    """Values equal to their number: each batch's mean is that of its numbers, however many."""
    series = Series()
    for number in range(3000):
        series.file(number, float(number))
    series.flush()
    assert (series.size, len(series.sums)) == (8, MOST_SMALL)
    filled = 3000 // 8
    means = series.sums[:filled] / series.counts[:filled]
    assert means == pytest.approx(np.arange(filled) * 8 + 3.5)
    assert not series.counts[filled:].any()


def test_done_when_all_wanted_runs_have_ended() -> None:
    """A run that started early and ends late is waited for; later runs are not."""
    tally = Tally(1, 1, 2)
    first, second, third = (tally.start_run(0, 0, float(i), True) for i in range(3))
    tally.end_run(third, 0, 2.0, 3.0, True)
    tally.end_run(second, 0, 1.0, 4.0, True)
    assert not tally.is_done
    tally.end_run(first, 0, 0.0, 5.0, False)
    assert tally.is_done
    assert tally.num_in_flight == 0
    tally.want(3)
    assert tally.is_done
    tally.want(4)
    assert not tally.is_done
    assert (tally.all_runs.counts.sum(), tally.ended[0].counts.sum()) == (2, 3)
