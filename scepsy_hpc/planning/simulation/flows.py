"""Which traced runs come, in which order, and what each asks for."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, Open, Timed
from scepsy_hpc.planning.simulation.hosts import Host
from scepsy_hpc.planning.simulation.prefix_cache import Stretch, paths_of
from scepsy_hpc.planning.simulation.replicas import Size
from scepsy_hpc.planning.simulation.run_graph import RunGraph

_AT_ONCE = 4096


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

    ``sizes`` is None where a node takes a fixed time, ``deployments`` (their index) is -1 there.
    ``paths`` are the calls' blocks among the run's, where a prompt repeats another's, and
    ``holders`` the nodes they repeat (-1: none). ``cpu_part`` of think and tool times is CPU time,
    ``cpu_s`` in all.
    """

    gaps_s: tuple[float, ...]
    fixed_s: tuple[float, ...]
    deployments: tuple[int, ...]
    sizes: tuple[Size | None, ...]
    children: tuple[tuple[int, ...], ...]
    num_parents: tuple[int, ...]
    first: tuple[int, ...]
    tail_s: float
    is_ok: bool
    paths: tuple[tuple[Stretch, ...], ...] | None = None
    holders: tuple[int, ...] = ()
    cpu_part: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def of(cls, graph: RunGraph, names: Mapping[str, str], hosts: Mapping[str, Host]) -> Script:
        end = len(graph.nodes)
        children: list[list[int]] = [[] for _ in graph.nodes]
        parents = [*(node.parents for node in graph.nodes), graph.end_parents]
        for child, mine in enumerate(parents):
            for parent in mine:
                children[parent].append(child)
        called = [names[n.llm] if n.llm is not None else None for n in graph.nodes]
        pairs = list(zip(graph.nodes, called, strict=True))
        prefixes = _prefixes(graph, called, hosts)
        shares = any(prefix is not None for prefix in prefixes)
        sizes = tuple(None if name is None else hosts[name].size(n) for n, name in pairs)
        if shares:
            sizes = _found_anyway(sizes, prefixes)
        outside_s = _outside_s(graph)
        index = {name: i for i, name in enumerate(hosts)}
        return cls(
            gaps_s=tuple(node.gap_s for node in graph.nodes),
            fixed_s=tuple(node.traced_s for node in graph.nodes),
            deployments=tuple(-1 if name is None else index[name] for name in called),
            sizes=sizes,
            children=tuple(map(tuple, children)),
            num_parents=tuple(len(parents[i]) for i in range(end + 1)),
            first=tuple(i for i in range(end + 1) if not parents[i]),
            tail_s=graph.tail_s,
            is_ok=graph.is_ok,
            paths=_paths(sizes, prefixes) if shares else None,
            holders=tuple(-1 if prefix is None else prefix[0] for prefix in prefixes),
            cpu_part=(graph.cpu_s or 0.0) / outside_s if outside_s > 0.0 else 0.0,
            cpu_s=(graph.cpu_s or 0.0) if outside_s > 0.0 else 0.0,
        )


def _prefixes(
    graph: RunGraph, called: Sequence[str | None], hosts: Mapping[str, Host]
) -> list[tuple[int, int] | None]:
    """What each node's prompt repeats, where both go to one deployment that has a prefix cache."""
    found: list[tuple[int, int] | None] = []
    for node, name in zip(graph.nodes, called, strict=True):
        prefix = node.prefix_of
        if prefix is None or name is None or called[prefix[0]] != name:
            found.append(None)
        else:
            found.append(prefix if hosts[name].engine is not None else None)
    return found


def _found_anyway(
    sizes: Sequence[Size | None], prefixes: Sequence[tuple[int, int] | None]
) -> tuple[Size | None, ...]:
    """Sizes with only those traced hits that do not depend on what the replica did before.

    A call that repeats no other and had hits found what all runs share; whoever goes on from it
    finds that too.
    """
    found: list[Size | None] = []
    for size, prefix in zip(sizes, prefixes, strict=True):
        if size is not None and prefix is not None:
            before = found[prefix[0]]
            assert before is not None
            shared = min(before.input_tokens - before.prefill_tokens, prefix[1])
            size = size._replace(prefill_tokens=max(size.input_tokens - shared, 1))
        found.append(size)
    return tuple(found)


