"""The plan from its inputs: aggregate, search, place, predict, explain."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.files import sha256_file
from scepsy_hpc.formats.bundle import Bundle
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
from scepsy_hpc.formats.spans import Span, spans_of_workflow
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import EngineArgs, Workflow
from scepsy_hpc.planning.aggregate import demands_of, offers_of
from scepsy_hpc.planning.choose import Choice, choose
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.explain import explain
from scepsy_hpc.planning.offers import Offer, Offers, offers_for, shelf_for
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand, deployments_of, pipeline_of
from scepsy_hpc.planning.pipeline.predict import ClosedBatch, predict_batch, predict_open
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.placement import place
from scepsy_hpc.planning.search.problem import Option
from scepsy_hpc.planning.simulation.tails import Tails, with_tails
from scepsy_hpc.planning.targets import Deadline, Limits, Rate, Target

CPUS_PER_GPU = 4
"""What an engine needs to feed one GPU: its API server, its scheduler and a tokenizer."""

_START_MIN = 20  # engines load weights and compile before the first task


def make_plan(
    workflows: Sequence[tuple[Workflow, float | None]],
    spans: Mapping[str, Sequence[Span]],
    bundles: Sequence[Bundle],
    topology: Topology,
    target: Target,
    limits: Limits | None = None,
    *,
    engine: str | None = None,
    inputs: Sequence[Path | str] = (),
    client: Any = None,
) -> Plan:
    """The best plan for the target within the limits.

    ``spans`` by workflow name. Rates belong to the workflows where there are several. ``engine``
    narrows the profiles (``vllm`` or ``vllm-0.24.0``); ``inputs`` are files to name in the plan;
    ``client`` is a Dask client for big inputs. Raises InputError, and InfeasibleError that names
    the nearest feasible target.
    """
    demands = demands_of([workflow for workflow, _ in workflows], spans, client)
    return plan_for(
        workflows,
        demands,
        bundles,
        topology,
        target,
        limits,
        engine=engine,
        inputs=inputs,
        client=client,
        tails=Tails.of({w.name: spans_of_workflow(spans[w.name], w.name) for w, _ in workflows}),
    )


def plan_for(
    workflows: Sequence[tuple[Workflow, float | None]],
    demands: Mapping[str, WorkflowDemand],
    bundles: Sequence[Bundle],
    topology: Topology,
    target: Target,
    limits: Limits | None = None,
    *,
    engine: str | None = None,
    inputs: Sequence[Path | str] = (),
    client: Any = None,
    tails: Tails | None = None,
) -> Plan:
    """``make_plan`` from demand that is known already, by workflow name.

    Without ``tails`` (traced runs) percentiles stay unknown.
    """
    flows = [workflow for workflow, _ in workflows]
    pipeline = pipeline_of(flows, demands, rates_of(workflows, target))
    offers = offers_of(pipeline, bundles, topology, engine, client)
    lengths = demands[flows[0].name].run_lengths_s if len(flows) == 1 else ()
    problem = PlanningProblem(pipeline, offers, topology, limits or Limits(), lengths, tails)
    return emit(choose(problem, target), problem, flows, demands, target, inputs)


def emit(
    choice: Choice,
    problem: PlanningProblem,
    flows: Sequence[Workflow],
    demands: Mapping[str, WorkflowDemand],
    target: Target,
    inputs: Sequence[Path | str] = (),
) -> Plan:
    """The plan of a choice: what it hosts where, what it asks for, what it should reach."""
    predicted = _predicted(choice, target, problem.run_lengths_s)
    if problem.tails is not None and not isinstance(target, Deadline):
        predicted = with_tails(predicted, problem.tails.figures(choice.pipeline, choice.hosted))
    names = deployments_of(flows)
    placed = choice.solution.instances
    return Plan(
        workflows=tuple(
            PlanWorkflow(
                name=load.name,
                llms=names[load.name],
                rate_rps=load.rate_rps,
                max_runs_in_flight=_in_flight(choice, predicted, load.name),
                agent=flow.agent,
            )
            for load, flow in zip(choice.pipeline.workflows, flows, strict=True)
        ),
        llms={n: _deployment(choice, n, problem.offers[n]) for n in choice.solution.chosen},
        instances=placed,
        allocation=allocation_of(placed, problem.topology, _time_min(target)),
        predicted=predicted,
        demand={flow.name: demands[flow.name].kept() for flow in flows},
        certificate=choice.certificate,
        inputs=_inputs([*(f.path for f in flows), *inputs, *_used(choice, problem.offers)]),
        explanation=explain(choice, problem.offers, predicted, demands),
    )


def rates_of(
    workflows: Sequence[tuple[Workflow, float | None]], target: Target
) -> dict[str, float]:
    """Rate of each workflow. Raises InputError."""
    found = {}
    for workflow, rate in workflows:
        if isinstance(target, Rate) and rate is None:
            rate = target.rps if len(workflows) == 1 else None
            if rate is None:
                raise InputError(
                    f"workflow {workflow.name}: has no rate; give --rate, or with several "
                    "workflows --workflow NAME=FILE@RATE"
                )
        rate = 1.0 if rate is None else rate
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"workflow {workflow.name}: rate ({rate}) must be greater than 0")
        found[workflow.name] = rate
    if isinstance(target, Deadline) and (target.num_tasks < 1 or not target.deadline_s > 0):
        raise InputError(
            f"--tasks ({target.num_tasks}) must be at least 1 and --deadline "
            f"({target.deadline_s} s) greater than 0"
        )
    return found


def _offer(option: Option, offers: Offers) -> Offer:
    return next(offer for offer in offers.found if offer.curve is option.payload)


def _deployment(choice: Choice, name: str, offers: Offers) -> Deployment:
    option = choice.solution.chosen[name]
    stage = next(s for s in choice.pipeline.stages if s.name == name)
    return deployment_of(_offer(option, offers), option.num_replicas, stage.spec.engine_args)


def deployment_of(offer: Offer, num_replicas: int, engine_args: EngineArgs) -> Deployment:
    """A deployment on an offer; the workflow's engine arguments go before the profile's."""
    curve = offer.curve
    source = next(b for b in offer.evidence.bundles if b.sha256 == curve.bundle_sha256)
    header = source.header
    return Deployment(
        model=header.model,
        engine=header.engine,
        engine_version=header.engine_version,
        engine_args={**header.engine_args, **engine_args},
        bundle_sha256=source.sha256,
        gpu_type=curve.kind.gpu_type,
        link=curve.kind.link,
        tp_degree=curve.kind.tp_degree,
        gpu_share_pct=curve.kind.gpu_share_pct,
        memory_gib=round(curve.memory_gib, 3),
        num_replicas=num_replicas,
    )


def _predicted(choice: Choice, target: Target, lengths: tuple[float, ...]) -> Figures:
    if isinstance(target, Deadline):
        in_flight = choice.max_runs_in_flight or 1
        batch = ClosedBatch(target.num_tasks, in_flight, lengths)
        return predict_batch(choice.pipeline, choice.hosted, batch)
    return predict_open(choice.pipeline, choice.hosted)


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


def _used(choice: Choice, offers: Mapping[str, Offers]) -> list[Path]:
    found = []
    for name, option in choice.solution.chosen.items():
        bundles = _offer(option, offers[name]).evidence.bundles
        found += [
            b.path / "points.csv" for b in bundles if b.sha256 == option.payload.bundle_sha256
        ]
    return found


def _inputs(paths: Sequence[Path | str]) -> tuple[PlanInput, ...]:
    return tuple(
        PlanInput(path=str(path), sha256=sha256_file(path))
        for path in dict.fromkeys(map(str, paths))
        if Path(path).is_file()
    )


def one_each(
    workflow: Workflow,
    bundles: Sequence[Bundle],
    topology: Topology,
    engine: str | None = None,
) -> Plan:
    """A plan with one smallest instance per LLM: for tracing, before anything is known.

    Raises InputError, InfeasibleError.
    """
    tokens = TokenLengths(1024.0, 256.0)
    shelf = shelf_for(bundles, topology, engine)
    llms, options = {}, []
    for alias, llm in workflow.llms.items():
        offers = offers_for(alias, llm, tokens, shelf, topology)
        offer = min(offers.found, key=lambda o: _size(o))
        llms[alias] = deployment_of(offer, 1, llm.engine_args)
        options.append(Option(alias, *offer.curve.kind, 1, 0.0, math.inf, offer.curve))
    instances = place(options, topology)
    if instances is None:
        raise InfeasibleError(
            f"workflow {workflow.name}: one instance of each of its {len(options)} LLMs does not "
            f"fit {topology.num_gpus} free GPUs; free more, or trace against endpoints you host"
        )
    return Plan(
        workflows=(
            PlanWorkflow(name=workflow.name, llms={a: a for a in llms}, agent=workflow.agent),
        ),
        llms=llms,
        instances=instances,
        allocation=allocation_of(instances, topology),
        inputs=_inputs([workflow.path]),
    )


def _size(offer: Offer) -> tuple[int, bool]:
    kind = offer.curve.kind
    derived = any(flag.startswith("derived") for flag in offer.curve.flags)
    # Whole GPUs first among equals: a trace must not rest on what nobody has measured.
    return (kind.tp_degree * (100 if derived else kind.gpu_share_pct), derived)
