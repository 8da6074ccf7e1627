"""Warm-up and intervals of dependent series, against series whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scepsy_hpc.planning.simulation.steady import (
    estimate,
    replicated,
    sectioned,
    student_t,
    warm_up_batches,
)


def autoregressive(number: int, part: float, chance: np.random.Generator) -> np.ndarray:
    """A stationary series of mean 10 whose neighbours correlate by ``part``."""
    noise = chance.exponential(size=number) - 1.0
    found = np.empty(number)
    last = chance.normal() / math.sqrt(1.0 - part * part)
    for i in range(number):
        last = part * last + noise[i]
        found[i] = 10.0 + last
    return found


@pytest.mark.parametrize("part", [0.0, 0.9])
def test_intervals_hold_the_truth(part: float) -> None:
    """Of 200 intervals over correlated, skewed values 95% hold the mean, give or take 4%."""
    held, widths = 0, []
    for seed in range(200):
        chance = np.random.default_rng([seed, 5])
        values = autoregressive(2048, part, chance).reshape(256, 8)
        found = estimate(values.sum(axis=1), np.full(256, 8.0))
        assert found.interval is not None
        held += found.interval[0] <= 10.0 <= found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
    assert 182 <= held <= 198
    # The variance of the mean of such a series is 1 / (1 - part)^2 / number.
    true_width = 2 * student_t(15) / (1.0 - part) / math.sqrt(2048)
    assert np.mean(widths) == pytest.approx(true_width, rel=0.2)


def test_warm_up_is_what_rises_before_it_settles() -> None:
    """A ramp over 30 of 300 batches goes, and little more; a settled series keeps nearly all."""
    for seed in range(20):
        means = 10.0 + np.random.default_rng([seed, 6]).normal(size=300)
        assert warm_up_batches(means) < 30
        means[:30] -= np.linspace(10.0, 2.0, 30)
        assert 20 <= warm_up_batches(means) < 60


def test_a_series_that_never_settles_loses_half() -> None:
    """One that rises all the time crosses its mean once: there is no steady part."""
    assert warm_up_batches(np.linspace(1.0, 2.0, 100)) == 50
    assert warm_up_batches(np.full(100, 3.0)) == 0


def test_too_few_batches_have_no_interval() -> None:
    """Four batches say nothing of their spread; unequal ones weigh by their counts."""
    found = estimate(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert (found.mean, found.interval, found.half_width) == (2.5, None, math.inf)
    assert estimate(np.zeros(8), np.zeros(8)).interval is None
    alike = estimate(np.full(40, 6.0), np.full(40, 3.0))
    assert alike.interval == (2.0, 2.0)


def test_replications_by_hand() -> None:
    """Three values 1, 2, 3: half the width is t(2) / sqrt(3); one value has no interval."""
    found = replicated(np.array([1.0, 2.0, 3.0]))
    assert found.interval is not None
    assert found.interval[1] - found.mean == pytest.approx(4.302653 / math.sqrt(3.0))
    assert replicated(np.array([1.0])).interval is None
    assert sectioned(2.0, np.array([1.0, 2.0, 3.0])) == pytest.approx(found.interval)
    assert sectioned(2.0, np.array([2.0])) is None