def _paths(
    sizes: Sequence[Size | None], prefixes: Sequence[tuple[int, int] | None]
) -> tuple[tuple[Stretch, ...], ...]:
    tokens = [0 if size is None else size.input_tokens + size.output_tokens for size in sizes]
    return tuple(paths_of(prefixes, tokens))


def _outside_s(graph: RunGraph) -> float:
    """Seconds of think and tool time, over which the agent's CPU time is spread."""
    return graph.tail_s + sum(
        node.gap_s + (node.traced_s if node.llm is None else 0.0) for node in graph.nodes
    )


@dataclass(slots=True)
class Flow:
    """One workflow: which of its traced runs come, and when (``times_s`` None: as room is free).

    ``left`` is how many may still come; infinite in a steady state.
    """

    name: str
    scripts: list[Script]
    order: Iterator[int]
    times_s: Iterator[float] | None
    max_in_flight: int
    left: float
    flags: list[str]

    @classmethod
    def of(
        cls,
        name: str,
        scripts: list[Script],
        arrivals: Arrivals,
        seed: int,
        in_order: bool = True,
    ) -> Flow:
        """A workflow's runs.

        So many runs are a sample of the traced ones (``sampled``), in file order while they last
        if ``in_order``; runs without end are drawn one by one, each as likely as any other.
        """
        chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
        number = arrivals.num_runs
        if number is None:
            return cls._endless(name, scripts, arrivals, chance)
        gaps = chance.exponential(size=number)  # drawn for a closed batch too: one stream for both
        order = sampled(len(scripts), number, chance, in_order)
        flags = []
        if number > len(scripts):
            flags.append(f"{name}: resampled: {number} runs from {len(scripts)} traced ones")
        times_s, room = None, number
        if isinstance(arrivals, Open):
            times_s = iter((np.cumsum(gaps) / arrivals.rate_rps).tolist())
        elif isinstance(arrivals, Timed):
            times_s = iter(arrivals.times_s)
        else:
            room = arrivals.max_in_flight
        return cls(name, scripts, iter(order), times_s, room, number, flags)

    @classmethod
    def _endless(
        cls,
        name: str,
        scripts: list[Script],
        arrivals: Arrivals,
        chance: np.random.Generator,
    ) -> Flow:
        of_gaps, of_runs = chance.spawn(2)
        times_s, room = None, 0
        if isinstance(arrivals, Open):
            times_s = _poisson_s(arrivals.rate_rps, of_gaps)
        elif isinstance(arrivals, Closed):
            room = arrivals.max_in_flight
        order = _drawn(len(scripts), of_runs)
        return cls(name, scripts, order, times_s, room, math.inf, [])


def _poisson_s(rate_rps: float, chance: np.random.Generator) -> Iterator[float]:
    now_s = 0.0
    while True:
        times_s = now_s + np.cumsum(chance.exponential(size=_AT_ONCE)) / rate_rps
        now_s = float(times_s[-1])
        yield from times_s.tolist()


def _drawn(num_traced: int, chance: np.random.Generator) -> Iterator[int]:
    while True:
        yield from chance.integers(0, num_traced, size=_AT_ONCE).tolist()


def sampled(
    num_traced: int, num_runs: int, chance: np.random.Generator, in_order: bool = True
) -> list[int]:
    """Which traced runs are run: in file order while they last, else in random order.

    More runs than traced ones are drawn by a balanced bootstrap: every traced run equally often
    but for a remainder drawn without replacement, all in random order.
    """
    if num_runs <= num_traced and in_order:
        return list(range(num_runs))
    passes, rest = divmod(num_runs, num_traced)
    every = np.tile(np.arange(num_traced), passes)
    some = chance.permutation(num_traced)[:rest]
    return [int(i) for i in chance.permutation(np.concatenate([every, some]))]
