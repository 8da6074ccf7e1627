"""The smallest plan that hosts every LLM of a workflow: for tracing, before anything is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.plan import Plan, PlanWorkflow
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Workflow
from scepsy_hpc.planning.allocation import allocation_of
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.offers import Offer, Offers, considered, offers_for, shelf_for
from scepsy_hpc.planning.outline import deployment_of
from scepsy_hpc.planning.search.placement import place
from scepsy_hpc.planning.search.problem import Option

_TOKENS = TokenLengths(1024.0, 256.0)  # any: only what fits matters here


def one_each(workflow: Workflow, bundles: Sequence[Bundle], topology: Topology) -> Plan:
    """One smallest instance of each LLM. Raises InputError, InfeasibleError."""
    shelf = shelf_for(bundles, topology)

    def offers_with(derived: bool) -> dict[str, Offers]:
        return {
            alias: offers_for(alias, llm, _TOKENS, shelf, topology, derived)
            for alias, llm in workflow.llms.items()
        }

    found = considered(offers_with, topology)
    llms, options = {}, []
    for alias, llm in workflow.llms.items():
        offer = min(found[alias].found, key=_size)
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
    )


def _size(offer: Offer) -> tuple[int, bool]:
    kind = offer.curve.kind
    derived = any(flag.startswith("derived") for flag in offer.curve.flags)
    # Whole GPUs first among equals: a trace must not rest on what nobody has measured.
    return (kind.tp_degree * (100 if derived else kind.gpu_share_pct), derived)
