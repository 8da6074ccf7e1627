"""Which part of a certified value rests on measured, modelled, derived or extrapolated figures.

Each LLM counts by its part of the value: of a latency or a batch what it adds to a run; of a
throughput all of it where the LLM is the first to be full. Tool time was measured, in the trace.
"""

from __future__ import annotations

from dataclasses import fields

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import RestsOn
from scepsy_hpc.planning.choice import Choice

_NEARLY_FULL = 1e-6


def rests_on(choice: Choice, predicted: Figures) -> RestsOn:
    """Parts in percent, by LLM and tool time, of the choice's certified value; they sum to 100."""
    parts = dict.fromkeys((f.name for f in fields(RestsOn)), 0.0)
    weights, rates = _weights(choice, predicted), choice.pipeline.rates_rps
    for host in choice.hosted:
        found = host.curve.rests_on(host.stage.calls_rps(rates) / host.num_replicas)
        for name in parts:
            parts[name] += weights[host.stage.name] * getattr(found, name)
    parts["measured_pct"] += 100.0 * max(1.0 - sum(weights.values()), 0.0)
    return RestsOn(**{name: round(part, 1) for name, part in parts.items()})


def _weights(choice: Choice, predicted: Figures) -> dict[str, float]:
    """Part of each LLM in the value; what is left is tool time."""
    names = [host.stage.name for host in choice.hosted]
    if choice.certificate is not None and choice.certificate.metric == "throughput_rps":
        theta = {host.stage.name: choice.pipeline.theta(host) for host in choice.hosted}
        least = min(theta.values())
        full = [name for name in names if theta[name] <= least * (1 + _NEARLY_FULL)]
        return {name: 1.0 / len(full) if name in full else 0.0 for name in names}
    return {name: predicted.per_llm[name].share_of_latency or 0.0 for name in names}
