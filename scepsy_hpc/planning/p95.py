"""Plans under a limit on the 95th percentile: those of lowest mean, replayed in that order.

The search proves which plan has the lowest mean, and finds the next best ones. Where none of them
keeps the limit, plans for higher rates are replayed too: they leave headroom, which is what keeps a
tail short. So the limit is kept by replay over these plans, not over all there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.problem import SearchProblem, Solution
from scepsy_hpc.planning.search.search import best_choices, solve

NUM_BEST = 8
"""Plans of lowest mean that are replayed."""

NUM_AT_A_RATE = 4
"""The same where the rate is sought and there are many to try."""

_HEADROOM = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
"""Rates, over the one asked for, whose best plans are replayed next."""


@dataclass(frozen=True, slots=True)
class _Replayed:
    solution: Solution
    mean_s: float
    p95_s: float


def rank_by_p95(
    problem: PlanningProblem, search: SearchProblem, best: Solution, within_pct: float | None = None
) -> tuple[Solution, str]:
    """The plan of lowest mean found that keeps the p95 limit, and what the ranking did.

    With ``within_pct``: of those found within so many percent of that, the one on the fewest GPUs.
    ``best`` answers ``search``. Raises InfeasibleError that names the nearest limit.
    """
    replayed: list[_Replayed] = []
    few = within_pct is not None
    for group in (_lowest_means(search, best, few), _with_headroom(problem)):
        _replay(problem, group, replayed, stop=not few)
        good = [r for r in replayed if r.p95_s <= problem.p95_limit_s]
        if good:
            taken = _fewest_gpus(good, within_pct or 0.0) if few else good[0]
            return taken.solution, _note(problem, replayed, taken, within_pct)
    raise InfeasibleError(_nearest(problem, replayed))


def first_within_p95(
    problem: PlanningProblem, search: SearchProblem, best: Solution
) -> Solution | None:
    """The first of the plans of lowest mean that keeps the p95 limit; None: none does."""
    replayed: list[_Replayed] = []
    group = _lowest_means(search, best, few=False, most=NUM_AT_A_RATE)
    _replay(problem, group, replayed, stop=True)
    return replayed[-1].solution if replayed[-1].p95_s <= problem.p95_limit_s else None


def _replay(
    problem: PlanningProblem, group: Iterable[Solution], replayed: list[_Replayed], stop: bool
) -> None:
    """Replay what is new; with ``stop`` up to the first that keeps the limit."""
    for solution in group:
        if all(solution.chosen != other.solution.chosen for other in replayed):
            mean_s = problem.pipeline.mean_latency_s(solution.cost_s)
            replayed.append(_Replayed(solution, mean_s, problem.p95_s(solution)))
            if stop and replayed[-1].p95_s <= problem.p95_limit_s:
                return


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


def _fewest_gpus(good: Sequence[_Replayed], within_pct: float) -> _Replayed:
    ceiling_s = min(r.mean_s for r in good) * (1 + within_pct / 100)
    near = [r for r in good if r.mean_s <= ceiling_s]
    return min(near, key=lambda r: (r.solution.num_gpus, r.solution.cost_s))


def _note(
    problem: PlanningProblem,
    replayed: Sequence[_Replayed],
    taken: _Replayed,
    within_pct: float | None,
) -> str:
    """What is not proved is said: how many plans were replayed, and whether the order changed."""
    said = f"p95 limit {problem.p95_limit_s:g} s: kept by replay ({taken.p95_s:.4g} s)"
    first = replayed[0]
    if taken is first:
        return f"{said} by the plan of lowest mean latency; re-ranking did not change the order"
    if within_pct is not None:
        said += f", on the fewest GPUs found within {within_pct:g}%: {taken.solution.num_gpus}"
    return (
        f"{said}; re-ranking changed the order of {len(replayed)} plans: the lowest mean is "
        f"{first.mean_s:.4g} s on {first.solution.num_gpus} GPUs, with a p95 of "
        f"{first.p95_s:.4g} s"
    )


def _nearest(problem: PlanningProblem, replayed: Sequence[_Replayed]) -> str:
    limit = f"p95 limit {problem.p95_limit_s:g} s"
    nearest_s = min(r.p95_s for r in replayed)
    if math.isinf(nearest_s):
        return f"{limit}: no plan that was replayed has a known p95; trace more runs"
    return (
        f"{limit} is out of reach here: of {len(replayed)} plans that were replayed the nearest "
        f"feasible limit is {nearest_s:.4g} s"
    )
