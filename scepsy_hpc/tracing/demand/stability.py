"""Is a mean over so few runs to be trusted, and how many runs would be enough?"""

from __future__ import annotations

import math

import numpy as np

from scepsy_hpc.metrics import Floats

RELATIVE_HALF_WIDTH = 0.1
NUM_RESAMPLES = 500
_SEED = 0


def runs_needed(shares: Floats) -> int | None:
    """Runs after which the 95% interval of the mean share is within 10% of it to each side.

    The interval comes from a bootstrap over the runs at hand (fixed seed); its width shrinks with
    the square root of their number. None with fewer than three runs, or where the mean is zero.
    """
    num_runs = len(shares)
    if num_runs < 3 or shares.mean() <= 0:
        return None
    random = np.random.default_rng(_SEED)
    means = [shares[random.integers(num_runs, size=num_runs)].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    relative = float(high - low) / 2 / float(shares.mean())
    # Resampling n runs underrates the variance by (n - 1) / n.
    enough = num_runs**2 / (num_runs - 1) * (relative / RELATIVE_HALF_WIDTH) ** 2
    return max(2, math.ceil(enough - 1e-9))
