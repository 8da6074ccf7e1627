"""Which traced runs come, in which order, and what each asks for."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Open
from scepsy_hpc.planning.simulation.hosts import Host
from scepsy_hpc.planning.simulation.replicas import Size
from scepsy_hpc.planning.simulation.run_graph import RunGraph


def aliases_of(plan: Plan, workflow: str, graphs: Sequence[RunGraph]) -> dict[str, str]:
    """Deployment of each alias in the spans. Raises InputError naming an alias without one."""
    planned = {w.name: w.llms for w in plan.workflows}
    if workflow not in planned:
        known = ", ".join(planned) or "none"
        raise InputError(f"workflow {workflow}: is not in the plan; known: {known}")
    named = planned[workflow]
    for graph in graphs:
        for node in graph.nodes:
            if node.llm is not None and node.llm not in named:
                known = ", ".join(sorted(named)) or "none"
                raise InputError(
                    f"workflow {workflow}: run {graph.run_id} calls {node.llm!r}, which the plan "
                    f"does not host; known: {known}"
                )
    return named


@dataclass(frozen=True, slots=True)
class Script:
    """A run graph as the event loop wants it. Index ``len(gaps_s)`` stands for the run's end.

    ``sizes`` is None where a node takes a fixed time.
    """

    gaps_s: tuple[float, ...]
    fixed_s: tuple[float, ...]
    deployments: tuple[str | None, ...]
    sizes: tuple[Size | None, ...]
    children: tuple[tuple[int, ...], ...]
    num_parents: tuple[int, ...]
    tail_s: float
    is_ok: bool

    @classmethod
    def of(cls, graph: RunGraph, names: Mapping[str, str], hosts: Mapping[str, Host]) -> Script:
        end = len(graph.nodes)
        children: list[list[int]] = [[] for _ in graph.nodes]
        parents = [*(node.parents for node in graph.nodes), graph.end_parents]
        for child, mine in enumerate(parents):
            for parent in mine:
                children[parent].append(child)
        deployments = tuple(names[n.llm] if n.llm is not None else None for n in graph.nodes)
        pairs = zip(graph.nodes, deployments, strict=True)
        sizes = tuple(None if name is None else hosts[name].size(n) for n, name in pairs)
        return cls(
            gaps_s=tuple(node.gap_s for node in graph.nodes),
            fixed_s=tuple(node.traced_s for node in graph.nodes),
            deployments=deployments,
            sizes=sizes,
            children=tuple(map(tuple, children)),
            num_parents=tuple(len(parents[i]) for i in range(end + 1)),
            tail_s=graph.tail_s,
            is_ok=graph.is_ok,
        )


@dataclass(slots=True)
class Flow:
    """One workflow: which of its traced runs come, in order, and when (None: as room is free)."""

    name: str
    scripts: list[Script]
    order: list[int]
    times_s: list[float] | None
    max_in_flight: int
    flags: list[str]
    num_started: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        graphs: Sequence[RunGraph],
        names: Mapping[str, str],
        hosts: Mapping[str, Host],
        arrivals: Arrivals,
        seed: int,
    ) -> Flow:
        chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
        number = arrivals.num_runs
        gaps = chance.exponential(size=number)  # drawn for a closed batch too: one stream for both
        order = sampled(len(graphs), number, chance)
        flags = []
        if number > len(graphs):
            flags.append(f"{name}: resampled: {number} runs from {len(graphs)} traced ones")
        times_s, room = None, number
        if isinstance(arrivals, Open):
            times_s = [float(t) for t in np.cumsum(gaps) / arrivals.rate_rps]
        else:
            room = arrivals.max_in_flight
        return cls(
            name=name,
            scripts=[Script.of(graph, names, hosts) for graph in graphs],
            order=order,
            times_s=times_s,
            max_in_flight=room,
            flags=flags,
        )


def sampled(num_traced: int, num_runs: int, chance: np.random.Generator) -> list[int]:
    """Which traced runs are run: in file order while they last.

    More runs than traced ones are drawn by a balanced bootstrap: every traced run equally often
    but for a remainder drawn without replacement, all in random order.
    """
    if num_runs <= num_traced:
        return list(range(num_runs))
    passes, rest = divmod(num_runs, num_traced)
    every = np.tile(np.arange(num_traced), passes)
    some = chance.permutation(num_traced)[:rest]
    return [int(i) for i in chance.permutation(np.concatenate([every, some]))]
