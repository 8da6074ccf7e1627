"""A plan, from the search or by hand, back to pipeline stages on their curves; its prediction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.parallelism import Parallelism, gpu_memory_of_gib
from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow, unused_llms
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence, evidence_for, no_evidence
from scepsy_hpc.planning.curves.making import make_curve, with_engine_args
from scepsy_hpc.planning.curves.sources import NoCurveError
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand, deployments_of
from scepsy_hpc.planning.pipeline.host_time import cores_for_agents
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline, Stage, Use, WorkflowLoad
from scepsy_hpc.planning.pipeline.predict import predict_batch, predict_open

_NO_MAKESPAN = (
    "makespan_s: unknown: how much runs differ stands in their spans alone; give them with --spans"
)


def predict_plan(
    plan: Plan,
    demands: Mapping[str, WorkflowDemand],
    bundles: Sequence[Bundle],
    rate_rps: float | None = None,
    num_tasks: int | None = None,
) -> Figures:
    """What a complete plan reaches (see ``complete``).

    Open arrivals at ``rate_rps`` (runs per second of all workflows, in the plan's mix), else at
    the plan's rates. With ``num_tasks``, or without any rate, a closed batch at the plan's
    ``max_runs_in_flight``. Raises InputError where neither is known or no profile fits.
    """
    closed = num_tasks is not None or (
        rate_rps is None and all(w.rate_rps is None for w in plan.workflows)
    )
    if not closed:
        return predict_open(*hosted_of(plan, demands, bundles, rate_rps))
    if len(plan.workflows) != 1 or plan.workflows[0].max_runs_in_flight is None:
        raise InputError(
            "plan: has no rate_rps, and no max_runs_in_flight of a single workflow; give --rate"
        )
    pipeline, hosted = hosted_of(plan, demands, bundles, rate_rps or 1.0)
    name, in_flight = plan.workflows[0].name, plan.workflows[0].max_runs_in_flight
    batch = demands[name].batch(num_tasks or in_flight, in_flight)
    found = predict_batch(pipeline, hosted, batch)
    if num_tasks is not None and batch.knows_runs:
        return found
    found = _without_makespan(found)
    return found if num_tasks is None else replace(found, flags=(*found.flags, _NO_MAKESPAN))


def _without_makespan(found: Figures) -> Figures:
    workflows = {n: replace(w, makespan_s=None) for n, w in found.per_workflow.items()}
    flags = tuple(flag for flag in found.flags if not flag.startswith("makespan_s"))
    return replace(found, makespan_s=None, per_workflow=workflows, flags=flags)


def complete(plan: Plan, workflows: Sequence[Workflow], bundles: Sequence[Bundle]) -> Plan:
    """A plan written by hand with what it leaves out: its workflows, its ``llms``.

    Raises InputError where that cannot be told.
    """
    if not plan.llms:
        plan = replace(plan, llms=_llms_of_instances(plan, workflows, bundles))
    if plan.workflows:
        return plan
    if not workflows:
        raise InputError("plan: names no workflows; give --workflow, --spans and --profiles")
    aliases = deployments_of(workflows)
    for workflow in workflows:
        for alias, name in aliases[workflow.name].items():
            if name not in plan.llms:
                known = ", ".join(plan.llms)
                raise InputError(
                    f"plan: llms: nothing hosts {alias!r} of workflow {workflow.name!r} (looked "
                    f"for {name!r}); it has: {known}"
                )
    made = replace(
        plan,
        workflows=tuple(
            PlanWorkflow(name=w.name, llms=aliases[w.name], agent=w.agent) for w in workflows
        ),
    )
    for error in unused_llms(made):
        raise InputError(f"plan: {error}")
    return made


def check_complete(plan: Plan) -> None:
    """Raise InputError that says what to add to a plan without workflows or without ``llms``."""
    if not plan.llms:
        raise InputError(
            "plan: llms: missing; add each LLM with model, engine, gpu_type, tp_degree, "
            "gpu_share_pct and num_replicas"
        )
    if not plan.workflows:
        llms = ", ".join(f"{name}: {name}" for name in plan.llms)
        raise InputError(
            "plan: workflows: missing; add, with the name of the traced workflow and its alias of "
            f"each LLM: `workflows: [{{name: NAME, llms: {{{llms}}}}}]`"
        )


def _llms_of_instances(
    plan: Plan, workflows: Sequence[Workflow], bundles: Sequence[Bundle]
) -> dict[str, Deployment]:
    """Deployments from instances: model by alias, GPU type where the profiles leave no doubt."""
    specs: dict[str, Llm] = {}
    for workflow, names in zip(workflows, deployments_of(workflows).values(), strict=True):
        specs |= {names[alias]: llm for alias, llm in workflow.llms.items()}
    found = {}
    for name in dict.fromkeys(instance.llm for instance in plan.instances):
        if name not in specs:
            raise InputError(f"plan: instances: no workflow calls {name!r}; give --workflow")
        found[name] = _deployment(plan, name, specs[name], bundles)
    return found


def _deployment(plan: Plan, name: str, spec: Llm, bundles: Sequence[Bundle]) -> Deployment:
    mine = [i for i in plan.instances if i.llm == name]
    shapes = {(len(i.gpus), i.gpu_share_pct) for i in mine}
    if len(shapes) > 1:
        raise InputError(
            f"plan: instances of {name!r} differ in GPUs or share ({sorted(shapes)}); replicas of "
            "one LLM are equal"
        )
    types = sorted({b.header.gpu_type for b in bundles if b.header.model == spec.model})
    if len(types) != 1:
        raise InputError(
            f"plan: llms.{name}.gpu_type: missing, and the profiles of {spec.model} are for: "
            f"{', '.join(types) or 'none'}; write `llms` with a gpu_type"
        )
    header = next(evidence_for(spec.model, types[0], bundles)).merged.header
    tp_degree, share_pct = shapes.pop()
    return Deployment(
        model=spec.model,
        engine=header.engine,
        engine_version=header.engine_version,
        engine_args={**header.engine_args, **spec.engine_args},
        gpu_type=types[0],
        tp_degree=tp_degree,
        gpu_share_pct=share_pct,
        num_replicas=len(mine),
    )


def hosted_of(
    plan: Plan,
    demands: Mapping[str, WorkflowDemand],
    bundles: Sequence[Bundle],
    rate_rps: float | None = None,
) -> tuple[Pipeline, tuple[HostedStage, ...]]:
    """The pipeline of a complete plan, and its stages on the curves of the profiles.

    ``rate_rps`` is the total of all workflows. Raises InputError.
    """
    rates = _rates(plan, rate_rps)
    uses: dict[str, list[Use]] = {name: [] for name in plan.llms}
    for workflow in plan.workflows:
        if workflow.name not in demands:
            raise InputError(f"workflow {workflow.name}: no spans and no demand in the plan")
        for alias, name in workflow.llms.items():
            uses[name].append(_use(workflow, alias, demands[workflow.name]))
    stages = [
        Stage(name, Llm(model=plan.llms[name].model), tuple(used))
        for name, used in uses.items()
        if used
    ]
    loads = []
    for workflow in plan.workflows:
        summary = demands[workflow.name].summary
        rate = rates[workflow.name]
        tool_s, cpu_s = summary.tool_time_s, summary.cpu_s
        loads.append(WorkflowLoad(workflow.name, rate, summary.overlap_or_one, tool_s, cpu_s))
    hosted = []
    for stage in stages:
        curve = curve_of(stage.name, plan.llms[stage.name], stage.tokens(rates), bundles)
        hosted.append(HostedStage(stage, curve, num_replicas(plan, stage.name)))
    return Pipeline(tuple(loads), tuple(stages), cores_for_agents(plan)), tuple(hosted)


def _use(workflow: PlanWorkflow, alias: str, demand: WorkflowDemand) -> Use:
    if alias not in demand.summary.llms:
        known = ", ".join(demand.summary.llms)
        raise InputError(
            f"workflow {workflow.name}: its demand does not know LLM {alias!r}; it knows: {known}"
        )
    return demand.use(workflow.name, alias)


def _rates(plan: Plan, rate_rps: float | None) -> dict[str, float]:
    if rate_rps is not None and not (math.isfinite(rate_rps) and rate_rps > 0):
        raise InputError(f"--rate ({rate_rps}) must be greater than 0")
    mix = rates_in(plan)
    factor = 1.0 if rate_rps is None else rate_rps / sum(mix.values())
    return {name: rate * factor for name, rate in mix.items()}


def rates_in(plan: Plan) -> dict[str, float]:
    """Rate of each workflow; one without a rate counts as much as any other."""
    return {w.name: w.rate_rps or 1.0 for w in plan.workflows}


def num_replicas(plan: Plan, name: str) -> int:
    """Replicas of a deployment. Raises InputError where the plan places another number."""
    placed = Counter(instance.llm for instance in plan.instances)
    said = plan.llms[name].num_replicas
    if plan.instances and placed[name] != said:
        raise InputError(
            f"plan: llms.{name}.num_replicas: is {said}, but instances list {placed[name]}"
        )
    return said


def curve_of(
    name: str, deployment: Deployment, tokens: TokenLengths, bundles: Sequence[Bundle]
) -> Curve:
    """The curve of a deployment; its own bundle goes first. Raises InputError."""
    kind = Parallelism(
        deployment.gpu_type,
        deployment.link if deployment.tp_degree > 1 else None,
        deployment.tp_degree,
        deployment.gpu_share_pct,
    )
    reasons = []
    for evidence in _evidence(deployment, bundles):
        try:
            curve = make_curve(evidence, kind, tokens, engine_args=deployment.engine_args)
            return with_engine_args(curve, evidence, deployment.engine_args)
        except NoCurveError as error:
            reasons.append(f"{evidence.label}: {error}")
    if not reasons:
        known = {b.header.precision for b in bundles if b.header.model == deployment.model}
        if deployment.precision is not None and deployment.precision not in known and known:
            raise InputError(
                f"plan: llms.{name}.precision: no profile of {deployment.model} is of "
                f"{deployment.precision!r}; there are: {', '.join(sorted(known))}. Correct it, or "
                "leave it out for whichever was measured"
            )
        raise no_evidence(deployment.model, [deployment.gpu_type], bundles, deployment.engine)
    raise InputError(
        f"plan: llms.{name}: TP {kind.tp_degree} at {kind.gpu_share_pct}% of {kind.gpu_type} has "
        "no curve: " + "; ".join(reasons)
    )


def _evidence(deployment: Deployment, bundles: Sequence[Bundle]) -> list[Evidence]:
    engine = deployment.engine
    if deployment.engine_version is not None:
        engine = f"{deployment.engine}-{deployment.engine_version}"
    memory_gib = None
    if deployment.memory_gib is not None:
        memory_gib = gpu_memory_of_gib(deployment.memory_gib, deployment.gpu_share_pct)
    model, gpu_type = deployment.model, deployment.gpu_type
    mine = [b for b in bundles if deployment.precision in (None, b.header.precision)]
    found = list(evidence_for(model, gpu_type, mine, engine, memory_gib))
    if deployment.bundle_sha256 is None:
        return found
    sha256 = deployment.bundle_sha256
    return sorted(found, key=lambda e: all(b.sha256 != sha256 for b in e.bundles))
