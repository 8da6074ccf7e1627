"""What is simulated: arrivals, which traced runs come when, and what the plan hosts them on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.curves.curve import Curve
from scepsy_hpc.planning.simulation.hosts import Host, engine_on, mean_sizes
from scepsy_hpc.planning.simulation.replicas import Size
from scepsy_hpc.planning.simulation.run_graph import RunGraph, RunNode


@dataclass(frozen=True, slots=True)
class Closed:
    """A batch: ``num_runs`` in all, at most ``max_in_flight`` at a time, the first at once."""

    num_runs: int
    max_in_flight: int

    def __post_init__(self) -> None:
        if self.num_runs < 1 or self.max_in_flight < 1:
            raise InputError(
                f"num_runs ({self.num_runs}) and max_in_flight ({self.max_in_flight}) must be at "
                "least 1"
            )


@dataclass(frozen=True, slots=True)
class Open:
    """``num_runs`` Poisson arrivals at ``rate_rps`` runs per second, into an idle system."""

    num_runs: int
    rate_rps: float

    def __post_init__(self) -> None:
        if self.num_runs < 1:
            raise InputError(f"num_runs ({self.num_runs}) must be at least 1")
        if not (math.isfinite(self.rate_rps) and self.rate_rps > 0):
            raise InputError(f"rate_rps ({self.rate_rps}) must be finite and greater than 0")


Arrivals = Closed | Open


def arrivals_of(
    plan: Plan,
    arrivals: Arrivals | Mapping[str, Arrivals],
    graphs: Mapping[str, Sequence[RunGraph]],
) -> dict[str, Arrivals]:
    """Arrivals of each workflow; open ones for all are split by the plan's mix of rates.

    Raises InputError.
    """
    empty = [name for name, mine in graphs.items() if not mine]
    if not graphs or empty:
        raise InputError(
            f"workflow {', '.join(empty) or '(none given)'}: has no spans to simulate; record some "
            "with `scepsy trace`"
        )
    if isinstance(arrivals, Closed | Open):
        if len(graphs) == 1:
            return dict.fromkeys(graphs, arrivals)
        if isinstance(arrivals, Closed):
            raise InputError(
                f"arrivals: a batch of several workflows ({', '.join(graphs)}) needs its number "
                "of runs and its runs in flight for each"
            )
        return dict(_split(plan, arrivals, list(graphs)))
    if set(arrivals) != set(graphs):
        raise InputError(
            f"arrivals: are for {', '.join(sorted(arrivals))}; spans are for "
            f"{', '.join(sorted(graphs))}"
        )
    return dict(arrivals)


def _split(plan: Plan, arrivals: Open, names: Sequence[str]) -> dict[str, Open]:
    known = {workflow.name: workflow.rate_rps for workflow in plan.workflows}
    rates = {name: known.get(name) or 1.0 for name in names}  # no rate counts as any other
    parts = {name: rate / sum(rates.values()) for name, rate in rates.items()}
    return {
        name: Open(max(round(arrivals.num_runs * part), 1), arrivals.rate_rps * part)
        for name, part in parts.items()
    }


def aliases_of(plan: Plan, workflow: str, graphs: Sequence[RunGraph]) -> dict[str, str]:
    """Deployment of each alias in the spans. Raises InputError naming an alias without one."""
    found = next((w.llms for w in plan.workflows if w.name == workflow), None)
    if found is None and plan.workflows:
        known = ", ".join(w.name for w in plan.workflows)
        raise InputError(f"workflow {workflow}: is not in the plan; known: {known}")
    deployments = num_replicas(plan)
    named = found if found is not None else {name: name for name in deployments}
    for graph in graphs:
        for node in graph.nodes:
            if node.llm is not None and named.get(node.llm) not in deployments:
                known = ", ".join(sorted(named)) or "none"
                raise InputError(
                    f"workflow {workflow}: run {graph.run_id} calls {node.llm!r}, which the plan "
                    f"does not host; known: {known}"
                )
    return named


def num_replicas(plan: Plan) -> dict[str, int]:
    """Replicas of each deployment: its instances where the plan places them."""
    found = {name: deployment.num_replicas for name, deployment in plan.llms.items()}
    for name in {instance.llm for instance in plan.instances}:
        found[name] = sum(instance.llm == name for instance in plan.instances)
    return found


def hosts_of(
    plan: Plan,
    names: Mapping[str, Mapping[str, str]],
    graphs: Mapping[str, Sequence[RunGraph]],
    curves: Mapping[str, Curve],
    engine_models: Mapping[str, EngineModel],
    profiled_on_spans: Collection[str],
) -> dict[str, Host]:
    """Every deployment that has a curve, on its replicas. Raises InputError where one lacks."""
    nodes: dict[str, list[RunNode]] = {}
    for workflow, mine in graphs.items():
        for node in (node for graph in mine for node in graph.nodes if node.llm is not None):
            nodes.setdefault(names[workflow][str(node.llm)], []).append(node)
    found = {}
    for name, number in num_replicas(plan).items():
        if name not in curves:
            if name in nodes:
                raise InputError(f"{name}: has no curve; simulation needs one for each LLM called")
            continue
        host = Host(curves[name], number)
        if name in engine_models and name in nodes:
            sizes = mean_sizes(host.curve)
            if name in profiled_on_spans:
                sizes = [_size(host, node) for node in nodes[name]]
            engine = engine_on(engine_models[name], host.curve, sizes)
            host = Host(host.curve, number, engine)
        found[name] = host
    return found


def _size(host: Host, node: RunNode) -> Size:
    return host.size(node.input_tokens, node.output_tokens, node.cached_tokens)


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
        sizes = tuple(None if name is None else _size(hosts[name], n) for n, name in pairs)
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
