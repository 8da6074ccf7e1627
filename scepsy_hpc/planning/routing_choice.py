"""Which routing rule a plan gets: sticky where simulation shows that it gains, else the default.

Both rules are simulated on the same runs with the same seeds. The sticky rule is adopted where the
figure that the target asks for is better by more than both intervals: they do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.formats.spans import BLOCK_TOKENS, Span
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.outline import outline
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Deadline, MaxThroughput
from scepsy_hpc.tracing.demand.hits import hit_flag

Metric = Literal["latency_mean_s", "throughput_rps", "makespan_s"]


@dataclass(frozen=True, slots=True)
class RoutingChoice:
    """A plan with its rule, its simulated figures, and why; None where nothing was simulated."""

    plan: Plan
    simulated: Figures | None = None
    why: str | None = None


def choose_routing(
    plan: Plan,
    spans_by_workflow: Mapping[str, Sequence[Span]],
    simulate: Callable[[Plan], Figures],
    metric: Metric = "latency_mean_s",
    max_behind: int = Routing().max_behind,
) -> RoutingChoice:
    """The plan under the rule that ``simulate`` shows to be better, by ``metric``.

    The plan stays as it is, and nothing is simulated, where no rule can matter: no deployment of
    several replicas is called with a prompt that repeats an earlier one.
    """
    names = repeating(plan, spans_by_workflow)
    if not names:
        return RoutingChoice(plan)
    least = replace(plan, routing=Routing(max_behind=max_behind))
    sticky = replace(plan, routing=Routing(rule="sticky_prefix", max_behind=max_behind))
    found, found_sticky = simulate(least), simulate(sticky)
    before, after = getattr(found, metric), getattr(found_sticky, metric)
    if not _gains(found, found_sticky, metric):
        why = f"routing: least_in_flight; sticky_prefix shows no gain beyond the interval: {metric}"
        return RoutingChoice(least, found, f"{why} {_text(before)} and {_text(after)}")
    why = f"routing: sticky_prefix, since calls of {', '.join(names)} repeat prompts: {metric}"
    return RoutingChoice(sticky, found_sticky, f"{why} {_text(before)} becomes {_text(after)}")


def routed(
    request: PlanRequest,
    problem: PlanningProblem,
    choice: Choice,
    in_flight: Mapping[str, int | None],
) -> tuple[PlanningProblem, Choice, tuple[str, ...]]:
    """A choice under the rule that is better for it, the problem that checks by it, and why.

    Where throughput is asked for, that of a closed load of ``in_flight`` runs decides. A rule that
    breaks the limit on the 95th percentile is not taken.
    """
    checker, batch = problem.checker, choice.batch
    if checker is None:
        return problem, choice, ()
    tasks = request.target.num_tasks if isinstance(request.target, Deadline) else 0

    runs = {name: number for name, number in in_flight.items() if number is not None}
    by_throughput = isinstance(request.target, MaxThroughput) and len(runs) == len(in_flight)

    def simulate(plan: Plan) -> Figures:
        under = replace(checker, routing=plan.routing)
        if by_throughput:
            return under.in_flight(choice.pipeline, choice.hosted, runs)
        if batch is None:
            return under.at_rates(choice.pipeline, choice.hosted)
        closed = problem.batch(tasks, batch.max_runs_in_flight)
        return under.batch(choice.pipeline, choice.hosted, closed).figures

    plan = outline(choice.pipeline, choice.hosted, problem.offers)
    metric: Metric = "makespan_s" if batch else "latency_mean_s"
    if by_throughput:
        metric = "throughput_rps"
    found = choose_routing(plan, request.spans, simulate, metric)
    if found.simulated is None or found.why is None:
        return problem, choice, _hits(request, plan)
    if (
        found.plan.routing.rule != plan.routing.rule
        and _p95_s(found.simulated) > problem.p95_limit_s
    ):
        return (
            problem,
            choice,
            (f"{found.why}, but not the limit on the 95th percentile: not taken",),
        )
    checked_by = replace(checker, routing=found.plan.routing)
    return (
        replace(problem, checker=checked_by),
        replace(choice, simulated=None if by_throughput else found.simulated),
        (found.why, *_hits(request, found.plan)),
    )


def _p95_s(figures: Figures) -> float:
    known = [runs.latency_p95_s for runs in figures.per_workflow.values()]
    return max((math.inf if p95_s is None else p95_s for p95_s in known), default=math.inf)


def _hits(request: PlanRequest, plan: Plan) -> tuple[str, ...]:
    """What of each LLM's input is counted as cached."""
    found: list[str] = []
    for flow in plan.workflows:
        for alias, name in flow.llms.items():
            demand = request.demands[flow.name].summary.llms[alias]
            said = hit_flag(demand, plan.llms[name].num_replicas, plan.routing)
            found += [f"{flow.name}, {alias}: {said}"] if said else []
    return tuple(found)


def repeating(plan: Plan, spans_by_workflow: Mapping[str, Sequence[Span]]) -> list[str]:
    """Deployments of several replicas of which some call repeats at least a block of a prompt."""
    llms = {workflow.name: workflow.llms for workflow in plan.workflows}
    found = {
        llms.get(name, {}).get(alias, alias)
        for name, spans in spans_by_workflow.items()
        for alias in _repeated_aliases(spans)
    }
    return [name for name, llm in plan.llms.items() if llm.num_replicas > 1 and name in found]


def _repeated_aliases(spans: Iterable[Span]) -> set[str]:
    return {
        span.llm
        for span in spans
        if span.llm is not None
        and span.prefix_of is not None
        and span.prefix_of.tokens >= BLOCK_TOKENS
    }


def _gains(before: Figures, after: Figures, metric: Metric) -> bool:
    """Better beyond both intervals; a load that only the second carries is better as well."""
    old, new = _interval(before, metric), _interval(after, metric)
    if new is None:
        return False
    if old is None:
        return True
    return new[0] > old[1] if metric == "throughput_rps" else new[1] < old[0]


def _interval(figures: Figures, metric: Metric) -> tuple[float, float] | None:
    value = getattr(figures, metric)
    return None if value is None else figures.intervals.get(metric, (value, value))


def _text(value: float | None) -> str:
    return "unknown (overloaded)" if value is None else f"{value:.4g}"
