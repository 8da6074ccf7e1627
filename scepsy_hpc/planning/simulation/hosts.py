"""What the deployments of a simulation run on: replicas, sizes of calls, engines held to curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import ReplicaServer
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import BLOCK_TOKENS
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.pipeline.of_plan import num_replicas
from scepsy_hpc.planning.simulation.continuous import ContinuousBatching, Engine
from scepsy_hpc.planning.simulation.replicas import ProcessorSharing, Replica, Size
from scepsy_hpc.planning.simulation.run_graph import RunGraph, RunNode

_MOST_TURNS = 128
_MOST_HELD = 10


@dataclass(frozen=True, slots=True)
class Host:
    """What one deployment runs on. Without an engine its replicas share their processor."""

    curve: Curve
    num_replicas: int
    engine: Engine | None = None

    @property
    def server(self) -> ReplicaServer:
        """What its replicas are taken for."""
        return "processor_sharing" if self.engine is None else "continuous_batching"

    def flags(self, most_in_flight: int) -> tuple[str, ...]:
        """What its figures rest on, if a replica held at most so many calls at once."""
        first, last = self.curve.server.concurrency[0], self.curve.server.concurrency[-1]
        found = list(self.curve.flags)
        if self.engine is None and first > 1.0:
            found.append(f"below_first_concurrency: latency is held flat below {first:g}")
        if most_in_flight > last:
            held = "throughput is held" if self.engine is None else "the engine model goes on"
            found.append(
                f"extrapolated: a replica had up to {most_in_flight} calls in flight, known are "
                f"{last:g}; {held} beyond"
            )
        return tuple(found)

    def replica(self) -> Replica:
        """A new, idle replica."""
        if self.engine is None:
            return ProcessorSharing(self.curve.server)
        return ContinuousBatching(self.engine)

    def size(self, node: RunNode) -> Size:
        """Size of a call; tokens that are unknown are those of a mean call."""
        return size_of(self.curve, node.input_tokens, node.output_tokens, node.cached_tokens)


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
    for name in plan.llms:
        if name not in curves:
            if name in nodes:
                raise InputError(f"{name}: has no curve; simulation needs one for each LLM called")
            continue
        host = Host(curves[name], num_replicas(plan, name))
        if name in engine_models and name in nodes:
            sizes = mean_sizes(host.curve)
            if name in profiled_on_spans:
                sizes = [host.size(node) for node in nodes[name]]
            host = replace(host, engine=engine_on(engine_models[name], host.curve, sizes))
        found[name] = host
    return found


def engines_used(
    server: ReplicaServer | None,
    engine_models: Mapping[str, EngineModel],
    names: Mapping[str, Mapping[str, str]],
    graphs: Mapping[str, Sequence[RunGraph]],
) -> dict[str, EngineModel]:
    """Engine models of the deployments whose replicas are engines; the others share X(k).

    None: only where a call repeats the prompt of another to the same deployment, as hits are a
    state that a shared processor does not have. Raises InputError where an engine is asked for and
    has no model.
    """
    if server == "processor_sharing":
        return {}
    called: set[str] = set()
    repeated: set[str] = set()
    for workflow, mine in graphs.items():
        for graph in mine:
            to = [None if n.llm is None else names[workflow][n.llm] for n in graph.nodes]
            called.update(name for name in to if name is not None)
            pairs = zip(to, graph.nodes, strict=True)
            repeated.update(n for n, node in pairs if n and _repeats(node, n, to))
    if server is None:
        return {name: model for name, model in engine_models.items() if name in repeated}
    lacking = sorted(called - set(engine_models))
    if lacking:
        raise InputError(
            f"{', '.join(lacking)}: --server continuous_batching: has no engine model that passed "
            "its hold-out; take processor_sharing"
        )
    return dict(engine_models)


def _repeats(node: RunNode, name: str, called: Sequence[str | None]) -> bool:
    return node.prefix_of is not None and called[node.prefix_of[0]] == name


def size_of(curve: Curve, inputs: int | None, outputs: int | None, cached: int | None) -> Size:
    """Size of a call under a curve; tokens that are unknown are those of a mean call."""
    mean = curve.tokens
    if inputs is None:
        inputs, cached = round(mean.inputs), round(mean.cached)
    outputs = max(round(mean.outputs) if outputs is None else outputs, 1)
    work = curve.work_of(TokenLengths(inputs, outputs, cached or 0))
    return Size(work, max(inputs - (cached or 0), 1), inputs, outputs)


def engine_on(model: EngineModel, curve: Curve, sizes: Sequence[Size]) -> Engine:
    """The engine model, made to reach the curve under closed loads of calls of these sizes.

    The sizes should be those that the points were measured with: ``mean_sizes``, or the traced
    calls' own. Between points the factor is linear in the logarithm of the calls in flight, as the
    curve is made; above the last and below the first it is the nearest point's.
    """
    kv_tokens = model.kv_tokens
    if kv_tokens is not None:
        # What was measured has fitted.
        tokens = curve.tokens.inputs + curve.tokens.outputs + BLOCK_TOKENS
        kv_tokens = max(kv_tokens, curve.server.concurrency[-1] * tokens)
    plain = Engine(replace(model, kv_tokens=kv_tokens))
    loads_rps = _closed_loads_rps(plain, tuple(sizes), tuple(_held(curve)))
    known = [(k, rps / float(curve.server.rate_rps(k))) for k, rps in loads_rps]
    whole = np.log(np.maximum(np.arange(known[-1][0] + 1), 1))
    stretch = np.interp(whole, np.log([k for k, _ in known]), [factor for _, factor in known])
    return replace(plain, stretch=tuple(stretch.tolist()))


@lru_cache(maxsize=256)
def _closed_loads_rps(
    engine: Engine, sizes: tuple[Size, ...], held: tuple[int, ...]
) -> tuple[tuple[int, float], ...]:
    """Kept: a plan is checked several times over, by the same engines."""
    return tuple((k, closed_load_rps(engine, sizes, k)) for k in held)


def _held(curve: Curve) -> list[int]:
    """Calls in flight at which the engine is held to the curve: the first, the last, some between.

    Each costs a simulation of a few times as many calls.
    """
    every = sorted({max(round(k), 1) for k in curve.held_at or curve.server.concurrency})
    if len(every) <= _MOST_HELD:
        return every
    places = np.linspace(0, len(every) - 1, _MOST_HELD).round().astype(int)
    return [every[i] for i in places.tolist()]


def mean_sizes(curve: Curve) -> list[Size]:
    """Calls alike, of the curve's mean lengths; means between whole numbers take turns."""
    mean, number = curve.tokens, 16
    found = []
    for i in range(number):
        inputs, outputs, cached = (
            round((i + 1) * tokens) - round(i * tokens)
            for tokens in (mean.inputs, mean.outputs, mean.cached)
        )
        found.append(size_of(curve, inputs, outputs, cached))
    return found


def closed_load_rps(engine: Engine, sizes: Sequence[Size], in_flight: int) -> float:
    """Calls per second with so many always in flight, sizes in turn."""
    replica = ContinuousBatching(engine)
    turn = 0
    for _ in range(in_flight):
        replica.add(0, sizes[turn % len(sizes)], 0.0)
        turn += 1
    warm = 2 * in_flight
    until = warm + max(4 * in_flight, 2 * min(len(sizes), _MOST_TURNS))
    count, warm_s, now_s = 0, 0.0, 0.0
    while count < until:
        now_s = replica.end_s
        ended = len(replica.pop())
        for _ in range(ended):
            replica.add(0, sizes[turn % len(sizes)], now_s)
            turn += 1
        if count < warm <= count + ended:
            warm_s, warm = now_s, count + ended
        count += ended
    return (count - warm) / (now_s - warm_s)
