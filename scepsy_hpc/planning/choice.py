"""From a target to a choice: which searches are asked, at which rates, and what certifies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scepsy_hpc.cluster.topology import Topology
from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.planning.certificate import certify
from scepsy_hpc.planning.curves import MAX_UTILISATION, Curve
from scepsy_hpc.planning.kinds import Offers
from scepsy_hpc.planning.options import OptionTable, Problem, Solution
from scepsy_hpc.planning.pipeline import Pipeline
from scepsy_hpc.planning.plan import Certificate
from scepsy_hpc.planning.predict import Batch, Hosted, closed_state, makespan
from scepsy_hpc.planning.search import solve
from scepsy_hpc.planning.tails import Tails
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Target

_RATE_TOLERANCE = 1e-3
_JUST_BELOW = 1.0 - 1e-9
_HEADROOM = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
"""Plans that keep a tail short are those for higher rates: these times the one asked for."""


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
    def hosted(self) -> tuple[Hosted, ...]:
        """Stages on what was chosen for them."""
        return hosted_by(self.pipeline, self.solution)


def hosted_by(pipeline: Pipeline, solution: Solution) -> tuple[Hosted, ...]:
    """Stages on the options of a solution."""
    found = []
    for stage in pipeline.stages:
        option = solution.chosen[stage.name]
        assert isinstance(option.payload, Curve)
        found.append(Hosted(stage, option.payload, option.num_replicas))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Case:
    """One planning problem: the workflows at their rates, what each LLM may run on, the GPUs."""

    pipeline: Pipeline
    offers: Mapping[str, Offers]
    topology: Topology
    limits: Limits
    run_lengths_s: tuple[float, ...] = ()
    tails: Tails | None = None

    def keeps_p95(self, pipeline: Pipeline, solution: Solution) -> bool:
        """Whether a solution at the rates of ``pipeline`` keeps the limit on the p95."""
        limit_s = self.limits.p95_limit_s
        if limit_s is None or self.tails is None:
            return True
        return self.tails.p95_s(pipeline, hosted_by(pipeline, solution)) <= limit_s

    def tables(self, pipeline: Pipeline, with_cost: bool = True) -> tuple[OptionTable, ...]:
        """The search's options at the rates of ``pipeline``."""
        room = {
            name: [(offer.curve, offer.most_replicas) for offer in offers.found]
            for name, offers in self.offers.items()
        }
        return pipeline.tables(room, with_cost)

    def cheapest(
        self,
        pipeline: Pipeline,
        num_gpus: int | None = None,
        within_pct: float | None = None,
        capped: bool = True,
    ) -> tuple[Solution, tuple[OptionTable, ...]]:
        """Least mean latency at the rates of ``pipeline`` on at most so many GPUs."""
        limit_s = self.limits.latency_limit_s if capped else None
        tables = self.tables(pipeline)
        problem = Problem(
            tables,
            self.topology,
            "min_cost",
            max_gpus=_least(num_gpus, self.limits.num_gpus),
            max_cost_s=None if limit_s is None else limit_s - pipeline.tool_time_s,
            within_pct=within_pct,
        )
        return solve(problem), tables

    def fastest(self, within_pct: float | None = None) -> Solution:
        """Largest throughput, in units of the pipeline's rates; costs are left out."""
        tables = self.tables(self.pipeline, with_cost=False)
        return solve(
            Problem(
                tables,
                self.topology,
                "max_throughput",
                max_gpus=self.limits.num_gpus,
                within_pct=within_pct,
            )
        )


def _least(*values: int | None) -> int | None:
    return min((v for v in values if v is not None), default=None)


def choose(case: Case, target: Target) -> Choice:
    """The best choice for the target. Raises InfeasibleError, InputError."""
    if case.limits.p95_limit_s is not None:
        if isinstance(target, Deadline):
            raise InputError("--p95-limit: belongs to --rate or --max-throughput, not to --tasks")
        if case.tails is None:
            raise InputError("--p95-limit: needs the workflow's spans to replay")
    if isinstance(target, MaxThroughput):
        return _most(case)
    if isinstance(target, Deadline):
        return _in_time(case, target)
    return _at_rate(case)


def _at_rate(case: Case) -> Choice:
    pipeline = case.pipeline
    solution, tables = case.cheapest(pipeline)
    if not solution.is_feasible:
        raise InfeasibleError(_nearest(case, solution))
    bound = solution.bound
    notes: tuple[str, ...] = ()
    if case.limits.within_pct is not None:
        best_s = solution.cost_s + pipeline.tool_time_s
        # The percentage is of the whole latency; the search only knows the part of the LLMs.
        within = case.limits.within_pct * best_s / max(solution.cost_s, 1e-12)
        few, tables = case.cheapest(pipeline, within_pct=within)
        notes = (
            f"within {case.limits.within_pct:g}%: {few.num_gpus} instead of {solution.num_gpus} "
            f"GPUs; the best mean latency is {best_s:.4g} s",
        )
        solution = few if few.is_feasible else solution
    if not case.keeps_p95(pipeline, solution):
        solution, note = _with_headroom(case)
        notes = (*notes, note)
    certificate = certify("latency_mean_s", solution.cost_s, bound, pipeline.tool_time_s)
    return Choice(pipeline, tables, solution, certificate, notes=notes)


