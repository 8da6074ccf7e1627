"""What arrivals ask of deployments and cores, against what these can do: the first verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scepsy_hpc.formats.spans import BLOCK_TOKENS
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, Open
from scepsy_hpc.planning.simulation.flows import Script
from scepsy_hpc.planning.simulation.hosts import Host, closed_load_rps
from scepsy_hpc.planning.simulation.replicas import Size

_LOOKED_AT = 0.8
"""Part of the curve's capacity from which on an engine's own capacity is measured."""
_FULL = 1.0 - 5e-4
"""Sampled sizes tell the work of exactly capacity a little below it."""
_MOST_SIZES = 256
_MOST_IN_FLIGHT = 2048


@dataclass(frozen=True, slots=True)
class Offered:
    """Load by deployment; ``utilisation`` is work over what all replicas can do, where it is open.

    ``calls_per_run`` is the mean over all workflows by their rates. ``busy_cores`` are those that
    the agents need, of ``cores``; None: no limit.
    """

    calls_per_run: float
    calls_rps: dict[str, float]
    utilisation: dict[str, float]
    busy_cores: float = 0.0
    cores: float | None = None

    @property
    def flags(self) -> list[str]:
        """Deployments, and cores of the agents, that cannot keep up."""
        short = []
        if self.cores is not None and self.busy_cores >= self.cores:
            short.append(
                f"cores: overloaded: agents need {self.busy_cores:.4g} cores at this rate and have "
                f"{self.cores:.4g}; runs pile up, so latencies have no mean"
            )
        return short + [
            f"{name}: overloaded: offered {self.calls_rps[name]:.4g} calls/s, {100 * part:.0f}% of "
            "capacity; calls pile up, so latencies have no mean"
            for name, part in self.utilisation.items()
            if part >= _FULL
        ]


def offered_by(
    arrivals: Mapping[str, Arrivals],
    scripts: Mapping[str, Sequence[Script]],
    hosts: Mapping[str, Host],
    cores: float | None = None,
) -> Offered:
    """Load of these arrivals; closed and timed ones weigh in calls per run alone.

    ``cores``: those of the agents, if limited.
    """
    names = list(hosts)
    calls_rps, work_rps = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    sizes: dict[str, list[Size]] = {name: [] for name in names}
    calls, weights, busy_cores = 0.0, 0.0, 0.0
    for workflow, mine in scripts.items():
        load = arrivals[workflow]
        weight = load.rate_rps if isinstance(load, Open) else 1.0
        called = 0
        if isinstance(load, Open):
            busy_cores += weight * sum(script.cpu_s for script in mine) / len(mine)
        for script in mine:
            for node, (deployment, size) in enumerate(
                zip(script.deployments, script.sizes, strict=True)
            ):
                if size is None:
                    continue
                called += 1
                name = names[deployment]
                sizes[name].append(_at_best(script, node, size))
                if isinstance(load, Open):
                    calls_rps[name] += weight / len(mine)
                    work_rps[name] += weight / len(mine) * size.work
        calls += weight * called / len(mine)
        weights += weight
    utilisation = {}
    if not any(isinstance(load, Closed) for load in arrivals.values()):
        for name, host in hosts.items():
            part = work_rps[name] / (host.num_replicas * host.curve.capacity_rps)
            if host.engine is not None and part >= _LOOKED_AT:
                most_rps = _engine_rps(host, sizes[name])
                part = calls_rps[name] / (host.num_replicas * most_rps)
            utilisation[name] = part
    # Closed arrivals wait for their cores, and load them only as far as these go.
    limit = cores if utilisation else None
    return Offered(calls / weights, calls_rps, utilisation, busy_cores, limit)


def _engine_rps(host: Host, sizes: Sequence[Size]) -> float:
    """Calls per second of an engine with as many of these calls as it can take at once.

    Calls that share a prefix share room in the KV cache, too: it is no limit here.
    """
    assert host.engine is not None
    step = max(len(sizes) // _MOST_SIZES, 1)
    in_flight = min(host.engine.max_num_seqs, _MOST_IN_FLIGHT)
    shared = replace(host.engine, model=replace(host.engine.model, kv_tokens=None))
    return closed_load_rps(shared, sizes[::step], in_flight)


def _at_best(script: Script, node: int, size: Size) -> Size:
    """A call that finds all of the prefix that it repeats: only what is certain is an overload."""
    if script.paths is None or script.holders[node] < 0:
        return size
    found = script.paths[node][-1].first * BLOCK_TOKENS
    return size._replace(prefill_tokens=max(min(size.prefill_tokens, size.input_tokens - found), 1))
