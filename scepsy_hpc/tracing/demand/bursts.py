"""Fan-out: how many calls of one run go to one LLM together.

A burst is a run's calls to one LLM, in order of their start, from a first call up to the last that
starts no later than half the LLM's median call duration after that first one, and before any call
of the burst has ended. A call that waits for the answer of another is therefore never in its burst;
half a duration is more than a client needs to send its calls, and keeps out most of those that only
happen to overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.tracing.demand.call_table import CallTable

WINDOW_OF_MEDIAN = 0.5


@dataclass(frozen=True, slots=True)
class Bursts:
    """Sizes of one LLM's bursts; ``size_mean`` is None without calls.

    ``size_mean``: calls per burst. ``size_of_a_call``: size of the burst that a call picked at
    random is in (mean of the squares over the mean), what a call sees of the others.
    """

    num_bursts: int
    size_mean: float | None
    size_of_a_call: float | None
    size_max: int
    sizes: dict[int, int]


def bursts_of(calls: CallTable, mine: NDArray[np.bool_]) -> Bursts:
    """Bursts among the calls that ``mine`` [C] picks: those of one LLM."""
    if not mine.any():
        return Bursts(0, None, None, 0, {})
    run, start_s, duration_s = calls.run[mine], calls.start_s[mine], calls.duration_s[mine]
    window_s = WINDOW_OF_MEDIAN * float(np.median(duration_s))
    order = np.lexsort((start_s, run))
    sizes = np.array(
        _sizes(
            run[order].tolist(),
            start_s[order].tolist(),
            (start_s + duration_s)[order].tolist(),
            window_s,
        )
    )
    values, counts = np.unique(sizes, return_counts=True)
    return Bursts(
        num_bursts=len(sizes),
        size_mean=float(sizes.mean()),
        size_of_a_call=float((sizes**2).sum() / sizes.sum()),
        size_max=int(sizes.max()),
        sizes={int(v): int(c) for v, c in zip(values, counts, strict=True)},
    )


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