def _with_headroom(case: Case) -> tuple[Solution, str]:
    """Of the best plans for higher rates, the one of lowest mean here that keeps the p95 limit."""
    pipeline, limit_s = case.pipeline, case.limits.p95_limit_s
    found: list[Solution] = []
    for factor in _HEADROOM:
        solution, _ = case.cheapest(pipeline.at_rates(factor), capped=False)
        if solution.is_feasible:
            hosted = hosted_by(pipeline, solution)
            cost_s = math.fsum(_cost_s(pipeline, host) for host in hosted)
            found.append(replace(solution, value=cost_s, cost_s=cost_s))
    assert case.tails is not None
    p95_s = [case.tails.p95_s(pipeline, hosted_by(pipeline, s)) for s in found]
    good = [s for s, p in zip(found, p95_s, strict=True) if p <= (limit_s or 0.0)]
    most_s = case.limits.latency_limit_s
    good = [s for s in good if most_s is None or s.cost_s + pipeline.tool_time_s <= most_s]
    if not good:
        raise InfeasibleError(
            f"p95 limit {limit_s:g} s is out of reach here: of {len(found)} plans that were "
            f"replayed the nearest reaches {min(p95_s, default=math.inf):.4g} s"
        )
    note = f"p95 limit {limit_s:g} s: kept by replay; it changed the order of {len(found)} plans"
    return min(good, key=lambda s: s.cost_s), note


def _cost_s(pipeline: Pipeline, host: Hosted) -> float:
    """Seconds of a run's mean latency in one stage."""
    rates = pipeline.rates_rps
    load = host.stage.calls_rps(rates) / host.num_replicas
    burst = host.stage.burst(rates, host.num_replicas)
    rounds = pipeline.rounds(host.stage)
    return rounds * host.curve.latency_s(load, burst) if rounds > 0 else 0.0


def _nearest(case: Case, solution: Solution) -> str:
    """What would be feasible: the highest rate here, or the lowest latency."""
    rates = ", ".join(f"{w.name} {w.rate_rps:g}" for w in case.pipeline.workflows)
    fastest = case.fastest()
    if not fastest.is_feasible:
        return f"no plan fits: {fastest.refused}; free more GPUs or allow smaller shares"
    theta = fastest.throughput_rps * MAX_UTILISATION * _JUST_BELOW
    if theta < 1.0:
        near = ", ".join(f"{w.name} {w.rate_rps * theta:.4g}" for w in case.pipeline.workflows)
        return (
            f"rate {rates} runs/s is out of reach here: the nearest feasible rate is {near} runs/s "
            f"({100 * MAX_UTILISATION:.0f}% of capacity on {fastest.num_gpus} GPUs)"
        )
    if solution.nearest_cost_s is not None:
        nearest_s = solution.nearest_cost_s + case.pipeline.tool_time_s
        return (
            f"latency limit {case.limits.latency_limit_s:g} s at rate {rates} runs/s is out of "
            f"reach: the nearest feasible limit is {nearest_s:.4g} s"
        )
    return f"rate {rates} runs/s: {solution.refused}"


def _most(case: Case) -> Choice:
    """The highest rate at 95% of capacity; with a latency limit, the highest that keeps it."""
    fastest = case.fastest(case.limits.within_pct)
    if not fastest.is_feasible:
        raise InfeasibleError(_nearest(case, fastest))
    gpus = fastest.num_gpus if case.limits.within_pct is not None else None
    factor = fastest.throughput_rps * MAX_UTILISATION * _JUST_BELOW
    solution, tables = case.cheapest(case.pipeline.at_rates(factor), gpus)
    bound = fastest.bound * case.pipeline.total_rps
    pipeline = case.pipeline.at_rates(factor)
    if not (solution.is_feasible and case.keeps_p95(pipeline, solution)):
        factor, above = _highest_within(case, factor, gpus)
        solution, tables = case.cheapest(case.pipeline.at_rates(factor), gpus)
        total_rps = case.pipeline.total_rps
        note = "the limit on latency, not capacity, ends the rate"
        if case.limits.p95_limit_s is not None:
            # No search bounds a percentile: what is proved is only the rate without that limit.
            above = fastest.bound * MAX_UTILISATION
            note += "; the p95 was replayed for the plan of lowest mean at each rate"
        certificate = certify("rate_rps", factor * total_rps, above * total_rps)
        return Choice(case.pipeline.at_rates(factor), tables, solution, certificate, notes=(note,))
    value = min(
        pipeline.theta(h.stage, h.curve, h.num_replicas) for h in hosted_by(pipeline, solution)
    )
    certificate = certify("throughput_rps", min(value * pipeline.total_rps, bound), bound)
    return Choice(pipeline, tables, solution, certificate)


