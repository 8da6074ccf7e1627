"""From a target to a choice: which searches are asked, at which rates, and what certifies them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.plan import Certificate
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.p95 import NUM_AT_A_RATE, first_within_p95, rank_by_p95
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline
from scepsy_hpc.planning.pipeline.predict import ClosedBatch, closed_state, makespan
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.certificate import certify
from scepsy_hpc.planning.search.problem import OptionTable, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate, Target

_RATE_TOLERANCE = 1e-3
_P95_TOLERANCE = 0.01  # a replayed percentile is no more certain than that
_IDLE = 1e-6
_JUST_BELOW = 1.0 - 1e-9
_MOST_IN_FLIGHT = 4096


@dataclass(frozen=True, slots=True)
class Choice:
    """What the search chose: the pipeline at the planned rates and the options of its stages."""

    pipeline: Pipeline
    tables: tuple[OptionTable, ...]
    solution: Solution
    certificate: Certificate | None
    max_runs_in_flight: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def hosted(self) -> tuple[HostedStage, ...]:
        """Stages on what was chosen for them."""
        return self.pipeline.hosted_by(self.solution.chosen)


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
        return _in_time(problem, target)
    return _at_rate(problem)


def _at_rate(problem: PlanningProblem) -> Choice:
    pipeline, limits = problem.pipeline, problem.limits
    by_p95 = limits.p95_limit_s is not None
    search = replace(problem.least_latency(), within_pct=None if by_p95 else limits.within_pct)
    solution = solve(search)
    if not solution.is_feasible:
        raise InfeasibleError(_nearest(problem, solution))
    notes, best_s = _clock_note(limits), None
    if by_p95:
        solution, note = rank_by_p95(problem, search, solution, limits.within_pct)
        notes += (note,)
    elif limits.within_pct is not None:
        best_s = solution.best_value
        notes += (_within_note(problem, solution),)
    cost_s = pipeline.cost_on(pipeline.hosted_by(solution.chosen))
    certificate = certify("latency_mean_s", cost_s, solution.bound, pipeline.tool_time_s, best_s)
    return Choice(pipeline, search.tables, solution, certificate, notes=notes)


def _within_note(problem: PlanningProblem, solution: Solution) -> str:
    best_s = problem.pipeline.mean_latency_s(solution.best_value)
    note = (
        f"within {problem.limits.within_pct:g}%: {solution.num_gpus} instead of "
        f"{solution.best_num_gpus} GPUs; the best mean latency is {best_s:.4g} s"
    )
    return note if solution.proved_fewest else f"{note}; that fewer do not suffice is not proved"


def _clock_note(limits: Limits) -> tuple[str, ...]:
    """A clock that may decide is said: on a busier machine the same command may plan otherwise."""
    if limits.time_limit_s is None:
        return ()
    return (
        f"time_limit: each search could take {limits.time_limit_s:g} s, so the plan depends on the "
        "machine and its load",
    )


def _nearest(problem: PlanningProblem, solution: Solution) -> str:
    """What would be feasible: the highest rate here, or the lowest latency; or more GPUs."""
    rates = ", ".join(f"{w.name} {w.rate_rps:g}" for w in problem.pipeline.workflows)
    fastest = problem.fastest()
    if not fastest.is_feasible:
        if not fastest.proved_infeasible:
            return f"no plan was found: {fastest.refused}"
        return f"no plan fits: {fastest.refused}; free more GPUs or allow smaller shares"
    theta = fastest.throughput_rps * MAX_UTILISATION * _JUST_BELOW
    if theta < 1.0:
        near = ", ".join(f"{w.name} {w.rate_rps * theta:.4g}" for w in problem.pipeline.workflows)
        return (
            f"rate {rates} runs/s is out of reach here: the nearest feasible rate is {near} runs/s "
            f"({100 * MAX_UTILISATION:.0f}% of capacity on {fastest.num_gpus} GPUs)"
            f"{_or_gpus(problem, solution)}{_unproved(solution, fastest.proved)}"
        )
    if solution.nearest_cost_s is not None:
        near = _nearest_latency(problem, solution)
        gpus = _or_gpus(problem, solution)
        return f"{near} at rate {rates} runs/s{gpus}{_unproved(solution)}"
    return f"rate {rates} runs/s: {solution.refused}"


def _unproved(solution: Solution, nearest_is_best: bool = True) -> str:
    """Where the search ran out of work, infeasible is not proved."""
    if solution.proved_infeasible and nearest_is_best:
        return ""
    what = "that nothing nearer is" if solution.proved_infeasible else "that nothing meets it is"
    return f"; {what} not proved: the search ran out of work"


def _or_gpus(problem: PlanningProblem, solution: Solution) -> str:
    if solution.nearest_num_gpus is None:
        return ""
    return f"; {solution.nearest_num_gpus} GPUs, not {problem.limits.num_gpus}, would reach it"


def _nearest_latency(problem: PlanningProblem, solution: Solution) -> str:
    nearest_s = problem.pipeline.mean_latency_s(solution.nearest_cost_s or 0.0)
    return (
        f"latency limit {problem.limits.latency_limit_s:g} s is out of reach: the nearest feasible "
        f"limit is {nearest_s:.4g} s"
    )


def _most(problem: PlanningProblem) -> Choice:
    """The highest rate at 95% of capacity; with a latency limit, the highest that keeps it."""
    fastest = problem.fastest(problem.limits.within_pct)
    if not fastest.is_feasible:
        raise InfeasibleError(_nearest(problem, fastest))
    gpus = fastest.num_gpus if problem.limits.within_pct is not None else None
    factor = fastest.throughput_rps * MAX_UTILISATION * _JUST_BELOW
    highest = problem.at_rates(factor)
    search = highest.least_latency(gpus)
    solution = solve(search)
    by_p95 = problem.limits.p95_limit_s is not None
    if not solution.is_feasible or (by_p95 and highest.p95_s(solution) > problem.p95_limit_s):
        return _limited(problem, factor, gpus, fastest.bound)
    pipeline, bound = highest.pipeline, fastest.bound * problem.pipeline.total_rps
    value = min(pipeline.theta(host) for host in pipeline.hosted_by(solution.chosen))
    best = None if gpus is None else fastest.best_value * problem.pipeline.total_rps
    certificate = certify(
        "throughput_rps", min(value * pipeline.total_rps, bound), bound, best=best
    )
    notes = _clock_note(problem.limits)
    return Choice(pipeline, search.tables, solution, certificate, notes=notes)


def _limited(problem: PlanningProblem, highest: float, gpus: int | None, capacity: float) -> Choice:
    """The highest rate that keeps a limit on latency; rates as factors of the problem's.

    ``bound`` falls only where it is proved that no plan keeps the limits, on any number of GPUs.
    No search bounds a percentile: under a p95 limit only what the other limits allow is proved.
    """
    by_p95 = problem.limits.p95_limit_s is not None
    low, high, bound = highest * _IDLE, highest, capacity * MAX_UTILISATION
    best, tables, _ = _kept_at(problem, low, gpus)
    if best is None:
        raise InfeasibleError(_nearest_idle(problem, low, gpus))
    while high - low > (_P95_TOLERANCE if by_p95 else _RATE_TOLERANCE) * high:
        middle = (low + high) / 2.0
        found, options, impossible = _kept_at(problem, middle, gpus)
        if found is None:
            high = middle
            bound = middle if impossible and gpus is None else bound
        else:
            low, best, tables = middle, found, options
    note = "the limit on latency, not capacity, ends the rate"
    if by_p95:
        note += (
            f"; at each rate up to {NUM_AT_A_RATE} plans of lowest mean were replayed for their p95"
        )
    elif bound > high:
        note += "; that no higher rate keeps it is not proved: the search ran out of work"
    total_rps = problem.pipeline.total_rps
    certificate = certify("rate_rps", low * total_rps, bound * total_rps)
    notes = (note, *_clock_note(problem.limits))
    return Choice(problem.pipeline.at_rates(low), tables, best, certificate, notes=notes)


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


def _nearest_idle(problem: PlanningProblem, factor: float, gpus: int | None) -> str:
    """What limit could be kept at a rate of nearly zero."""
    slow = problem.at_rates(factor)
    search = slow.least_latency(gpus)
    idle = solve(search)
    if idle.is_feasible:
        try:
            rank_by_p95(slow, search, idle)
        except InfeasibleError as error:
            return f"{error}, at a rate of nearly zero"
    if idle.nearest_cost_s is None:
        return _nearest(slow, idle)
    return f"{_nearest_latency(problem, idle)} at a rate of nearly zero{_or_gpus(problem, idle)}"


def _in_time(problem: PlanningProblem, target: Deadline) -> Choice:
    """Fewest GPUs whose closed batch ends in time, and on them the lowest latency."""
    if len(problem.pipeline.workflows) > 1:
        raise InputError("--tasks: a batch by a deadline is planned for one workflow at a time")
    unit = problem.at_rates(1.0 / problem.pipeline.total_rps)
    fastest = unit.fastest()
    if not fastest.is_feasible:
        raise InfeasibleError(_nearest(unit, fastest))
    most_rps = fastest.throughput_rps * MAX_UTILISATION * _JUST_BELOW
    rate = target.num_tasks / target.deadline_s
    shortest_s = math.inf
    while True:
        here = unit.at_rates(min(rate, most_rps))
        best = solve(here.least_latency())
        if not best.is_feasible and math.isinf(shortest_s):
            raise InfeasibleError(_nearest(here, best))
        budgets = {point.num_gpus for point in best.frontier} | {best.num_gpus}
        for gpus in sorted(budgets) if best.is_feasible else ():
            choice, time_s = _batch_on(here, target, gpus)
            if choice is not None and time_s <= target.deadline_s:
                return choice
            shortest_s = min(shortest_s, time_s)
        if rate >= most_rps:
            raise InfeasibleError(
                f"{target.num_tasks} tasks by a deadline of {target.deadline_s:g} s are out of "
                f"reach here: the nearest feasible deadline is about {shortest_s:.0f} s"
            )
        rate *= 1.25


def _batch_on(problem: PlanningProblem, target: Deadline, gpus: int) -> tuple[Choice | None, float]:
    """Lowest latency on so many GPUs with the fewest runs in flight that suffice; its makespan."""
    search, pipeline = problem.least_latency(gpus), problem.pipeline
    solution = solve(search)
    if not solution.is_feasible:
        return None, math.inf
    hosted = pipeline.hosted_by(solution.chosen)
    in_flight, time_s = _fewest_in_flight(problem, target, hosted)
    certificate = certify("latency_mean_s", solution.cost_s, solution.bound, pipeline.tool_time_s)
    note = f"the fewest GPUs that end {target.num_tasks} tasks in {target.deadline_s:g} s"
    return Choice(pipeline, search.tables, solution, certificate, in_flight, (note,)), time_s


def _fewest_in_flight(
    problem: PlanningProblem, target: Deadline, hosted: tuple[HostedStage, ...]
) -> tuple[int, float]:
    """Fewest runs in flight that keep the deadline, else those of the shortest makespan."""

    def time_s(num: int) -> float:
        state, _ = closed_state(problem.pipeline, hosted, num)
        return makespan(state, ClosedBatch(target.num_tasks, num, problem.run_lengths_s))[0]

    most = min(target.num_tasks, _MOST_IN_FLIGHT)
    low = high = 1
    tried = {high: time_s(high)}
    while high < most and tried[high] > target.deadline_s:
        low, high = high, min(2 * high, most)
        tried[high] = time_s(high)
    if tried[high] > target.deadline_s:
        high = min(tried, key=lambda num: tried[num])
        return high, tried[high]
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = time_s(middle)
        low, high = (low, middle) if tried[middle] <= target.deadline_s else (middle, high)
    return high, tried[high]
