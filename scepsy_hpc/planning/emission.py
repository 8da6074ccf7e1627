"""A choice written down as a plan: deployments, placement, allocation, prediction, reasons."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import (
    Allocation,
    Component,
    Deployment,
    Instance,
    Plan,
    PlanInput,
    PlanWorkflow,
)
from scepsy_hpc.formats.points import POINTS_FILE
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.planning.choose import Choice
from scepsy_hpc.planning.explain import explain
from scepsy_hpc.planning.inputs import input_of
from scepsy_hpc.planning.offers import Offer
from scepsy_hpc.planning.pipeline.deployments import deployments_of
from scepsy_hpc.planning.pipeline.predict import ClosedBatch, predict_batch, predict_open
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.simulation.tails import with_tails
from scepsy_hpc.planning.targets import Deadline, Target

CPUS_PER_GPU = 4
"""What an engine needs to feed one GPU: its API server, its scheduler and a tokenizer."""

_START_MIN = 20  # engines load weights and compile before the first task


def emit(request: PlanRequest, problem: PlanningProblem, choice: Choice) -> Plan:
    """The plan of a choice: what it hosts where, what it asks for, what it should reach."""
    predicted = _predicted(problem, choice, request.target)
    names = deployments_of(request.flows)
    placed = choice.solution.instances
    hosts = [(host, problem.offers[host.stage.name].of(host.curve)) for host in choice.hosted]
    return Plan(
        workflows=tuple(
            PlanWorkflow(
                name=flow.name,
                llms=names[flow.name],
                rate_rps=choice.pipeline.rates_rps[flow.name],
                max_runs_in_flight=_in_flight(choice, predicted, flow.name),
                agent=flow.agent,
            )
            for flow in request.flows
        ),
        llms={
            host.stage.name: deployment_of(offer, host.num_replicas, host.stage.spec.engine_args)
            for host, offer in hosts
        },
        instances=placed,
        allocation=allocation_of(placed, problem.topology, _time_min(request.target)),
        predicted=predicted,
        demand={flow.name: request.demands[flow.name].summary for flow in request.flows},
        certificate=choice.certificate,
        inputs=(*request.inputs, *_profiles([offer for _, offer in hosts])),
        explanation=explain(choice, problem.offers, predicted, request.demands),
    )


def deployment_of(offer: Offer, num_replicas: int, engine_args: EngineArgs) -> Deployment:
    """A deployment on an offer; the workflow's engine arguments go before the profile's."""
    curve, header = offer.curve, offer.bundle.header
    return Deployment(
        model=header.model,
        engine=header.engine,
        engine_version=header.engine_version,
        engine_args={**header.engine_args, **engine_args},
        bundle_sha256=offer.bundle.sha256,
        gpu_type=curve.kind.gpu_type,
        link=curve.kind.link,
        tp_degree=curve.kind.tp_degree,
        gpu_share_pct=curve.kind.gpu_share_pct,
        memory_gib=round(curve.memory_gib, 3),
        num_replicas=num_replicas,
        precision=header.precision,
        capacity_rps=curve.capacity_rps,
    )


def _predicted(problem: PlanningProblem, choice: Choice, target: Target) -> Figures:
    if isinstance(target, Deadline):
        in_flight = choice.max_runs_in_flight or 1
        batch = ClosedBatch(target.num_tasks, in_flight, problem.run_lengths_s)
        return predict_batch(choice.pipeline, choice.hosted, batch)
    predicted = predict_open(choice.pipeline, choice.hosted)
    if problem.tails is None:
        return predicted
    return with_tails(predicted, problem.tails.figures(choice.pipeline, choice.hosted))


def _in_flight(choice: Choice, predicted: Figures, workflow: str) -> int | None:
    """Runs in flight of a closed batch: the deadline's, else what the rate means (Little's law)."""
    if choice.max_runs_in_flight is not None:
        return choice.max_runs_in_flight
    latency_s = predicted.per_workflow[workflow].latency_mean_s
    rate = choice.pipeline.rates_rps[workflow]
    return None if latency_s is None else max(math.ceil(rate * latency_s - 1e-9), 1)


def _time_min(target: Target) -> int | None:
    if not isinstance(target, Deadline):
        return None
    return math.ceil(target.deadline_s / 60.0) + _START_MIN


def allocation_of(
    instances: Sequence[Instance], topology: Topology, time_min: int | None = None
) -> Allocation:
    """What to ask Slurm for: nodes of one GPU type that need equally many GPUs are a component."""
    used: dict[str, set[int]] = defaultdict(set)
    for instance in instances:
        used[instance.node] |= set(instance.gpus)
    types = {node.name: node.gpu_type for node in topology.nodes}
    counts = Counter((types[node], len(gpus)) for node, gpus in used.items())
    return Allocation(
        components=tuple(
            Component(
                num_nodes=number,
                gpus_per_node=gpus,
                gpu_type=gpu_type,
                cpus_per_gpu=CPUS_PER_GPU,
                time_min=time_min,
            )
            for (gpu_type, gpus), number in sorted(
                counts.items(), key=lambda c: (c[0][0], -c[0][1])
            )
        )
    )


def _profiles(offers: Sequence[Offer]) -> list[PlanInput]:
    """The points that the curves rest on, where they are in files."""
    paths = dict.fromkeys(offer.bundle.path / POINTS_FILE for offer in offers)
    return [input_of("profile", path) for path in paths if path.is_file()]
