"""The steady state in a series of batch means: where warm-up ends, and intervals that hold.

Latencies of one simulation depend on each other, so the runs in order of arrival are cut into small
batches of equal size. Warm-up ends where the series of their means has crossed its own mean three
times (Fishman, 1973): rules that minimise an error estimate (MSER) drop busy spells and were biased
by 1 to 4% on M/M/1 at 90% load, this one is not. What is left is cut into ``NUM_LARGE`` large
batches, whose means are nearly independent: their lag-1 correlation widens the interval as for an
autoregressive series, their skewness moves it (Johnson, 1978, as in Skart: Tafazzoli et al., 2011),
Student's t gives the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scepsy_hpc.metrics import Floats

NUM_LARGE = 16
"""Large batches of an interval: few enough to be long, enough for their spread to be known."""

FEWEST_LARGE = 5
_CROSSINGS = 3
_MOST_CORRELATION = 0.9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its 95% interval (None: too few batches), and the lag-1 correlation of batches."""

    mean: float
    interval: tuple[float, float] | None
    correlation: float = 0.0

    @property
    def half_width(self) -> float:
        """The larger distance from the mean to an end, as a part of the mean."""
        if self.interval is None or not self.mean > 0.0:
            return math.inf
        return max(self.mean - self.interval[0], self.interval[1] - self.mean) / self.mean


def warm_up_batches(means: Floats) -> int:
    """Batches to drop from the front; half of them where the series does not settle."""
    above = means >= means.mean()
    crossings = np.flatnonzero(above[1:] != above[:-1])
    half = len(means) // 2
    if np.ptp(means) <= 1e-9 * abs(float(means.mean())):
        return 0  # all alike: crossings would be rounding
    if len(crossings) < _CROSSINGS:
        return half
    return min(int(crossings[_CROSSINGS - 1]) + 1, half)


def estimate(sums: Floats, counts: Floats) -> Estimate:
    """Mean of what small batches hold in all, from their sums and counts; warm-up dropped before.

    Small batches at the front that make no whole large batch are left to the mean alone.
    """
    total = float(counts.sum())
    if total <= 0:
        return Estimate(math.nan, None)
    mean = float(sums.sum()) / total
    number = min(NUM_LARGE, len(sums))
    if number < FEWEST_LARGE:
        return Estimate(mean, None)
    size = len(sums) // number
    used = slice(len(sums) - size * number, None)
    of_sums = sums[used].reshape(number, size).sum(axis=1)
    of_counts = counts[used].reshape(number, size).sum(axis=1)
    if np.any(of_counts <= 0):
        return Estimate(mean, None)
    return _of_large(mean, of_sums / of_counts)


def replicated(values: Floats) -> Estimate:
    """Mean of independent replications; no interval below two."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, None)
    half = student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, (mean - half, mean + half))


def sectioned(whole: float, sections: Floats) -> tuple[float, float] | None:
    """95% interval of a figure from its values in sections of equal length; None below two."""
    number = len(sections)
    if number < 2 or not np.all(np.isfinite(sections)):
        return None
    error = math.sqrt(float(((sections - whole) ** 2).sum()) / (number - 1) / number)
    half = student_t(number - 1) * error
    return whole - half, whole + half


def _of_large(mean: float, means: Floats) -> Estimate:
    number = len(means)
    off = means - means.mean()
    squares = float(off @ off)
    if squares <= (1e-12 * abs(mean)) ** 2 * number:
        return Estimate(mean, (mean, mean))
    variance = squares / (number - 1)
    # The sample's lag-1 correlation is 1 / number too low on average where there is none.
    correlation = float(off[:-1] @ off[1:]) / squares + 1.0 / number
    held = min(max(correlation, 0.0), _MOST_CORRELATION)
    error = math.sqrt(variance / number * (1.0 + held) / (1.0 - held))
    skewness = float((off**3).sum()) * number / ((number - 1) * (number - 2)) / variance**1.5
    lean, t = skewness / (6.0 * math.sqrt(number)), student_t(number - 1)
    ends = (mean - _leant(t, lean) * error, mean - _leant(-t, lean) * error)
    return Estimate(mean, ends, correlation)


def _leant(t: float, lean: float) -> float:
    """Student's t moved by skewness."""
    if abs(lean) < 1e-6:
        return t
    return float(np.cbrt(1.0 + 6.0 * lean * (t - lean)) - 1.0) / (2.0 * lean)


@lru_cache(maxsize=64)
def student_t(freedom: int) -> float:
    """97.5% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
