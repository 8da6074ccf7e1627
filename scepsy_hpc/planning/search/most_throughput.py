"""Largest throughput: bisection over the values it can take, then least cost at the largest."""

from __future__ import annotations

import math

import numpy as np

from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.search.candidates import smallest
from scepsy_hpc.planning.search.certificate import ROUNDING
from scepsy_hpc.planning.search.least_cost import Fitter, Found
from scepsy_hpc.planning.search.prices import may_fit
from scepsy_hpc.planning.search.relaxation import gpus_needed, relax, room_for, throughputs


def levels_of(fitter: Fitter) -> Floats:
    """Values that the smallest throughput can take, rising; empty when an LLM has no option."""
    groups = fitter.reaching(0.0)
    return np.zeros(0) if groups is None else throughputs(groups)


def fastest(fitter: Fitter, gpus: int) -> tuple[Found, float]:
    """The largest throughput on at most so many GPUs, at the least cost; a bound on it."""
    levels = levels_of(fitter)
    top = _highest(fitter, levels, gpus)
    if top < 0:
        return Found((), (), math.inf, "dp", infeasible=True), math.inf
    found = _at(fitter.hasty(0.1), float(levels[top]), gpus)
    if found.options:
        return found, float(levels[top])
    return _below(fitter, levels, top, gpus, proved=found.infeasible)


def _highest(fitter: Fitter, levels: Floats, gpus: int) -> int:
    """Index of the largest value that the relaxation allows; -1 if there is none."""
    groups = fitter.reaching(0.0)
    if groups is None:
        return -1
    needed = gpus_needed(groups, fitter.space.pools, levels)
    low, high = -1, int(np.searchsorted(needed, gpus, side="right")) - 1
    if fitter.problem.max_cost_s is None and fitter.space.decides and len(fitter.space.pools) == 1:
        return high
    middle = high  # most often the answer
    while low < high:
        if _allowed(fitter, float(levels[middle]), gpus):
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low


def _allowed(fitter: Fitter, level: float, gpus: int) -> bool:
    groups = fitter.reaching(level)
    if groups is None or not room_for([smallest(g) for g in groups], fitter.space.pools, gpus):
        return False
    if not may_fit(fitter.space, groups, gpus, fitter.known):
        return False
    limit = fitter.problem.max_cost_s
    if limit is None:
        return True
    least = float(relax(groups, fitter.space.pools, gpus).values[-1])
    return least <= limit + ROUNDING * abs(limit)


def _at(fitter: Fitter, level: float, gpus: int, start: Found | None = None) -> Found:
    """Least cost at a throughput, if it keeps the limit on cost; else nothing."""
    groups = fitter.reaching(level)
    assert groups is not None
    table = relax(groups, fitter.space.pools, gpus)
    found = fitter.least(groups, table, len(table.values) - 1, start)
    limit = fitter.problem.max_cost_s
    if found.options and limit is not None and found.cost_s > limit:
        proved = found.bound > limit + ROUNDING * abs(limit)
        return Found((), (), found.bound, found.method, infeasible=proved)
    return found


def _fits(fitter: Fitter, level: float, gpus: int) -> Found:
    """Something that fits at a throughput; only where cost has no limit is cost ignored."""
    groups = fitter.reaching(level)
    assert groups is not None
    if fitter.problem.max_cost_s is not None:
        return _at(fitter, level, gpus)
    small = tuple(smallest(group) for group in groups)
    table = relax(small, fitter.space.pools, gpus)
    return fitter.hasty(0.25).least(small, table, len(table.values) - 1)


def _below(
    fitter: Fitter, levels: Floats, top: int, gpus: int, proved: bool
) -> tuple[Found, float]:
    """Search downwards from a level that did not work: steps that double, then bisection.

    Half of the work is kept for the least cost at the level found. What ran out of work leaves the
    bound where it was.
    """
    hasty = fitter.hasty(0.5)
    refuted = top if proved else top + 1
    low, high, step = -1, top, 1 if proved else 0
    best = Found((), (), math.inf, "cp_sat", infeasible=False)
    while high - low > (0 if step == 0 else 1):
        if low >= 0 and hasty.work.has_ended:
            break
        middle = max(high - step, 0) if low < 0 else (low + high) // 2
        step = max(2 * step, 1)
        found = _fits(hasty, float(levels[middle]), gpus)
        if found.options:
            low, best = middle, found
        else:
            high = middle
            refuted = middle if found.infeasible else refuted
    if low < 0:
        return Found((), (), math.inf, "cp_sat", infeasible=refuted == 0), math.inf
    cheaper = _at(fitter, float(levels[low]), gpus, best)
    best = cheaper if cheaper.options and cheaper.cost_s <= best.cost_s else best
    return best, float(levels[refuted - 1])
