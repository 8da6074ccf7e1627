"""Exact search: which GPU type, link, TP degree, share and replica count each LLM gets.

GPU units are counted by a multiple-choice knapsack (``relaxation``), which gives the best value at
every number of GPUs at once. Its choice is proved best as soon as it can be placed. Where it
cannot, a constraint model (``lagrangian``, ``cp_sat``) decides choice and packing together, and the
solution says how far from the bound it may be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scepsy_hpc.planning.search.candidates import Candidates, space_of
from scepsy_hpc.planning.search.certificate import (
    ROUNDING,
    given_up_pct,
    is_proved,
    relative_gap,
)
from scepsy_hpc.planning.search.least_cost import Fitter, Found
from scepsy_hpc.planning.search.most_throughput import fastest, levels_of
from scepsy_hpc.planning.search.problem import (
    FrontierPoint,
    SearchProblem,
    Solution,
)
from scepsy_hpc.planning.search.relaxation import Relaxation, gpus_needed
from scepsy_hpc.planning.search.work import Work

TRIES_PER_CHOICE = 10  # cheapest choices looked at for each that is asked for
MOST_CHECKS = 32  # frontier points that are checked where units alone do not decide


def solve(problem: SearchProblem) -> Solution:
    """The best choice and placement, a bound on it, and the frontier over the number of GPUs.

    Where nothing meets the target, ``refused`` says why and ``nearest_*`` what would be feasible.
    """
    fitter = _fitter(problem)
    for llm, group in zip(fitter.space.llms, fitter.space.groups, strict=True):
        if not len(group):
            return _nothing(f"{llm}: none of its options fits the free GPUs", proved=True)
    answer = _least_cost if problem.objective == "min_cost" else _most_throughput
    return replace(answer(fitter), work=fitter.work.done)


def _fitter(problem: SearchProblem) -> Fitter:
    work = Work.within(problem.work_limit, problem.time_limit_s)
    return Fitter(problem, space_of(problem), work)


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
    fitter = _fitter(problem)
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
            found.append(_solution(problem, other, other, best.bound, best.frontier))
        if len(found) == num_choices or fitter.work.has_ended:
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
        return _too_fast(problem) if best.infeasible else _nothing(_OUT_OF_WORK)
    limit = math.inf if problem.max_cost_s is None else problem.max_cost_s
    if best.cost_s > limit:
        return _too_dear(problem, best, limit)
    frontier = _cost_frontier(fitter, groups, table, best)
    if problem.within_pct is None:
        return _solution(problem, best, best, best.bound, frontier)
    more = (best.cost_s + problem.constant_s) * problem.within_pct / 100
    ceiling = min(best.cost_s + more, limit)
    found, proved = _on_fewest(fitter, groups, table, best, ceiling)
    return _solution(problem, found, best, best.bound, frontier, proved)


def _on_fewest(
    fitter: Fitter, groups: Sequence[Candidates], table: Relaxation, best: Found, ceiling: float
) -> tuple[Found, bool]:
    """Fewest GPUs on which the cost stays under a ceiling (bisection), and least cost there.

    Also says whether it is proved that fewer do not suffice.
    """
    ceiling += ROUNDING * abs(ceiling)  # the same numbers in another order
    fewest = table.fewest_gpus(ceiling)
    low, high, found = best.num_gpus if fewest is None else fewest, best.num_gpus, best
    proved = True
    while low < high:
        # The relaxation's first number of GPUs is most often the answer.
        middle = low if found is best else (low + high) // 2
        tried = fitter.hasty(0.25).least(groups, table, middle)
        if tried.options and tried.cost_s <= ceiling:
            high, found = min(middle, tried.num_gpus), tried
        else:
            low = middle + 1
            proved = proved and (tried.infeasible or tried.bound > ceiling)
    return found, proved


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
        return _nothing(why, proved=True) if best.infeasible else _nothing(_OUT_OF_WORK)
    if best.throughput_rps < problem.min_throughput_rps:
        reached = best.throughput_rps
        proved = bound < problem.min_throughput_rps
        said = _short(problem, reached, is_proved(relative_gap(reached, bound)))
        return replace(_nothing(said, proved), nearest_throughput_rps=reached)
    frontier = _rate_frontier(fitter, best)
    if problem.within_pct is None:
        return _solution(problem, best, best, bound, frontier)
    floor_rps = best.throughput_rps * (1 - problem.within_pct / 100)
    found, proved = _fast_on_fewest(fitter, best, max(floor_rps, problem.min_throughput_rps))
    return _solution(problem, found, best, bound, frontier, proved)


def _fast_on_fewest(fitter: Fitter, best: Found, floor_rps: float) -> tuple[Found, bool]:
    """Fewest GPUs on which the throughput stays at a floor, and whether that is proved."""
    groups = fitter.reaching(floor_rps)
    assert groups is not None
    levels = levels_of(fitter)
    needed = gpus_needed(groups, fitter.space.pools, levels[levels >= floor_rps][:1])
    low, high, found, proved = int(needed[0]), best.num_gpus, best, True
    while low < high:
        middle = low if found is best else (low + high) // 2
        tried, bound = fastest(fitter.hasty(0.25), middle)
        if tried.options and tried.throughput_rps >= floor_rps:
            high, found = min(middle, tried.num_gpus), tried
        else:
            low = middle + 1
            proved = proved and (tried.infeasible or bound < floor_rps)
    return found, proved


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
    problem: SearchProblem,
    found: Found,
    best: Found,
    bound: float,
    frontier: tuple[FrontierPoint, ...],
    proved_fewest: bool = True,
) -> Solution:
    least = problem.objective == "min_cost"
    value, best_value = (f.cost_s if least else f.throughput_rps for f in (found, best))
    gap, constant = relative_gap(best_value, bound), problem.constant_s if least else 0.0
    return Solution(
        chosen={option.llm: option for option in found.options},
        instances=found.instances,
        value=value,
        bound=bound,
        gap=gap,
        cost_s=found.cost_s,
        throughput_rps=found.throughput_rps,
        num_gpus=found.num_gpus,
        method=found.method,
        frontier=frontier,
        best_value=best_value,
        best_num_gpus=best.num_gpus,
        given_up_pct=given_up_pct(value + constant, best_value + constant),
        proved=is_proved(gap),
        proved_fewest=proved_fewest,
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
        _nothing(_short(problem, nearest, best.proved or best.proved_infeasible), proved=True),
        nearest_throughput_rps=nearest,
        nearest_num_gpus=_enough_gpus(problem),
    )


def _enough_gpus(problem: SearchProblem) -> int | None:
    """Fewest GPUs of the topology that meet the target, if only the limit on GPUs forbids it."""
    if problem.max_gpus is None:
        return None
    best = solve(replace(problem, max_gpus=None, within_pct=_ANY_COST_PCT))
    return best.num_gpus if best.is_feasible else None


def _short(problem: SearchProblem, nearest: float | None, proved: bool) -> str:
    wanted = f"{problem.min_throughput_rps:.6g} runs/s are out of reach"
    if nearest is None:
        return f"{wanted}: nothing is feasible" if proved else f"{wanted}: nothing was found"
    if proved:
        return f"{wanted}: at most {nearest:.6g} runs/s are"
    return f"{wanted}: {nearest:.6g} runs/s were found; that more is impossible is not proved"


def _too_dear(problem: SearchProblem, best: Found, limit: float) -> Solution:
    proved = best.bound > limit + ROUNDING * abs(limit)
    said = f"the least cost is {best.cost_s:.6g} s, above the limit of {limit:.6g} s"
    if not proved:
        said = (
            f"the least cost found is {best.cost_s:.6g} s, above the limit of {limit:.6g} s; "
            f"that there is none below it is not proved"
        )
    return replace(
        _nothing(said, proved),
        nearest_cost_s=best.cost_s,
        nearest_num_gpus=_enough_gpus(problem),
    )


_ANY_COST_PCT = 1e12
_OUT_OF_WORK = (
    "nothing that fits was found within the limit on work; that nothing does is not proved"
)


def _nothing(why: str, proved: bool = False) -> Solution:
    nan = math.nan
    return Solution({}, (), nan, nan, nan, nan, nan, 0, "dp", refused=why, proved_infeasible=proved)
