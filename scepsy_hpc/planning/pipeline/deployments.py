"""From workflows and their demand to the stages of one pipeline: who shares a deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import DemandSummary, Plan, Routing
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.curves.bursts import Bursts, gap_of
from scepsy_hpc.planning.pipeline.makespan import ClosedBatch
from scepsy_hpc.planning.pipeline.pipeline import Pipeline, Stage, Use, WorkflowLoad, use_of
from scepsy_hpc.tracing.demand.demand import Demand
from scepsy_hpc.tracing.demand.hits import expected_hit_tokens


@dataclass(frozen=True, slots=True)
class WorkflowDemand:
    """What a plan keeps of a workflow's demand, and what only spans say, if there are any."""

    summary: DemandSummary
    run_lengths_s: tuple[float, ...] = ()
    tool_times_s: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, demand: Demand) -> WorkflowDemand:
        """From spans."""
        warnings = tuple(f"{demand.workflow}: {flag}" for flag in demand.flags)
        return cls(demand.summary(), demand.run_lengths_s, demand.tool_times_s, warnings)

    def batch(self, num_tasks: int, max_runs_in_flight: int) -> ClosedBatch:
        """A batch of such runs."""
        return ClosedBatch(num_tasks, max_runs_in_flight, self.run_lengths_s, self.tool_times_s)

    def use(self, workflow: str, alias: str) -> Use:
        """One LLM's use.

        Its cached input is what one replica finds, or several under sticky routing: which rule a
        plan gets is decided by simulation, once its replicas are known. Where the fan-out is
        unknown it is taken to be the parallelism, and calls of unknown spread to be exponential.
        """
        demand = self.summary.llms[alias]
        cv = 1.0 if demand.work_cv is None else demand.work_cv
        size = demand.fan_out or max(demand.parallelism or 1.0, 1.0)
        # What a run does at other LLMs in between sets its fan-outs here apart.
        follow = max(demand.calls_per_run / max(size, 1.0) - 1.0, 0.0) * (demand.share_mean or 0.0)
        bursts = Bursts(
            size=size,
            work_cv=cv,
            pair_cv=cv if demand.fan_out_work_cv is None else demand.fan_out_work_cv,
            pair_gap=gap_of(cv) if demand.fan_out_work_gap is None else demand.fan_out_work_gap,
            rounds=1.0 + follow,
        )
        return use_of(workflow, alias, demand, bursts, expected_hit_tokens(demand, 1, Routing()))


def demands_in(plan: Plan) -> dict[str, WorkflowDemand]:
    """Demand as far as a plan keeps it. Raises InputError where a workflow has none."""
    found = {}
    for workflow in plan.workflows:
        if workflow.name not in plan.demand:
            raise InputError(
                f"plan: demand.{workflow.name}: missing; give the workflow's spans "
                "(--workflow, --spans and --profiles)"
            )
        found[workflow.name] = WorkflowDemand(plan.demand[workflow.name])
    return found


def deployments_of(workflows: Sequence[Workflow]) -> dict[str, dict[str, str]]:
    """Deployment of each alias of each workflow.

    Aliases of two workflows share one when model, engine, its version, precision and engine
    arguments agree; two aliases of one workflow never do. With one workflow the names are the
    aliases.
    """
    taken: dict[str, Llm] = {}
    found: dict[str, dict[str, str]] = {}
    for workflow in workflows:
        if workflow.name in found:
            raise InputError(
                f"{workflow.path}: name: {workflow.name!r} is the name of two workflows; name "
                "them apart with `--workflow NAME=...`"
            )
        mine: dict[str, str] = {}
        for alias, llm in workflow.llms.items():
            mine[alias] = _shared(alias, llm, taken, mine) or _new(alias, workflow.name, taken)
            taken.setdefault(mine[alias], llm)
        found[workflow.name] = mine
    return found


def _shared(alias: str, llm: Llm, taken: Mapping[str, Llm], mine: Mapping[str, str]) -> str | None:
    same = [
        name
        for name, other in taken.items()
        if _configuration(other) == _configuration(llm) and name not in mine.values()
    ]
    return alias if alias in same else next(iter(same), None)


def _configuration(llm: Llm) -> tuple[object, ...]:
    """What two aliases must have in common; what is not stated agrees with nothing that is."""
    return llm.model, llm.engine, llm.engine_version, llm.precision, llm.engine_args


def _new(alias: str, workflow: str, taken: Mapping[str, Llm]) -> str:
    name = alias if alias not in taken else f"{workflow}-{alias}"
    number = 2
    while name in taken:
        name, number = f"{workflow}-{alias}-{number}", number + 1
    return name


def pipeline_of(
    workflows: Sequence[Workflow],
    demands: Mapping[str, WorkflowDemand],
    rates_rps: Mapping[str, float],
) -> Pipeline:
    """The pipeline of the workflows at these rates. Raises InputError."""
    names = deployments_of(workflows)
    uses: dict[str, list[Use]] = {}
    specs: dict[str, Llm] = {}
    for workflow in workflows:
        for alias, llm in workflow.llms.items():
            name = names[workflow.name][alias]
            uses.setdefault(name, []).append(demands[workflow.name].use(workflow.name, alias))
            specs[name] = _both(name, specs[name], llm) if name in specs else llm
    loads = tuple(
        WorkflowLoad(
            w.name,
            rates_rps[w.name],
            demands[w.name].summary.overlap_or_one,
            demands[w.name].summary.tool_time_s,
            demands[w.name].summary.cpu_s,
        )
        for w in workflows
    )
    return Pipeline(loads, tuple(Stage(n, specs[n], tuple(u)) for n, u in uses.items()))


def _both(name: str, one: Llm, other: Llm) -> Llm:
    """What two workflows that share a deployment both allow."""
    memory = [m for m in (one.min_memory_gib, other.min_memory_gib) if m is not None]
    return replace(
        one,
        tp_degrees=_common(name, "tp_degrees", one.tp_degrees, other.tp_degrees),
        gpu_shares_pct=_common(name, "gpu_shares_pct", one.gpu_shares_pct, other.gpu_shares_pct),
        min_memory_gib=max(memory, default=None),
    )


def _common(
    name: str, key: str, one: tuple[int, ...] | None, other: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    if one is None or other is None:
        return one if other is None else other
    both = tuple(value for value in one if value in other)
    if not both:
        raise InputError(
            f"LLM {name}: {key}: two workflows share it but allow {list(one)} and {list(other)}; "
            "give them a common value, or different engine_args to keep them apart"
        )
    return both
