"""Plans that somebody would make without a planner, to compare with."""

from __future__ import annotations

import math
from dataclasses import replace

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.emission import emit
from scepsy_hpc.planning.offers import Offer, Offers
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.search.placement import place
from scepsy_hpc.planning.search.problem import Option, Solution


def equal_split(request: PlanRequest) -> Plan:
    """Every LLM gets as many whole GPUs, at the smallest TP degree that holds it.

    GPUs that do not divide go to the LLMs named first. The plan may be overloaded at the rates;
    its prediction then says so. Raises InputError; InfeasibleError where the GPUs do not suffice.
    """
    known = request.with_demands()
    problem = PlanningProblem.of(known)
    return emit(known, problem, _choice(problem))


def _choice(problem: PlanningProblem) -> Choice:
    """A choice that nothing was searched for: it carries no certificate."""
    nan, stages, num_gpus = math.nan, problem.pipeline.stages, problem.limits.num_gpus
    total = min(problem.topology.num_gpus, num_gpus or problem.topology.num_gpus)
    each, left = divmod(total, len(stages))
    chosen = []
    for index, stage in enumerate(stages):
        share = each + (1 if index < left else 0)
        offer = _smallest(stage.name, problem.offers[stage.name], share)
        replicas = share // offer.curve.kind.tp_degree
        chosen.append(Option(stage.name, *offer.curve.kind, replicas, nan, nan, offer.curve))
    instances = place(chosen, problem.topology, num_gpus)
    while instances is None:
        # Groups may not fit what whole GPUs are left in the domains: the largest gives one up.
        most = max(range(len(chosen)), key=lambda i: chosen[i].num_replicas)
        option = chosen[most]
        if option.num_replicas == 1:
            raise InfeasibleError("an equal split cannot be placed on the free GPUs")
        chosen[most] = replace(option, num_replicas=option.num_replicas - 1)
        instances = place(chosen, problem.topology, num_gpus)
    used = len({(i.node, gpu) for i in instances for gpu in i.gpus})
    by_name = {option.llm: option for option in chosen}
    solution = Solution(by_name, instances, nan, nan, nan, nan, nan, used, "dp")
    return Choice(
        problem.pipeline, (), solution, None, notes=("equal split: nothing was searched",)
    )


def _smallest(name: str, offers: Offers, num_gpus: int) -> Offer:
    whole = [o for o in offers.found if o.curve.kind.gpu_share_pct == 100]
    fitting = [o for o in whole if o.curve.kind.tp_degree <= num_gpus]
    if not fitting:
        raise InfeasibleError(
            f"{name}: an equal split leaves it {num_gpus} whole GPUs, which cannot hold it"
        )
    return min(fitting, key=lambda o: o.curve.kind.tp_degree)
