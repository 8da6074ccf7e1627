"""Exact search: which GPU type, link, TP degree, share and replica count each LLM gets.

GPU units are counted by a multiple-choice knapsack (``relaxation``), which gives the best value at
every number of GPUs at once. Its choice is proved best as soon as it can be placed. Where it
cannot, a constraint model (``lagrangian``, ``cp_sat``) decides choice and packing together, and the
solution says how far from the bound it may be.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scepsy_hpc.planning.search.candidates import Candidates, space_of
from scepsy_hpc.planning.search.certificate import relative_gap
from scepsy_hpc.planning.search.least_cost import Fitter, Found
from scepsy_hpc.planning.search.most_throughput import fastest, levels_of
from scepsy_hpc.planning.search.problem import (
    FrontierPoint,
    SearchProblem,
    Solution,
)
from scepsy_hpc.planning.search.relaxation import Relaxation, gpus_needed

TRIES_PER_CHOICE = 10  # cheapest choices looked at for each that is asked for
MOST_CHECKS = 32  # frontier points that are checked where units alone do not decide


def solve(problem: SearchProblem) -> Solution:
    """The best choice and placement, a bound on it, and the frontier over the number of GPUs.

    Where nothing meets the target, ``refused`` says why and ``nearest_*`` what would be feasible.
    """
    fitter = Fitter(problem, space_of(problem), time.monotonic() + problem.time_limit_s)
    for llm, group in zip(fitter.space.llms, fitter.space.groups, strict=True):
        if not len(group):
            return _nothing(f"{llm}: none of its options fits the free GPUs", proved=True)
    return _least_cost(fitter) if problem.objective == "min_cost" else _most_throughput(fitter)


def best_choices(
    problem: SearchProblem, num_choices: int, best: Solution | None = None
) -> list[Solution]:
    """The answer and further choices of rising cost, for ranking by what the search cannot see.

    For ``min_cost``. All carry the bound of the answer, so that the one that is emitted has its
    certificate. The list is shorter when there are not so many, or when too few of the cheapest
    can be placed. ``best`` is the answer of ``solve`` where it is known already.
    """
    if problem.objective != "min_cost":
        raise ValueError(f"objective must be 'min_cost' to rank by cost, is {problem.objective!r}")
    best = solve(problem) if best is None else best
    if not best.is_feasible or num_choices <= 1:
        return [best]
    fitter = Fitter(problem, space_of(problem), time.monotonic() + problem.time_limit_s)
    groups = fitter.reaching(problem.min_throughput_rps)
    assert groups is not None
    table = fitter.relax(groups)
    gpus = best.num_gpus if problem.within_pct is not None else fitter.space.max_gpus
    found = [best]
    for rows in itertools.islice(table.cheapest(gpus), TRIES_PER_CHOICE * num_choices):
        other = fitter.placed(groups, rows, gpus)
        if other is None or other.cost_s > (problem.max_cost_s or math.inf):
            continue
        if {o.llm: o for o in other.options} != best.chosen:
            found.append(_solution(other, other.cost_s, best.bound, best.frontier))
        if len(found) == num_choices or time.monotonic() > fitter.ends_s:
            break
    return sorted(found, key=lambda solution: solution.value)


def _least_cost(fitter: Fitter) -> Solution:
    problem, gpus = fitter.problem, fitter.space.max_gpus
    groups = fitter.reaching(problem.min_throughput_rps)
    if groups is None:
        return _too_fast(problem)
    table = fitter.relax(groups)
    best = fitter.least(groups, table, gpus)
    if not best.options:
        return _too_fast(problem) if best.infeasible else _nothing(_OUT_OF_TIME)
    limit = math.inf if problem.max_cost_s is None else problem.max_cost_s
    if best.cost_s > limit:
        return _too_dear(problem, best, limit)
    frontier = _cost_frontier(fitter, groups, table, best)
    found = best
    if problem.within_pct is not None:
        ceiling = min(best.cost_s * (1 + problem.within_pct / 100), limit)
        found = _on_fewest(fitter, groups, table, best, ceiling)
    return _solution(found, found.cost_s, best.bound, frontier)


def _on_fewest(
    fitter: Fitter, groups: Sequence[Candidates], table: Relaxation, best: Found, ceiling: float
) -> Found:
    """Fewest GPUs on which the cost stays under a ceiling (bisection), and least cost there."""
    low, high, found = table.fewest_gpus(ceiling), best.num_gpus, best
    assert low is not None
    while low < high:
        # The relaxation's first number of GPUs is most often the answer.
        middle = low if found is best else (low + high) // 2
        tried = fitter.least(groups, table, middle, fitter.left_s / 4)
        if tried.options and tried.cost_s <= ceiling:
            high, found = min(middle, tried.num_gpus), tried
        else:
            low = middle + 1
    return found


def _cost_frontier(
    fitter: Fitter, groups: Sequence[Candidates], table: Relaxation, best: Found
) -> tuple[FrontierPoint, ...]:
    """One point wherever one more GPU lowers the bound, and one at the answer."""
    values = table.values
    steps = np.flatnonzero(values < np.r_[np.inf, values[:-1]]).tolist()
    if fitter.space.decides:
        return tuple(FrontierPoint(g, float(values[g]), float(values[g])) for g in steps)
    spaced = np.unique(np.linspace(0, len(steps) - 1, MOST_CHECKS).astype(np.int64))
    checked = {steps[i] for i in spaced}
    known, used = math.inf, best.num_gpus
    points = []
    for g in sorted({*steps, used}):
        if g in checked and fitter.fits(groups, table, g):
            known = min(known, float(values[g]))
        if g >= used:
            known = min(known, best.cost_s)
        value = known if math.isfinite(known) else None
        points.append(FrontierPoint(g, value, float(values[g])))
    return tuple(points)


def _most_throughput(fitter: Fitter) -> Solution:
    problem, gpus = fitter.problem, fitter.space.max_gpus
    best, bound = fastest(fitter, gpus)
    if not best.options:
        why = "nothing fits the free GPUs within the limits"
        return _nothing(why, proved=True) if best.infeasible else _nothing(_OUT_OF_TIME)
    if best.throughput_rps < problem.min_throughput_rps:
        return replace(
            _nothing(
                _short(problem, best.throughput_rps), proved=bound < problem.min_throughput_rps
            ),
            nearest_throughput_rps=best.throughput_rps,
        )
    found = best
    if problem.within_pct is not None:
        found = _fast_on_fewest(fitter, best, best.throughput_rps * (1 - problem.within_pct / 100))
    return _solution(found, found.throughput_rps, bound, _rate_frontier(fitter, best))


def _fast_on_fewest(fitter: Fitter, best: Found, floor_rps: float) -> Found:
    groups = fitter.reaching(floor_rps)
    assert groups is not None
    low, high, found = 1, best.num_gpus, best
    levels = levels_of(fitter)
    needed = gpus_needed(groups, fitter.space.pools, levels[levels >= floor_rps][:1])
    low = int(needed[0])
    while low < high:
        middle = low if found is best else (low + high) // 2
        tried, _ = fastest(fitter, middle)
        if tried.options and tried.throughput_rps >= floor_rps:
            high, found = min(middle, tried.num_gpus), tried
        else:
            low = middle + 1
    return found


def _rate_frontier(fitter: Fitter, best: Found) -> tuple[FrontierPoint, ...]:
    """One point wherever one more GPU raises the bound, and one at the answer."""
    levels, groups = levels_of(fitter), fitter.reaching(0.0)
    assert groups is not None
    needed = gpus_needed(groups, fitter.space.pools, levels)
    exact = fitter.space.decides and len(fitter.space.pools) == 1
    exact = exact and fitter.problem.max_cost_s is None
    points, used = [], best.num_gpus
    for g in sorted({*needed[needed <= fitter.space.max_gpus].tolist(), used}):
        top = float(levels[np.searchsorted(needed, g, side="right") - 1])
        known = top if exact else best.throughput_rps if g >= used else None
        points.append(FrontierPoint(int(g), known, top))
    return tuple(points)


def _solution(
    found: Found, value: float, bound: float, frontier: tuple[FrontierPoint, ...]
) -> Solution:
    return Solution(
        chosen={option.llm: option for option in found.options},
        instances=found.instances,
        value=value,
        bound=bound,
        gap=relative_gap(value, bound),
        cost_s=found.cost_s,
        throughput_rps=found.throughput_rps,
        num_gpus=found.num_gpus,
        method=found.method,
        frontier=frontier,
    )


def _too_fast(problem: SearchProblem) -> Solution:
    """Nothing reaches the target: say what could be reached, whatever it costs, or on more GPUs."""
    tables = tuple(replace(t, cost_s=np.zeros(len(t.cost_s))) for t in problem.tables)
    best = solve(
        replace(
            problem,
            tables=tables,
            objective="max_throughput",
            min_throughput_rps=0.0,
            max_cost_s=None,
            within_pct=None,
        )
    )
    nearest = best.throughput_rps if best.is_feasible else None
    return replace(
        _nothing(_short(problem, nearest), proved=True),
        nearest_throughput_rps=nearest,
        nearest_num_gpus=_enough_gpus(problem),
    )


def _enough_gpus(problem: SearchProblem) -> int | None:
    """Fewest GPUs of the topology that meet the target, if only the limit on GPUs forbids it."""
    if problem.max_gpus is None:
        return None
    best = solve(replace(problem, max_gpus=None, within_pct=_ANY_COST_PCT))
    return best.num_gpus if best.is_feasible else None


def _short(problem: SearchProblem, nearest: float | None) -> str:
    said = "nothing is feasible" if nearest is None else f"at most {nearest:.6g} runs/s are"
    return f"{problem.min_throughput_rps:.6g} runs/s are out of reach: {said}"


def _too_dear(problem: SearchProblem, best: Found, limit: float) -> Solution:
    return replace(
        _nothing(
            f"the least cost is {best.cost_s:.6g} s, above the limit of {limit:.6g} s",
            proved=best.bound > limit,
        ),
        nearest_cost_s=best.cost_s,
        nearest_num_gpus=_enough_gpus(problem),
    )


_ANY_COST_PCT = 1e12
_OUT_OF_TIME = "nothing was found within the time limit"


def _nothing(why: str, proved: bool = False) -> Solution:
    nan = math.nan
    return Solution({}, (), nan, nan, nan, nan, nan, 0, "dp", refused=why, proved_infeasible=proved)
