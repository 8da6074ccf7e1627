"""Everything predicted of one plan under one load: by the pipeline, and by simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scepsy_hpc.bundles.engine_model import BadFitError, fit_bundle
from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.figures import Figures, ReplicaServer
from scepsy_hpc.formats.plan import Plan, PlanWorkflow
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.aggregate import demands_of
from scepsy_hpc.planning.check import checked
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.pipeline.of_plan import hosted_of, predict_plan
from scepsy_hpc.planning.pipeline.pipeline import HostedStage
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, Open
from scepsy_hpc.planning.simulation.run_graph import run_graphs


@dataclass(frozen=True, slots=True)
class Forecast:
    """Both predictions of one plan under one load."""

    pipeline: Figures
    simulation: Figures


def forecast(
    plan: Plan,
    spans: Mapping[str, Sequence[Span]],
    bundles: Sequence[Bundle],
    arrivals: Closed | Open,
    seed: int = 0,
) -> Forecast:
    """Predict a plan of one workflow, open or closed. Raises InputError.

    A closed load of N runs is a batch: throughput and makespan include fill and drain.
    """
    demands = demands_in_spans(plan, spans)
    if isinstance(arrivals, Closed):
        planned = with_in_flight(plan, arrivals.max_in_flight)
        pipeline = predict_plan(planned, demands, bundles, num_tasks=arrivals.num_runs)
    else:
        pipeline = predict_plan(plan, demands, bundles, rate_rps=arrivals.rate_rps)
    return Forecast(pipeline, simulated(plan, spans, bundles, arrivals, seed))


def demands_in_spans(plan: Plan, spans: Mapping[str, Sequence[Span]]) -> dict[str, WorkflowDemand]:
    """Demand of the plan's workflows. Raises InputError."""
    return demands_of([_as_workflow(plan, planned) for planned in plan.workflows], spans)


def _as_workflow(plan: Plan, planned: PlanWorkflow) -> Workflow:
    llms = {alias: Llm(model=plan.llms[llm].model) for alias, llm in planned.llms.items()}
    return Workflow(planned.name, llms, planned.agent, Path())


def with_in_flight(plan: Plan, num_runs: int) -> Plan:
    """The plan with so many runs in flight, and no rate."""
    workflows = tuple(
        replace(w, max_runs_in_flight=num_runs, rate_rps=None) for w in plan.workflows
    )
    return replace(plan, workflows=workflows)


def simulated(
    plan: Plan,
    spans: Mapping[str, Sequence[Span]],
    bundles: Sequence[Bundle],
    arrivals: Arrivals | Mapping[str, Arrivals],
    seed: int = 0,
    num_runs: int | None = None,
    cores: float | None = None,
    server: ReplicaServer | None = None,
) -> Figures:
    """Discrete-event simulation of the traced runs on the plan (see ``check``).

    ``cores`` of the agents; without them those that the plan counts on. ``server``: what a replica
    is (see ``hosts.engines_used``). Raises InputError.
    """
    demands = demands_in_spans(plan, spans)
    pipeline, hosted = hosted_of(plan, demands, bundles, 1.0)
    if cores is None and pipeline.host:
        cores = pipeline.host.cores
    found = checked(
        plan,
        {name: run_graphs(mine) for name, mine in spans.items()},
        hosted,
        arrivals,
        seed=seed,
        num_runs=num_runs,
        cores=cores,
        engine_models=engine_models(plan, bundles),
        profiled_on_spans=_profiled_on_spans(plan, bundles),
        server=server,
    )
    said = [f"{h.stage.name}: {flag}" for h in hosted for flag in _curve_flags(h, found)]
    return replace(found, flags=tuple(dict.fromkeys([*found.flags, *said])))


def _curve_flags(host: HostedStage, found: Figures) -> tuple[str, ...]:
    """What a curve says of itself with the calls in flight that were simulated.

    The simulation's own intervals are those of its draws alone.
    """
    llm = found.per_llm.get(host.stage.name)
    if llm is None or llm.calls_in_flight_mean is None:
        return ()
    return host.curve.flags_with(llm.calls_in_flight_mean / host.num_replicas)


def _profiled_on_spans(plan: Plan, bundles: Sequence[Bundle]) -> set[str]:
    """Deployments whose points were measured on traced lengths, their dispersion included."""
    traced = {bundle.sha256 for bundle in bundles if bundle.header.spans_sha256}
    return {name for name, llm in plan.llms.items() if llm.bundle_sha256 in traced}


def engine_models(plan: Plan, bundles: Sequence[Bundle]) -> dict[str, EngineModel]:
    """Fitted engine model of each deployment whose own bundle allows one."""
    by_sha256 = {bundle.sha256: bundle for bundle in bundles}
    found = {}
    for name, llm in plan.llms.items():
        bundle = by_sha256.get(llm.bundle_sha256 or "")
        if bundle is None:
            continue
        link = llm.link if llm.tp_degree > 1 else None
        try:
            found[name] = fit_bundle(bundle, llm.tp_degree, llm.gpu_share_pct, link)
        except (BadFitError, InputError):
            continue  # Then the replica is a processor-sharing server of its curve.
    return found
