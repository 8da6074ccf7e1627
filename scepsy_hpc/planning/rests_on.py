"""Which part of a certified value rests on measured, modelled, derived or extrapolated figures.

Each LLM counts by its part of the value: of the mean latency of a run what it adds to it; of a
throughput all of it where the LLM is the first to be full. Tool time was measured, in the trace.
"""

from __future__ import annotations

from collections.abc import Mapping

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import RestsOn
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.offers import Offer, Offers
from scepsy_hpc.planning.pipeline.pipeline import HostedStage

_FROM_FLAGS = ("extrapolated", "derived", "transferred")  # the weakest first
_NEARLY_FULL = 1e-6


def rests_on(choice: Choice, offers: Mapping[str, Offers], predicted: Figures) -> RestsOn:
    """Parts in percent, by LLM and tool time, of the choice's certified value."""
    parts = dict.fromkeys(("measured", "modelled", "derived", "transferred", "extrapolated"), 0.0)
    weights = _weights(choice, predicted)
    for host in choice.hosted:
        offer = offers[host.stage.name].of(host.curve)
        for where, part in evidence_parts(choice, host, offer).items():
            parts[where] += weights[host.stage.name] * part
    parts["measured"] += max(1.0 - sum(weights.values()), 0.0)
    return RestsOn(**{f"{where}_pct": round(100.0 * part, 1) for where, part in parts.items()})


def _weights(choice: Choice, predicted: Figures) -> dict[str, float]:
    """Part of each LLM in the value; what is left is tool time."""
    names = [host.stage.name for host in choice.hosted]
    metric = choice.certificate.metric if choice.certificate else "latency_mean_s"
    if metric == "throughput_rps":
        theta = {host.stage.name: choice.pipeline.theta(host) for host in choice.hosted}
        least = min(theta.values())
        full = [name for name in names if theta[name] <= least * (1 + _NEARLY_FULL)]
        return {name: 1.0 / len(full) if name in full else 0.0 for name in names}
    return {name: predicted.per_llm[name].share_of_latency or 0.0 for name in names}


def evidence_parts(choice: Choice, host: HostedStage, offer: Offer) -> dict[str, float]:
    """What one LLM's figures at its load rest on: parts that sum to 1."""
    flags = host.load(choice.pipeline.rates_rps).flags
    for where in _FROM_FLAGS:
        if any(flag.startswith(where) for flag in flags):
            return {where: 1.0}
    return {offer.bundle.header.how: 1.0}
