"""Plans that somebody would make without a planner, to compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Workflow
from scepsy_hpc.planning.aggregate import offers_of
from scepsy_hpc.planning.choose import Choice
from scepsy_hpc.planning.make_plan import emit, rates_of
from scepsy_hpc.planning.offers import Offer, Offers
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand, pipeline_of
from scepsy_hpc.planning.pipeline.pipeline import Pipeline
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.placement import place
from scepsy_hpc.planning.search.problem import Option, Solution
from scepsy_hpc.planning.simulation.tails import Tails
from scepsy_hpc.planning.targets import Limits, Rate


def equal_split(
    workflows: Sequence[tuple[Workflow, float | None]],
    demands: Mapping[str, WorkflowDemand],
    bundles: Sequence[Bundle],
    topology: Topology,
    rate: Rate,
    num_gpus: int | None = None,
    engine: str | None = None,
    tails: Tails | None = None,
) -> Plan:
    """Every LLM gets as many whole GPUs, at the smallest TP degree that holds it.

    GPUs that do not divide go to the LLMs named first. The plan may be overloaded at the rates;
    its prediction then says so. Raises InputError; InfeasibleError where the GPUs do not suffice.
    """
    flows = [workflow for workflow, _ in workflows]
    pipeline = pipeline_of(flows, demands, rates_of(workflows, rate))
    offers = offers_of(pipeline, bundles, topology, engine)
    total = min(topology.num_gpus, num_gpus or topology.num_gpus)
    each, left = divmod(total, len(pipeline.stages))
    options = []
    for index, stage in enumerate(pipeline.stages):
        share = each + (1 if index < left else 0)
        offer = _smallest(stage.name, offers[stage.name], share)
        replicas = share // offer.curve.kind.tp_degree
        options.append(_option(stage.name, offer, replicas))
    problem = PlanningProblem(pipeline, offers, topology, Limits(num_gpus=num_gpus), tails=tails)
    return emit(_choice(problem, options, pipeline), problem, flows, demands, rate)


def _smallest(name: str, offers: Offers, num_gpus: int) -> Offer:
    whole = [o for o in offers.found if o.curve.kind.gpu_share_pct == 100]
    fitting = [o for o in whole if o.curve.kind.tp_degree <= num_gpus]
    if not fitting:
        raise InfeasibleError(
            f"{name}: an equal split leaves it {num_gpus} whole GPUs, which cannot hold it"
        )
    return min(fitting, key=lambda o: o.curve.kind.tp_degree)


def _option(name: str, offer: Offer, num_replicas: int) -> Option:
    return Option(name, *offer.curve.kind, num_replicas, math.nan, math.nan, offer.curve)


def _choice(problem: PlanningProblem, options: Sequence[Option], pipeline: Pipeline) -> Choice:
    """A choice that nothing was searched for: it carries no certificate."""
    chosen = list(options)
    instances = place(chosen, problem.topology, problem.limits.num_gpus)
    while instances is None:
        # Groups may not fit what whole GPUs are left in the domains: the largest gives one up.
        most = max(range(len(chosen)), key=lambda i: chosen[i].num_replicas)
        if chosen[most].num_replicas == 1:
            raise InfeasibleError("an equal split cannot be placed on the free GPUs")
        offer = next(
            o for o in problem.offers[chosen[most].llm].found if o.curve is chosen[most].payload
        )
        chosen[most] = _option(chosen[most].llm, offer, chosen[most].num_replicas - 1)
        instances = place(chosen, problem.topology, problem.limits.num_gpus)
    nan = math.nan
    used = len({(i.node, gpu) for i in instances for gpu in i.gpus})
    by_name = {option.llm: option for option in chosen}
    solution = Solution(by_name, instances, nan, nan, nan, nan, nan, used, "dp")
    return Choice(pipeline, (), solution, None, notes=("equal split: nothing was searched",))
