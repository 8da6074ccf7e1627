"""Plans under a limit on the 95th percentile: those of lowest mean, replayed, then simulated.

The search proves which plan has the lowest mean, and finds the next best ones. Replay says of each
roughly what its p95 is; those that may keep the limit are simulated, in order of their mean, and
the first that keeps it then is taken. Where none does, plans for higher rates are tried too: they
leave headroom, which is what keeps a tail short. So the limit is kept by simulation over these
plans, not certified over all there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.problem import SearchProblem, Solution
from scepsy_hpc.planning.search.search import best_choices, solve

NUM_BEST = 8
"""Plans of lowest mean that are replayed."""

NUM_AT_A_RATE = 4
"""The same where the rate is sought and there are many to try."""

MOST_SIMULATED = 6
"""Plans that are simulated before others are replayed."""

REPLAY_MISS = 1.25
"""A replayed p95 may be so much too high: the plan is simulated all the same."""

_HEADROOM = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
"""Rates, over the one asked for, whose best plans are tried next."""

_ROUGH = 0.2  # part of the calls of a check while the rate is sought
_STEPS = 6
_NEAR = 0.98  # of the limit: no more is sought
_BACK_OFF = 0.97


@dataclass(slots=True)
class _Tried:
    """A plan with its p95 by replay, and by simulation once that was asked."""

    solution: Solution
    mean_s: float
    replayed_s: float
    simulated_s: float | None = None


def rank_by_p95(
    problem: PlanningProblem, search: SearchProblem, best: Solution, within_pct: float
) -> tuple[Solution, float, str]:
    """A plan that keeps the p95 limit, the cost of that of lowest mean, and what the ranking did.

    Of those found within ``within_pct`` of the lowest mean the one on the fewest GPUs. ``best``
    answers ``search``. Raises InfeasibleError that names the nearest limit.
    """
    tried: list[_Tried] = []
    few = within_pct > 0.0
    for group in (_lowest_means(search, best, few), _with_headroom(problem)):
        _replay(problem, group, tried)
        by_mean = sorted(tried, key=lambda t: t.mean_s)
        first = _first_kept(problem, by_mean)
        if first is None:
            continue
        taken = first
        if few:
            ceiling_s = first.mean_s * (1 + within_pct / 100)
            near = [t for t in by_mean if t.mean_s <= ceiling_s and _gpus(t) < _gpus(first)]
            taken = _first_kept(problem, sorted(near, key=_gpus)) or first
        note = _note(problem, tried, taken, first, within_pct)
        return taken.solution, first.solution.cost_s, note
    raise InfeasibleError(_nearest(problem, tried))


def first_within_p95(
    problem: PlanningProblem, search: SearchProblem, best: Solution
) -> Solution | None:
    """The first of the plans of lowest mean that keeps the p95 limit by replay; None: none does."""
    for solution in _lowest_means(search, best, few=False, most=NUM_AT_A_RATE):
        if problem.p95_s(solution) <= problem.p95_limit_s:
            return solution
    return None


def keeps_p95(problem: PlanningProblem, solution: Solution) -> bool:
    """Whether a plan keeps the p95 limit by simulation; far from it replay is enough."""
    limit_s = problem.p95_limit_s
    if math.isinf(limit_s):
        return True
    if problem.p95_s(solution) > REPLAY_MISS * limit_s:
        return False
    return problem.simulated_p95_s(solution) <= limit_s


def rate_within_p95(problem: PlanningProblem, factor: float, solution: Solution) -> float:
    """The highest factor of the rates at which a plan keeps the p95 limit by simulation.

    ``factor`` is a guess. Raises InfeasibleError where it keeps it at none.
    """
    limit_s, pipeline = problem.p95_limit_s, problem.pipeline

    def p95_s(at: float, part: float = _ROUGH) -> float:
        return problem.at_rates(at).simulated_p95_s(solution, part)

    top = MAX_UTILISATION * min(pipeline.theta(h) for h in pipeline.hosted_by(solution.chosen))
    if problem.limits.latency_limit_s is not None:
        top = min(top, factor)
    low, high = 0.0, top
    at = min(factor, top)
    for _ in range(_STEPS):
        found_s = p95_s(at)
        low, high = (at, high) if found_s <= limit_s else (low, at)
        if _NEAR * limit_s <= found_s <= limit_s or high - low <= (1 - _NEAR) * high:
            break
        at = (low + high) / 2.0
    at = low or at
    for _ in range(_STEPS):
        if p95_s(at, 1.0) <= limit_s:
            return at
        at *= _BACK_OFF if low else _BACK_OFF / 4
    raise InfeasibleError(
        f"p95 limit {limit_s:g} s is out of reach here: the nearest feasible limit that was found "
        f"is {p95_s(at, 1.0):.4g} s, by simulation, at a rate of nearly zero"
    )


def _gpus(tried: _Tried) -> int:
    return tried.solution.num_gpus


def _replay(problem: PlanningProblem, group: Iterable[Solution], tried: list[_Tried]) -> None:
    """Replay what is new."""
    for solution in group:
        if all(solution.chosen != other.solution.chosen for other in tried):
            mean_s = problem.pipeline.mean_latency_s(solution.cost_s)
            tried.append(_Tried(solution, mean_s, problem.p95_s(solution)))


def _first_kept(problem: PlanningProblem, ordered: Sequence[_Tried]) -> _Tried | None:
    """The first that keeps the limit by simulation, of those that may by replay."""
    limit_s = problem.p95_limit_s
    likely = [t for t in ordered if t.replayed_s <= REPLAY_MISS * limit_s]
    for one in likely[:MOST_SIMULATED]:
        if one.simulated_s is None:
            one.simulated_s = problem.simulated_p95_s(one.solution)
        if one.simulated_s <= limit_s:
            return one
    return None


def _lowest_means(
    search: SearchProblem, best: Solution, few: bool, most: int = NUM_BEST
) -> Iterator[Solution]:
    """The best plan, then the next ones; with ``few`` also the best on fewer GPUs."""
    yield best
    yield from best_choices(search, most, best)
    if few:
        fewer = [p.num_gpus for p in best.frontier if p.value and p.num_gpus < best.num_gpus]
        picks = np.unique(np.linspace(0, len(fewer) - 1, min(NUM_BEST, len(fewer))).astype(int))
        solved = (solve(replace(search, max_gpus=fewer[pick])) for pick in picks)
        yield from (solution for solution in solved if solution.is_feasible)


def _with_headroom(problem: PlanningProblem) -> list[Solution]:
    """Best plans for higher rates, by their mean at the rate asked for."""
    pipeline, limit_s = problem.pipeline, problem.limits.latency_limit_s
    found: list[Solution] = []
    for factor in _HEADROOM:
        solution = solve(problem.at_rates(factor).least_latency(capped=False))
        if solution.is_feasible:
            cost_s = pipeline.cost_on(pipeline.hosted_by(solution.chosen))
            if limit_s is None or pipeline.mean_latency_s(cost_s) <= limit_s:
                found.append(replace(solution, value=cost_s, cost_s=cost_s))
    return sorted(found, key=lambda solution: solution.cost_s)


def _note(
    problem: PlanningProblem,
    tried: Sequence[_Tried],
    taken: _Tried,
    first: _Tried,
    within_pct: float,
) -> str:
    """What is not proved is said: how many plans were tried, and whether the order changed."""
    simulated = [t for t in tried if t.simulated_s is not None]
    said = (
        f"p95 limit {problem.p95_limit_s:g} s: kept by simulation ({taken.simulated_s:.4g} s; by "
        f"replay {taken.replayed_s:.4g} s), not certified"
    )
    lowest = tried[0]
    if taken is not first:
        said += f", on the fewest GPUs found within {within_pct:g}%: {_gpus(taken)}"
    if taken is lowest:
        return f"{said}; the plan of lowest mean latency keeps it"
    p95_s = lowest.simulated_s or lowest.replayed_s
    return (
        f"{said}; {len(tried)} plans were replayed and {len(simulated)} simulated: the lowest mean "
        f"is {lowest.mean_s:.4g} s on {_gpus(lowest)} GPUs, with a p95 of {p95_s:.4g} s"
    )


def _nearest(problem: PlanningProblem, tried: Sequence[_Tried]) -> str:
    limit = f"p95 limit {problem.p95_limit_s:g} s"
    if all(math.isinf(t.replayed_s) for t in tried):
        return f"{limit}: no plan that was replayed has a known p95; trace more runs"
    nearest = min(tried, key=lambda t: t.replayed_s if t.simulated_s is None else t.simulated_s)
    if nearest.simulated_s is None:
        nearest.simulated_s = problem.simulated_p95_s(nearest.solution)
    return (
        f"{limit} is out of reach here: of {len(tried)} plans that were replayed the nearest "
        f"feasible limit is {nearest.simulated_s:.4g} s, by simulation; that no other plan keeps "
        "it is not proved"
    )
