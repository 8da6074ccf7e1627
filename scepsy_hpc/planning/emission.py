"""A choice written down as a plan: deployments, placement, allocation, prediction, reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import (
    Plan,
    PlanInput,
    PlanWorkflow,
)
from scepsy_hpc.formats.points import POINTS_FILE
from scepsy_hpc.planning.allocation import allocation_of
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.compared import with_closed_throughput, with_differences
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.explain import explain
from scepsy_hpc.planning.inputs import input_of
from scepsy_hpc.planning.offers import Offer
from scepsy_hpc.planning.outline import deployments_on
from scepsy_hpc.planning.pipeline.deployments import deployments_of
from scepsy_hpc.planning.pipeline.host_time import MAX_HOST_UTILISATION
from scepsy_hpc.planning.pipeline.predict import predict_batch, predict_open
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.rests_on import rests_on
from scepsy_hpc.planning.routing_choice import routed
from scepsy_hpc.planning.simulation.tails import with_tails
from scepsy_hpc.planning.targets import Deadline, MaxThroughput, Target

_ABOUT = 0.02
"""A closed load whose throughput is so near the rate carries it."""


def emit(request: PlanRequest, problem: PlanningProblem, choice: Choice) -> Plan:
    """The plan of a choice: what it hosts where, what it asks for, what it should reach."""
    searched, choice = choice, _with_cores(problem, choice, request.target)
    predicted = _predicted(problem, choice, request.target)
    in_flight = {flow.name: _in_flight(choice, predicted, flow.name) for flow in request.flows}
    problem, choice, routing_notes = routed(request, problem, choice, in_flight)
    choice, carried_notes = _carried(problem, choice, request.target, in_flight)
    if carried_notes:
        predicted = _predicted(problem, choice, request.target)
    simulated = _simulated(problem, choice, request.target, predicted, in_flight)
    names = deployments_of(request.flows)
    placed = choice.solution.instances
    offers = [problem.offers[host.stage.name].of(host.curve) for host in choice.hosted]
    certificate = choice.certificate
    if certificate is not None:
        certificate = replace(certificate, rests_on=rests_on(choice, predicted))
    return Plan(
        workflows=tuple(
            PlanWorkflow(
                name=flow.name,
                llms=names[flow.name],
                rate_rps=None if choice.batch else choice.pipeline.rates_rps[flow.name],
                max_runs_in_flight=in_flight[flow.name],
                agent=flow.agent,
            )
            for flow in request.flows
        ),
        llms=deployments_on(choice.hosted, problem.offers),
        instances=placed,
        allocation=allocation_of(
            placed, problem.topology, _time_min(request.target, choice, predicted)
        ),
        routing=problem.routing,
        predicted=predicted,
        simulated=simulated,
        demand={flow.name: request.demands[flow.name].summary for flow in request.flows},
        certificate=certificate,
        inputs=(*request.inputs, *_profiles(offers)),
        explanation=(
            *explain(searched, problem.offers, predicted, request.demands),
            *choice.pipeline.cores_said,
            *routing_notes,
            *carried_notes,
        ),
    )


def _with_cores(problem: PlanningProblem, choice: Choice, target: Target) -> Choice:
    """The choice with the cores that its agents share; the highest rate is one they can do."""
    cores = problem.agent_cores(choice.solution)
    pipeline = replace(choice.pipeline, agent_cores=cores)
    if pipeline.host and isinstance(target, MaxThroughput):
        most = MAX_HOST_UTILISATION * pipeline.host.factor(pipeline.rates_rps)
        if most < 1.0:
            pipeline = pipeline.at_rates(most * (1 - 1e-9))
            choice = replace(choice, simulated=None)
    return replace(choice, pipeline=pipeline)


def _carried(
    problem: PlanningProblem, choice: Choice, target: Target, in_flight: Mapping[str, int | None]
) -> tuple[Choice, tuple[str, ...]]:
    """The highest rate, lowered where a closed load shows that less is carried, and why."""
    closed = _closed(problem, choice, target, in_flight)
    if closed is None:
        return choice, ()
    parts, most = [], []
    for name, rate_rps in choice.pipeline.rates_rps.items():
        runs = closed.per_workflow[name]
        if runs.throughput_rps is not None:
            parts.append(runs.throughput_rps / rate_rps)
            most.append(runs.intervals.get("throughput_rps", (0.0, math.inf))[1] / rate_rps)
    if not parts or min(most) >= 1.0 - _ABOUT:
        return choice, ()
    pipeline = choice.pipeline.at_rates(MAX_UTILISATION * min(parts))
    said = (
        f"rate: {pipeline.total_rps:.4g} instead of {choice.pipeline.total_rps:.4g} runs/s, "
        f"{100 * MAX_UTILISATION:.0f}% of what a closed load reaches in simulation"
    )
    return replace(choice, pipeline=pipeline, simulated=None), (said,)


def _closed(
    problem: PlanningProblem, choice: Choice, target: Target, in_flight: Mapping[str, int | None]
) -> Figures | None:
    """Simulated figures of a closed load, where throughput is asked for."""
    runs = {name: number for name, number in in_flight.items() if number is not None}
    asked = isinstance(target, MaxThroughput) and choice.certificate is not None
    if problem.checker is None or not asked or len(runs) < len(in_flight):
        return None
    return problem.checker.in_flight(choice.pipeline, choice.hosted, runs)


def _simulated(
    problem: PlanningProblem,
    choice: Choice,
    target: Target,
    predicted: Figures,
    in_flight: dict[str, int | None],
) -> Figures | None:
    """What simulation says of the same, and flags where the two differ; null without spans."""
    if problem.checker is None:
        return None
    found = choice.simulated
    if found is None:
        found = problem.checker.at_rates(choice.pipeline, choice.hosted)
    closed = _closed(problem, choice, target, in_flight)
    if closed is not None:
        number = sum(runs or 0 for runs in in_flight.values())
        found = with_closed_throughput(found, closed, choice.pipeline.rates_rps, number)
    return with_differences(predicted, found)


def _predicted(problem: PlanningProblem, choice: Choice, target: Target) -> Figures:
    if isinstance(target, Deadline):
        in_flight = choice.batch.max_runs_in_flight if choice.batch else 1
        batch = problem.batch(target.num_tasks, in_flight)
        return predict_batch(choice.pipeline, choice.hosted, batch)
    predicted = predict_open(choice.pipeline, choice.hosted)
    if problem.tails is None:
        return predicted
    return with_tails(predicted, problem.tails.figures(choice.pipeline, choice.hosted))


def _in_flight(choice: Choice, predicted: Figures, workflow: str) -> int | None:
    """Runs in flight of a closed batch: the deadline's, else what the rate means (Little's law)."""
    if choice.batch is not None:
        return choice.batch.max_runs_in_flight
    latency_s = predicted.per_workflow[workflow].latency_mean_s
    rate = choice.pipeline.rates_rps[workflow]
    return None if latency_s is None else max(math.ceil(rate * latency_s - 1e-9), 1)


def _time_min(target: Target, choice: Choice, predicted: Figures) -> int | None:
    """Time limit of a batch's job: start-up, and a makespan that 95% of such batches keep."""
    if not isinstance(target, Deadline):
        return None
    known_s = choice.batch.makespan_p95_s if choice.batch else None
    makespan_s = known_s or predicted.makespan_s or target.deadline_s
    return max(math.ceil((target.startup_s + makespan_s) / 60.0), 1)


def _profiles(offers: Sequence[Offer]) -> list[PlanInput]:
    """The points that the curves rest on, where they are in files."""
    paths = dict.fromkeys(offer.bundle.path / POINTS_FILE for offer in offers)
    return [input_of("profile", path) for path in paths if path.is_file()]
