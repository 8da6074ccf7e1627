"""Fan-out: how many calls of one run go to one LLM together.

A burst is a run's calls to one LLM, in order of their start, from a first call up to the last that
starts no later than half the LLM's median call duration after that first one, and before any call
of the burst has ended. A call that waits for the answer of another is therefore never in its burst;
half a duration is more than a client needs to send its calls, and keeps out most of those that only
happen to overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.metrics import Ints
from scepsy_hpc.tracing.demand.call_table import CallTable

WINDOW_OF_MEDIAN = 0.5


OUTPUT_TOKEN_WORK = 28.0
"""Work of an output token in input tokens where no TTFT says: the median of shipped profiles."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How the work of calls differs, in parts of its mean; None where too few are known.

    ``cv``: standard deviation of all calls. Of two calls of one burst ``pair_cv`` is the root of
    half their mean squared difference, ``pair_gap`` half their mean absolute difference.
    """

    cv: float | None
    pair_cv: float | None
    pair_gap: float | None


def burst_sizes(calls: CallTable, mine: NDArray[np.bool_]) -> dict[int, int]:
    """Number of bursts of each size among the calls that ``mine`` [C] picks: those of one LLM."""
    values, counts = np.unique(np.bincount(_bursts(calls, mine)[1]), return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


def _bursts(calls: CallTable, mine: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Those calls by run and start, and the number of the burst that each is in."""
    which = np.flatnonzero(mine)
    if not len(which):
        return which, which
    run, start_s, duration_s = calls.run[which], calls.start_s[which], calls.duration_s[which]
    window_s = WINDOW_OF_MEDIAN * float(np.median(duration_s))
    order = np.lexsort((start_s, run))
    sizes = _sizes(
        run[order].tolist(),
        start_s[order].tolist(),
        (start_s + duration_s)[order].tolist(),
        window_s,
    )
    return which[order], np.repeat(np.arange(len(sizes)), sizes)


def spread_of(calls: CallTable, mine: NDArray[np.bool_]) -> Spread:
    """How the work of those calls differs, by their tokens; calls without counts are left out."""
    which, burst = _bursts(calls, mine)
    prompt = calls.input_tokens[which] - np.nan_to_num(calls.cached_tokens[which])
    work = np.maximum(prompt, 1.0) / OUTPUT_TOKEN_WORK
    work = work + np.maximum(calls.output_tokens[which] - 1.0, 0.0)
    known = ~np.isnan(work)
    work, burst = work[known], burst[known]
    if len(work) < 2:
        return Spread(None, None, None)
    cv = float(work.std() / work.mean())
    order = np.lexsort((work, burst))
    work, burst = work[order], burst[order]
    size = np.bincount(burst)
    others = size[burst] - 1.0
    pairs = float(others.sum())
    if pairs <= 0.0:
        return Spread(cv, None, None)
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    rank = np.arange(len(work)) - first[burst]
    means = np.bincount(burst, weights=work) / np.maximum(size, 1)
    mean = float((others * work).sum()) / pairs
    # Sums over pairs of a burst: its size times its squares, and its order statistics.
    square = float((size[burst] * (work - means[burst]) ** 2 * (others > 0)).sum()) / pairs
    gap = float(((2.0 * rank - others) * work).sum()) / pairs
    return Spread(cv, float(np.sqrt(square)) / mean, gap / mean)


def fan_out_of(sizes: Mapping[int, int]) -> float | None:
    """Size of the burst that a call picked at random is in, itself included; None without calls."""
    num_calls = sum(size * count for size, count in sizes.items())
    squares = sum(size * size * count for size, count in sizes.items())
    return squares / num_calls if num_calls else None


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
