"""Batches by a deadline: the fewest GPU-hours, and the runs in flight that reach them.

GPU-hours are GPUs held x (start-up + makespan). At each number of GPUs nothing is faster than all
tasks at the highest throughput there, or than one run on idle engines: that orders the numbers of
GPUs, and bounds what any plan takes. Those that may still be better are tried with the allocations
of lowest latency at a few rates below that throughput; the closed network says how the makespan
falls with the runs in flight. The best few by prediction are simulated: the fewest simulated
GPU-hours are taken, and a batch that misses the deadline in more than one of 20 simulated batches
gives way to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.plan import Certificate
from scepsy_hpc.planning.batch_ends import few_flag, p95_s
from scepsy_hpc.planning.choice import (
    JUST_BELOW,
    Choice,
    Frontier,
    PlannedBatch,
    clock_note,
    nearest,
)
from scepsy_hpc.planning.compared import MOST_DIFFERENCE, BatchCheck, Checker
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.pipeline.closed_network import ClosedState
from scepsy_hpc.planning.pipeline.makespan import longest_s, makespan
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline
from scepsy_hpc.planning.pipeline.predict import closed_state
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.certificate import certify
from scepsy_hpc.planning.search.problem import OptionTable, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.targets import Deadline

MOST_BUDGETS = 12
"""Numbers of GPUs that are tried, those of the lowest bound first."""

MOST_BATCHES = 6
_RATES = (MAX_UTILISATION, 0.6, 0.25, 0.001)
"""Of the highest: allocations of low latency at these. A batch of few tasks is hardly a load."""
_MOST_OTHERS = 4  # numbers of GPUs that the frontier shows beside those that may be best
_MOST_WORK = 2e6  # stages x population^2 of a closed network; above, rates of an open one are taken
_OPEN_RATES = (0.85, MAX_UTILISATION)  # of capacity
_MOST_IN_FLIGHT = 4096
_RANKED_PART = 0.1  # of the calls: what ranks plans by simulated GPU-hours
_FEWEST_LATE = 4
_WORTH = 0.002  # of the makespan: less is not worth more runs in flight
_IDLE = 1e-6


@dataclass(frozen=True, slots=True)
class _Tried:
    """One allocation with the runs in flight of its shortest makespan.

    Where even one run in flight takes longer than the limit on latency, that many are 0 and
    ``makespan_s`` is the length of that run.
    """

    pipeline: Pipeline
    tables: tuple[OptionTable, ...]
    solution: Solution
    in_flight: int
    makespan_s: float

    def gpu_hours(self, startup_s: float) -> float:
        return gpu_hours(self.solution.num_gpus, startup_s, self.makespan_s)


def gpu_hours(num_gpus: int, startup_s: float, makespan_s: float) -> float:
    """GPU-hours of a batch: its GPUs are held from the start of the engines to the last end."""
    return num_gpus * (startup_s + makespan_s) / 3600.0


def in_time(problem: PlanningProblem, target: Deadline) -> Choice:
    """The batch of fewest GPU-hours that meets the deadline. Raises InfeasibleError, InputError."""
    if len(problem.pipeline.workflows) > 1:
        raise InputError("--tasks: a batch by a deadline is planned for one workflow at a time")
    unit = problem.at_rates(1.0 / problem.pipeline.total_rps)
    fastest = unit.fastest()
    if not fastest.is_feasible:
        raise InfeasibleError(nearest(unit, fastest))
    least_s = _least_makespans_s(unit, target, fastest)
    most_s = target.deadline_s * (1.0 + (MOST_DIFFERENCE if unit.checker else 0.0))
    bounds_h = {
        gpus: gpu_hours(gpus, target.startup_s, time_s)
        for gpus, time_s in least_s.items()
        if time_s <= most_s
    }
    tried = _tried(unit, target, fastest, bounds_h)
    if not any(t.in_flight for t in tried):
        limit_s, found_s = unit.limits.latency_limit_s, min(t.makespan_s for t in tried)
        raise InfeasibleError(
            f"latency limit {limit_s:g} s is out of reach: the nearest feasible limit that was "
            f"found is {found_s:.4g} s, with one run in flight"
        )
    tried = [t for t in tried if t.in_flight]
    near = [t for t in tried if t.makespan_s <= most_s]
    ranked = sorted(near, key=lambda t: (t.gpu_hours(target.startup_s), t.solution.num_gpus))
    if unit.checker is not None:
        bound_h = min(bounds_h.values(), default=math.inf)
        return _simulated_in_time(unit, unit.checker, target, ranked, tried, bound_h)
    if bounds_h and ranked:
        frontier = _frontier(target, tried)
        return _choice(unit, target, ranked[0], min(bounds_h.values()), frontier)
    nearest_s = min(t.makespan_s for t in tried)
    proved = not bounds_h and fastest.proved
    raise InfeasibleError(_out_of_reach(target, nearest_s, "predicted", proved))


def _out_of_reach(target: Deadline, nearest_s: float, by: str, proved: bool = False) -> str:
    said = (
        f"{target.num_tasks} tasks by a deadline of {target.deadline_s:g} s are out of reach here: "
        f"the nearest feasible deadline that was found is {math.ceil(nearest_s - 1e-6)} s ({by})"
    )
    return said if proved else f"{said}; that none meets the one asked for is not proved"


def _least_makespans_s(
    unit: PlanningProblem, target: Deadline, fastest: Solution
) -> dict[int, float]:
    """What no makespan on so many GPUs is shorter than, wherever one more GPU may help."""
    idle = solve(unit.at_rates(_IDLE * fastest.throughput_rps).least_latency(capped=False))
    run_s = unit.pipeline.mean_latency_s(idle.bound) if idle.is_feasible else 0.0
    batch = unit.batch(target.num_tasks, 1)
    longest = longest_s(run_s, batch)
    curves = [offer.curve for offers in unit.offers.values() for offer in offers.found]
    peak = max(curve.capacity_rps / curve.usable_rps for curve in curves)
    return {
        point.num_gpus: max(target.num_tasks / (point.bound * peak), longest)
        for point in fastest.frontier
        if point.bound > 0
    }


def _tried(
    unit: PlanningProblem, target: Deadline, fastest: Solution, bounds_h: dict[int, float]
) -> list[_Tried]:
    """Allocations on the numbers of GPUs that may be best, those of the lowest bound first.

    Some others are there for the frontier, and the most GPUs for the nearest deadline.
    """
    most_rps = {point.num_gpus: point.value or point.bound for point in fastest.frontier}
    found: list[_Tried] = []
    best_h, seen = math.inf, set[int]()
    for gpus in sorted(bounds_h, key=lambda gpus: (bounds_h[gpus], gpus)):
        if bounds_h[gpus] >= best_h or len(seen) >= MOST_BUDGETS:
            break
        seen.add(gpus)
        for tried in _on(unit, target, most_rps[gpus], gpus, _RATES):
            found.append(tried)
            if tried.in_flight and tried.makespan_s <= target.deadline_s:
                best_h = min(best_h, tried.gpu_hours(target.startup_s))
    others = sorted(set(most_rps) - seen)
    step = max(-(-len(others) // _MOST_OTHERS), 1)
    for gpus in others[::-1][::step]:
        rates = _RATES if math.isinf(best_h) else (_RATES[0], _RATES[-1])
        found += _on(unit, target, most_rps[gpus], gpus, rates)
    return found


def _on(
    unit: PlanningProblem,
    target: Deadline,
    most_rps: float,
    gpus: int,
    rates: tuple[float, ...],
) -> Iterator[_Tried]:
    """Allocations on at most so many GPUs, of lowest latency at a few rates up to the highest."""
    seen: list[Solution] = []
    for part in rates:
        here = unit.at_rates(most_rps * part * JUST_BELOW)
        search = here.least_latency(gpus, capped=False)
        solution = solve(search)
        if solution.is_feasible and all(solution.chosen != other.chosen for other in seen):
            seen.append(solution)
            hosted = here.pipeline.hosted_by(solution.chosen)
            placed = replace(here, pipeline=here.placed(solution))
            in_flight, time_s = shortest(placed, hosted, target)
            yield _Tried(placed.pipeline, search.tables, solution, in_flight, time_s)


def shortest(
    problem: PlanningProblem, hosted: tuple[HostedStage, ...], target: Deadline
) -> tuple[int, float]:
    """Runs in flight of the shortest makespan, and that makespan.

    Throughput grows with the runs in flight until a stage is full; from then on they only wait, and
    the drain grows. Of those that are as good within ``_WORTH`` the fewest. A mean run is never
    longer than the limit on latency; where one alone is: (0, its length).
    """
    limit_s = math.inf if (given := problem.limits.latency_limit_s) is None else given
    known: dict[int, float] = {}
    alone, _ = closed_state(problem.pipeline, hosted, 1, with_calls=False)

    def time_s(num: int) -> float:
        if num not in known:
            state, _ = closed_state(problem.pipeline, hosted, num, with_calls=False)
            batch = problem.batch(target.num_tasks, num)
            is_short = state.run_s <= limit_s
            known[num] = makespan(state, alone, batch)[0] if is_short else math.inf
        return known[num]

    if math.isinf(time_s(1)):
        return 0, alone.run_s
    most = min(target.num_tasks, _MOST_IN_FLIGHT, int(math.sqrt(_MOST_WORK / len(hosted))))
    num, before_s = 1, math.inf
    while time_s(num) < before_s * (1.0 - _WORTH) and num < most:
        num, before_s = min(2 * num, most), time_s(num)
    time_s(num)
    for _ in range(4):  # halve the steps around the best
        ranked = sorted(known)
        at = ranked.index(min(known, key=lambda n: (known[n], n)))
        for low, high in zip(ranked[max(at - 1, 0) : at + 1], ranked[at : at + 2], strict=False):
            time_s((low + high) // 2)
    if most < min(target.num_tasks, _MOST_IN_FLIGHT):
        known |= {
            num: seconds
            for num, seconds in _as_open(problem, hosted, target, limit_s, alone)
            if most < num <= min(target.num_tasks, _MOST_IN_FLIGHT)
        }
    enough_s = min(known.values()) * (1.0 + _WORTH)
    best = min(num for num, seconds in known.items() if seconds <= enough_s)
    return best, known[best]


def _as_open(
    problem: PlanningProblem,
    hosted: tuple[HostedStage, ...],
    target: Deadline,
    limit_s: float,
    alone: ClosedState,
) -> Iterator[tuple[int, float]]:
    """Many runs in flight and their makespan: so many differ little from open arrivals at a rate.

    By Little's law a rate of runs of that length keeps rate x length of them in flight.
    """
    pipeline = problem.pipeline
    most_rps = pipeline.total_rps * min(pipeline.theta(host) for host in hosted)
    for part in _OPEN_RATES:
        rate_rps = part * most_rps * JUST_BELOW
        here = pipeline.at_rates(rate_rps / pipeline.total_rps)
        run_s = here.mean_latency_s(here.cost_on(hosted))
        if run_s <= limit_s:
            num = max(math.ceil(rate_rps * run_s), 1)
            state = ClosedState(rate_rps, run_s, ())
            batch = problem.batch(target.num_tasks, num)
            yield num, makespan(state, alone, batch)[0]


@dataclass(frozen=True, slots=True)
class _Simulated:
    """One that was tried, and what simulation says of it."""

    one: _Tried
    check: BatchCheck

    @property
    def makespan_s(self) -> float:
        return self.check.figures.makespan_s or 0.0

    def gpu_hours(self, startup_s: float) -> float:
        return gpu_hours(self.one.solution.num_gpus, startup_s, self.makespan_s)

    def mostly_misses(self, deadline_s: float) -> bool:
        """Half of the simulated batches are late: 95% in time is out of the question."""
        late = sum(time_s > deadline_s for time_s in self.check.makespans_s)
        return len(self.check.makespans_s) >= _FEWEST_LATE and 2 * late >= len(
            self.check.makespans_s
        )


def _simulated_in_time(
    unit: PlanningProblem,
    checker: Checker,
    target: Deadline,
    ranked: list[_Tried],
    tried: list[_Tried],
    bound_h: float,
) -> Choice:
    """The fewest simulated GPU-hours among the best few by prediction that meet the deadline.

    Its certificate is in predicted figures.
    """
    candidates = _candidates(ranked, tried)
    part = 1.0 if len(candidates) == 1 else _RANKED_PART
    simulated = [_simulate(unit, checker, target, one, part) for one in candidates]
    simulated.sort(key=lambda s: (s.gpu_hours(target.startup_s), s.one.solution.num_gpus))
    missed: list[float] = []
    skipped = [s for s in simulated if s.mostly_misses(target.deadline_s)]
    for found in simulated:
        if found in skipped:
            continue
        ends_s = _ends_s(unit, checker, target, found)
        if (kept_s := p95_s(ends_s)) > target.deadline_s:
            missed.append(kept_s)
            continue
        choice = _choice(unit, target, found.one, bound_h, _frontier(target, tried))
        figures = _simulate(unit, checker, target, found.one, 1.0).check.figures
        figures = replace(
            figures, flags=(*figures.flags, *few_flag(unit.pipeline.workflows[0].name, len(ends_s)))
        )
        known = PlannedBatch(found.one.in_flight, kept_s)
        number = len(missed) + len(skipped)
        notes = (*choice.notes, *_ranked_notes(len(simulated), number, kept_s, len(ends_s)))
        return replace(choice, batch=known, simulated=figures, notes=notes)
    if skipped:
        fastest = min(skipped, key=lambda s: s.makespan_s)
        missed.append(p95_s(_ends_s(unit, checker, target, fastest)))
    raise InfeasibleError(_out_of_reach(target, min(missed), "simulated, 95% of batches"))


def _candidates(ranked: list[_Tried], tried: list[_Tried]) -> list[_Tried]:
    """The best few by prediction, and the shortest: it may meet what few predictions meet."""
    found: list[_Tried] = []
    for one in [*ranked[: MOST_BATCHES - 1], min(tried, key=lambda one: one.makespan_s)]:
        if one not in found:
            found.append(one)
    return found


def _simulate(
    unit: PlanningProblem, checker: Checker, target: Deadline, one: _Tried, part: float
) -> _Simulated:
    hosted = one.pipeline.hosted_by(one.solution.chosen)
    batch = unit.batch(target.num_tasks, one.in_flight)
    return _Simulated(one, checker.batch(one.pipeline, hosted, batch, part))


def _ends_s(
    unit: PlanningProblem, checker: Checker, target: Deadline, found: _Simulated
) -> list[float]:
    one = found.one
    hosted = one.pipeline.hosted_by(one.solution.chosen)
    batch = unit.batch(target.num_tasks, one.in_flight)
    return checker.ends_s(one.pipeline, hosted, batch)


def _ranked_notes(
    num_simulated: int, num_missed: int, kept_s: float, num_batches: int
) -> list[str]:
    notes = [
        f"95% of batches end within {kept_s:.4g} s, by {num_batches} simulated ones; of "
        f"{num_simulated} plans that were simulated this takes the fewest simulated GPU-hours "
        "(certificate: by prediction)"
    ]
    if num_missed:
        notes.append(f"{num_missed} others miss the deadline when they are simulated")
    return notes


def _choice(
    unit: PlanningProblem,
    target: Deadline,
    one: _Tried,
    bound_h: float,
    frontier: Frontier,
) -> Choice:
    value_h = one.gpu_hours(target.startup_s)
    notes = [
        f"the fewest GPU-hours found for {target.num_tasks} tasks within {target.deadline_s:g} s: "
        f"{one.solution.num_gpus} GPU(s) x ({target.startup_s:g} s start-up + "
        f"{one.makespan_s:.4g} s) with {one.in_flight} runs in flight"
    ]
    certificate: Certificate = certify("gpu_hours", value_h, min(bound_h, value_h))
    return Choice(
        one.pipeline,
        one.tables,
        one.solution,
        certificate,
        PlannedBatch(one.in_flight),
        (*notes, *clock_note(unit.limits)),
        frontier=frontier,
    )


def _frontier(target: Deadline, tried: list[_Tried]) -> Frontier:
    """Fewest GPU-hours that were found on so many GPUs, the deadline or not."""
    found: dict[int, float] = {}
    for one in tried:
        gpus, hours = one.solution.num_gpus, one.gpu_hours(target.startup_s)
        found[gpus] = min(hours, found.get(gpus, math.inf))
    return Frontier("fewest GPU-hours found", "GPU-h", found)
