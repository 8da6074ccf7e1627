"""Is a mean over so few runs to be trusted, and how many runs would be enough?"""

from __future__ import annotations

import math

import numpy as np

from scepsy_hpc.metrics import Floats

RELATIVE_HALF_WIDTH = 0.1
NUM_RESAMPLES = 500
_SEED = 0


def runs_needed(values: Floats) -> int | None:
    """Runs after which the 95% interval of the mean is within 10% of it to each side.

    The interval's width shrinks with the square root of their number. None where it is unknown.
    """
    half = relative_half_width(values)
    if half is None:
        return None
    return max(2, math.ceil(len(values) * (half / RELATIVE_HALF_WIDTH) ** 2 - 1e-9))


def relative_half_width(values: Floats) -> float | None:
    """Half-width of the 95% interval of the mean over runs, relative to the mean.

    From a bootstrap over the runs at hand (fixed seed). None with fewer than three runs, or where
    the mean is zero.
    """
    num_runs = len(values)
    if num_runs < 3 or values.mean() <= 0:
        return None
    random = np.random.default_rng(_SEED)
    means = [values[random.integers(num_runs, size=num_runs)].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    relative = float(high - low) / 2 / float(values.mean())
    # Resampling n runs underrates the variance by (n - 1) / n.
    return relative * math.sqrt(num_runs / (num_runs - 1))


def length_text(lengths_s: Floats) -> str | None:
    """How well so many runs tell the mean length of a run; None where nobody knows."""
    half, needed = relative_half_width(lengths_s), runs_needed(lengths_s)
    if half is None or needed is None:
        return None
    text = f"{len(lengths_s)} traced runs tell the mean length of a run within {100 * half:.0f}%"
    more = f"; about {needed} would within 10%" if needed > len(lengths_s) else ""
    return f"{text} (95%){more}"
