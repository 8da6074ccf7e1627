"""Fan-out: how many calls of one run go to one LLM together.

A burst is a run's calls to one LLM, in order of their start, from a first call up to the last that
starts no later than half the LLM's median call duration after that first one, and before any call
of the burst has ended. A call that waits for the answer of another is therefore never in its burst;
half a duration is more than a client needs to send its calls, and keeps out most of those that only
happen to overlap.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.tracing.demand.call_table import CallTable

WINDOW_OF_MEDIAN = 0.5


def burst_sizes(calls: CallTable, mine: NDArray[np.bool_]) -> dict[int, int]:
    """Number of bursts of each size among the calls that ``mine`` [C] picks: those of one LLM."""
    if not mine.any():
        return {}
    run, start_s, duration_s = calls.run[mine], calls.start_s[mine], calls.duration_s[mine]
    window_s = WINDOW_OF_MEDIAN * float(np.median(duration_s))
    order = np.lexsort((start_s, run))
    sizes = _sizes(
        run[order].tolist(),
        start_s[order].tolist(),
        (start_s + duration_s)[order].tolist(),
        window_s,
    )
    values, counts = np.unique(sizes, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


def fan_out_of(sizes: Mapping[int, int]) -> float:
    """Size of the burst that a call picked at random is in, itself included; 1 without calls."""
    num_calls = sum(size * count for size, count in sizes.items())
    squares = sum(size * size * count for size, count in sizes.items())
    return squares / num_calls if num_calls else 1.0


def _sizes(run: list[int], start_s: list[float], end_s: list[float], window_s: float) -> list[int]:
    """Burst sizes of calls sorted by run and start; a loop, since each depends on the last."""
    sizes: list[int] = []
    burst_run, limit_s = -1, 0.0
    for r, start, end in zip(run, start_s, end_s, strict=True):
        if r == burst_run and start <= limit_s:
            sizes[-1] += 1
            limit_s = min(limit_s, end)
        else:
            sizes.append(1)
            burst_run, limit_s = r, min(start + window_s, end)
    return sizes
