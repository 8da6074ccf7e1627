"""From a target to a choice: which searches are asked, at which rates, and what certifies them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.planning.batch import in_time
from scepsy_hpc.planning.choice import (
    JUST_BELOW,
    Choice,
    Frontier,
    clock_note,
    nearest,
    nearest_latency,
    or_gpus,
)
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.p95 import (
    NUM_AT_A_RATE,
    first_within_p95,
    keeps_p95,
    rank_by_p95,
    rate_within_p95,
)
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.certificate import certify
from scepsy_hpc.planning.search.problem import OptionTable, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.targets import Deadline, MaxThroughput, Rate, Target

_RATE_TOLERANCE = 1e-3
_P95_TOLERANCE = 0.01  # a replayed percentile is no more certain than that
_IDLE = 1e-6


def choose(problem: PlanningProblem, target: Target) -> Choice:
    """The best choice for the target. Raises InfeasibleError, InputError."""
    if problem.limits.p95_limit_s is not None:
        if isinstance(target, Deadline):
            raise InputError("--p95-limit: belongs to --rate or --max-throughput, not to --tasks")
        if problem.tails is None:
            raise InputError("--p95-limit: needs the workflow's spans to replay")
    uses = [use for stage in problem.pipeline.stages for use in stage.uses]
    if not isinstance(target, Rate) and not any(use.calls_per_run for use in uses):
        raise InputError("spans: no LLM is called in them; any rate would do, on any GPUs")
    if isinstance(target, MaxThroughput):
        return _most(problem)
    if isinstance(target, Deadline):
        return in_time(problem, target)
    return _at_rate(problem)


def _at_rate(problem: PlanningProblem) -> Choice:
    pipeline, limits = problem.pipeline, problem.limits
    by_p95 = limits.p95_limit_s is not None
    search = replace(problem.least_latency(), within_pct=None if by_p95 else limits.within_pct)
    solution = solve(search)
    if not solution.is_feasible:
        raise InfeasibleError(nearest(problem, solution))
    notes, bound, best_s = clock_note(limits), solution.bound, solution.best_value
    if by_p95:
        solution, best_s, note = rank_by_p95(problem, search, solution, limits.within_pct)
        notes += (note,)
    else:
        notes += _within_notes(problem, solution)
    cost_s = pipeline.cost_on(pipeline.hosted_by(solution.chosen))
    certificate = certify("latency_mean_s", cost_s, bound, pipeline.tool_time_s, best_s)
    return Choice(pipeline, search.tables, solution, certificate, notes=notes)


def _within_notes(problem: PlanningProblem, solution: Solution) -> tuple[str, ...]:
    """What was given up for fewer GPUs, if anything was."""
    notes = []
    if solution.num_gpus < solution.best_num_gpus:
        best_s = problem.pipeline.mean_latency_s(solution.best_value)
        notes.append(
            f"within {problem.limits.within_pct:g}%: {solution.num_gpus} instead of "
            f"{solution.best_num_gpus} GPUs; the best mean latency is {best_s:.4g} s"
        )
    if not solution.proved_fewest:
        notes.append(
            f"within {problem.limits.within_pct:g}%: that fewer GPUs do not suffice is not proved"
        )
    return tuple(notes)


def _most(problem: PlanningProblem) -> Choice:
    """The highest rate at 95% of capacity; with a latency limit, the highest that keeps it."""
    within_pct = problem.limits.within_pct or None
    fastest = problem.fastest(within_pct)
    if not fastest.is_feasible:
        raise InfeasibleError(nearest(problem, fastest))
    factor = fastest.throughput_rps * MAX_UTILISATION * JUST_BELOW
    highest = problem.at_rates(factor)
    # Of the very best that of lowest latency is asked for, on however many GPUs.
    search = highest.least_latency(fastest.num_gpus if within_pct else None)
    solution = solve(search)
    if not solution.is_feasible or not keeps_p95(highest, solution):
        best_factor = fastest.best_value * MAX_UTILISATION * JUST_BELOW
        return _limited(problem, best_factor, fastest.bound)
    pipeline, total_rps = highest.pipeline, problem.pipeline.total_rps
    bound, best = fastest.bound * total_rps, fastest.best_value * total_rps
    value = total_rps * min(
        problem.pipeline.theta(host) for host in pipeline.hosted_by(solution.chosen)
    )
    certificate = certify("throughput_rps", min(value, bound), bound, best=max(best, value))
    notes = clock_note(problem.limits)
    if within_pct and fastest.num_gpus < fastest.best_num_gpus:
        notes = (
            f"within {problem.limits.within_pct:g}%: {solution.num_gpus} instead of "
            f"{fastest.best_num_gpus} GPUs; the highest throughput is {best:.4g} runs/s",
            *notes,
        )
    known = {p.num_gpus: p.value for p in fastest.frontier if p.value is not None}
    rates = {gpus: value * total_rps for gpus, value in known.items()}
    frontier = Frontier("highest throughput", "runs/s", rates)
    return Choice(pipeline, search.tables, solution, certificate, notes=notes, frontier=frontier)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The highest factor of the rates at which a plan keeps the limits, and that plan.

    ``high``: where none was found any more; ``bound``: where none can be.
    """

    factor: float
    solution: Solution
    tables: tuple[OptionTable, ...]
    high: float
    bound: float