def _highest_within(case: Case, highest: float, gpus: int | None) -> tuple[float, float]:
    """Largest feasible factor of the rates, and one just above that is not."""
    low, high = 0.0, highest
    slow = case.pipeline.at_rates(highest * 1e-6)
    idle, _ = case.cheapest(slow, gpus)
    if not idle.is_feasible:
        raise InfeasibleError(_nearest(replace(case, pipeline=slow), idle))
    if not case.keeps_p95(slow, idle):
        raise InfeasibleError(
            f"p95 limit {case.limits.p95_limit_s:g} s is out of reach here at any rate"
        )
    while high - low > _RATE_TOLERANCE * high:
        middle = (low + high) / 2.0
        pipeline = case.pipeline.at_rates(middle)
        solution, _ = case.cheapest(pipeline, gpus)
        good = solution.is_feasible and case.keeps_p95(pipeline, solution)
        low, high = (middle, high) if good else (low, middle)
    return low, high


def _in_time(case: Case, target: Deadline) -> Choice:
    """Fewest GPUs whose closed batch ends in time, and on them the lowest latency."""
    if len(case.pipeline.workflows) > 1:
        raise InputError("--tasks: a batch by a deadline is planned for one workflow at a time")
    unit = replace(case, pipeline=case.pipeline.at_rates(1.0 / case.pipeline.total_rps))
    fastest = unit.fastest()
    if not fastest.is_feasible:
        raise InfeasibleError(_nearest(unit, fastest))
    most_rps = fastest.throughput_rps * MAX_UTILISATION * _JUST_BELOW
    rate = target.num_tasks / target.deadline_s
    best: Choice | None = None
    shortest_s = math.inf
    while True:
        rate = min(rate, most_rps)
        for gpus in _budgets(unit, rate):
            choice, time_s = _batch_on(unit, target, rate, gpus)
            shortest_s = min(shortest_s, time_s)
            if choice is not None and time_s <= target.deadline_s:
                best = choice
                break
        if best is not None:
            return best
        if rate >= most_rps:
            raise InfeasibleError(
                f"{target.num_tasks} tasks by a deadline of {target.deadline_s:g} s are out of "
                f"reach here: the nearest feasible deadline is about {shortest_s:.0f} s"
            )
        rate *= 1.25


def _budgets(case: Case, rate: float) -> list[int]:
    """Numbers of GPUs worth trying at a rate, fewest first."""
    solution, _ = case.cheapest(case.pipeline.at_rates(rate))
    if not solution.is_feasible:
        return []
    return sorted({point.num_gpus for point in solution.frontier} | {solution.num_gpus})


def _batch_on(case: Case, target: Deadline, rate: float, gpus: int) -> tuple[Choice | None, float]:
    """Lowest latency at a rate on so many GPUs, with the fewest runs in flight that suffice."""
    pipeline = case.pipeline.at_rates(rate)
    solution, tables = case.cheapest(pipeline, gpus)
    if not solution.is_feasible:
        return None, math.inf
    hosted = hosted_by(pipeline, solution)
    in_flight, time_s = _fewest_in_flight(case, target, pipeline, hosted)
    certificate = certify("latency_mean_s", solution.cost_s, solution.bound, pipeline.tool_time_s)
    note = f"the fewest GPUs that end {target.num_tasks} tasks in {target.deadline_s:g} s"
    return Choice(pipeline, tables, solution, certificate, in_flight, (note,)), time_s


def _fewest_in_flight(
    case: Case, target: Deadline, pipeline: Pipeline, hosted: tuple[Hosted, ...]
) -> tuple[int, float]:
    """Fewest runs in flight that keep the deadline, else those of the shortest makespan."""

    def time_s(num: int) -> float:
        state, _ = closed_state(pipeline, hosted, num)
        return makespan(state, Batch(target.num_tasks, num, case.run_lengths_s))[0]

    tried = {1: time_s(1)}
    num = 1
    while num < min(target.num_tasks, 4096) and tried[num] > target.deadline_s:
        num = min(2 * num, target.num_tasks, 4096)
        tried[num] = time_s(num)
    good = [k for k, s in tried.items() if s <= target.deadline_s]
    if not good:
        best = min(tried, key=lambda k: tried[k])
        return best, tried[best]
    high = min(good)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = time_s(middle)
        low, high = (low, middle) if tried[middle] <= target.deadline_s else (middle, high)
    return high, tried[high]
