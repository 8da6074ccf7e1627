"""A choice as the bare plan that a simulation reads: workflows, deployments, how many replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow, Routing
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.planning.offers import Offer, Offers
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline


def outline(
    pipeline: Pipeline,
    hosted: Sequence[HostedStage],
    offers: Mapping[str, Offers],
    routing: Routing | None = None,
) -> Plan:
    """The plan of stages on what they are hosted by, at the pipeline's rates; nothing is placed."""
    rates, aliases = pipeline.rates_rps, pipeline.aliases
    return Plan(
        workflows=tuple(
            PlanWorkflow(name=name, llms=aliases[name], rate_rps=rate)
            for name, rate in rates.items()
        ),
        llms=deployments_on(hosted, offers),
        routing=routing or Routing(),
    )


def deployments_on(
    hosted: Sequence[HostedStage], offers: Mapping[str, Offers]
) -> dict[str, Deployment]:
    """Deployment of each stage."""
    return {
        host.stage.name: deployment_of(
            offers[host.stage.name].of(host.curve), host.num_replicas, host.stage.spec.engine_args
        )
        for host in hosted
    }


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