def _limited(problem: PlanningProblem, highest: float, capacity: float) -> Choice:
    """The highest rate that keeps a limit on latency; rates as factors of the problem's.

    Then the fewest GPUs that keep it at a rate within ``--within`` of that.
    """
    limits = problem.limits
    low = highest * _IDLE
    idle, tables, _ = _kept_at(problem, low, None)
    if idle is None:
        raise InfeasibleError(_nearest_idle(problem, low))
    start = _Kept(low, idle, tables, highest, capacity * MAX_UTILISATION)
    best = _highest(problem, start, None)
    kept = _on_fewest(problem, best)
    note = "the limit on latency, not capacity, ends the rate"
    factor = kept.factor
    if limits.p95_limit_s is not None:
        factor = rate_within_p95(problem, kept.factor, kept.solution)
        note += (
            f"; at each rate up to {NUM_AT_A_RATE} plans of lowest mean were replayed for their "
            "p95, and what was taken is kept by simulation, not certified"
        )
    elif best.bound > best.high:
        note += "; that no higher rate keeps it is not proved: the search ran out of work"
    notes = [note]
    if kept.solution.num_gpus < best.solution.num_gpus:
        notes.append(
            f"within {limits.within_pct:g}%: {kept.solution.num_gpus} instead of "
            f"{best.solution.num_gpus} GPUs"
        )
    total_rps = problem.pipeline.total_rps
    # What simulation takes off a rate was not given up for fewer GPUs.
    reached = max(best.factor * factor / kept.factor, factor)
    bound = max(best.bound, reached)
    certificate = certify(
        "rate_rps", factor * total_rps, bound * total_rps, best=reached * total_rps
    )
    here = problem.at_rates(factor)
    notes += clock_note(limits)
    return Choice(here.pipeline, kept.tables, kept.solution, certificate, notes=tuple(notes))


def _highest(problem: PlanningProblem, start: _Kept, gpus: int | None) -> _Kept:
    """The highest factor on at most so many GPUs, by bisection from one that keeps the limits.

    ``bound`` falls only where it is proved that no plan keeps the limits, on any number of GPUs.
    No search bounds a percentile: under a p95 limit only what the other limits allow is proved.
    """
    by_p95 = problem.limits.p95_limit_s is not None
    kept = start
    while kept.high - kept.factor > (_P95_TOLERANCE if by_p95 else _RATE_TOLERANCE) * kept.high:
        middle = (kept.factor + kept.high) / 2.0
        found, tables, impossible = _kept_at(problem, middle, gpus)
        if found is None:
            bound = middle if impossible and gpus is None else kept.bound
            kept = replace(kept, high=middle, bound=bound)
        else:
            kept = replace(kept, factor=middle, solution=found, tables=tables)
    return kept


def _on_fewest(problem: PlanningProblem, best: _Kept) -> _Kept:
    """On the fewest GPUs that keep the limits at a rate within ``--within`` of the best."""
    floor = best.factor * (1.0 - problem.limits.within_pct / 100.0)
    if problem.wants_rates and best.factor >= 1.0:
        floor = max(floor, 1.0)
    low, high, few = 1, best.solution.num_gpus, best
    while low < high and floor < best.factor:
        middle = (low + high) // 2
        found, tables, _ = _kept_at(problem, floor, middle)
        if found is None:
            low = middle + 1
        else:
            high = min(middle, found.num_gpus)
            few = _Kept(floor, found, tables, best.factor, best.bound)
    return few if few is best else _highest(problem, few, few.solution.num_gpus)


def _kept_at(
    problem: PlanningProblem, factor: float, gpus: int | None
) -> tuple[Solution | None, tuple[OptionTable, ...], bool]:
    """The plan of lowest mean that keeps all limits at so many times the rates; None: none.

    Also says whether it is proved that there is none.
    """
    here = problem.at_rates(factor)
    search = here.least_latency(gpus)
    best = solve(search)
    if not best.is_feasible:
        return None, (), best.proved_infeasible
    if problem.limits.p95_limit_s is None:
        return best, search.tables, False
    return first_within_p95(here, search, best), search.tables, False


def _nearest_idle(problem: PlanningProblem, factor: float) -> str:
    """What limit could be kept at a rate of nearly zero."""
    slow = problem.at_rates(factor)
    search = slow.least_latency()
    idle = solve(search)
    if idle.is_feasible:
        try:
            rank_by_p95(slow, search, idle, 0.0)
        except InfeasibleError as error:
            return f"at a rate of nearly zero: {error}"
    if idle.nearest_cost_s is None:
        return nearest(slow, idle)
    return f"{nearest_latency(problem, idle)} at a rate of nearly zero{or_gpus(problem, idle)}"
