"""Discrete-event simulation of traced runs on a plan.

Runs arrive (closed, or Poisson), each is a traced run's dependency graph: think and tool times
stay as they were, LLM calls go to the replicas of their deployment by the dispatcher's rule (fewest
in flight, then picked longest ago) and take what the replica's state makes of them. A replica with
an engine model that passed its hold-out is simulated by its engine's steps, any other as a
processor-sharing server of the curve X(k): see ``replicas``.

Not simulated: the network and the dispatcher between agent and engine (a trace's gaps hold some of
it), engines that fail, retries, prefix caches beyond the cached tokens that were traced.

Random numbers depend on the seed and a workflow's name alone: two plans see the same runs arrive
at the same times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.curves.curve import Curve
from scepsy_hpc.planning.simulation.arrivals import Arrivals, arrivals_of
from scepsy_hpc.planning.simulation.flows import Flow, Script, aliases_of
from scepsy_hpc.planning.simulation.hosts import Host, hosts_of
from scepsy_hpc.planning.simulation.replicas import Replica
from scepsy_hpc.planning.simulation.results import Timeline
from scepsy_hpc.planning.simulation.run_graph import graph_flags, run_graphs


def simulate_timeline(
    plan: Plan,
    spans_by_workflow: Mapping[str, Sequence[Span]],
    curves: Mapping[str, Curve],
    arrivals: Arrivals | Mapping[str, Arrivals],
    *,
    seed: int = 0,
    engine_models: Mapping[str, EngineModel] | None = None,
    profiled_on_spans: Collection[str] = (),
) -> Timeline:
    """Simulate traced runs on a complete plan: what happened when (figures: ``result_of``).

    ``curves`` and ``engine_models`` are by deployment; a deployment without an engine model is a
    processor-sharing server. ``arrivals`` may be by workflow; open ones for all are split by the
    plan's mix of rates. ``profiled_on_spans``: deployments whose points were measured with the
    traced calls' own lengths instead of calls alike, so that their dispersion is in the curve
    already. Raises InputError.
    """
    graphs = {name: run_graphs(spans) for name, spans in spans_by_workflow.items()}
    names = {name: aliases_of(plan, name, mine) for name, mine in graphs.items()}
    by_workflow = arrivals_of(plan, arrivals, graphs)
    hosts = hosts_of(plan, names, graphs, curves, engine_models or {}, profiled_on_spans)
    flows = [
        Flow.of(name, graphs[name], names[name], hosts, by_workflow[name], seed) for name in graphs
    ]
    flags = [f"{name}: {flag}" for name, mine in graphs.items() for flag in graph_flags(mine)]
    simulation = _Simulation(flows, hosts, seed)
    simulation.run()
    timeline = simulation.timeline
    flags += [flag for flow in flows for flag in flow.flags]
    for name, host in hosts.items():
        most = simulation.groups[name].most_in_flight
        flags += [f"{name}: {flag}" for flag in host.flags(most)]
    timeline.flags = flags
    return timeline


@dataclass(slots=True)
class _Group:
    """The replicas of one deployment, behind the dispatcher's rule.

    ``ranked`` is a heap of (in flight, last picked, replica); entries that are no longer true
    are skipped when met.
    """

    replicas: list[Replica]
    first: int  # index of the first of them among all replicas
    picked: list[int] = field(default_factory=list)
    ranked: list[tuple[int, int, int]] = field(default_factory=list)
    most_in_flight: int = 0

    def rank(self, index: int) -> None:
        """Note that a replica's load has changed."""
        heappush(self.ranked, (self.replicas[index].in_flight, self.picked[index], index))

    def pick(self) -> int:
        """The replica that takes the next call."""
        while True:
            in_flight, last, index = heappop(self.ranked)
            if in_flight == self.replicas[index].in_flight and last == self.picked[index]:
                self.most_in_flight = max(self.most_in_flight, in_flight + 1)
                return index


_ARRIVE, _READY, _END, _REPLICA, _LEAVE = range(5)


class _Simulation:
    """The event loop. Runs and calls are numbered as they start."""

    def __init__(self, flows: Sequence[Flow], hosts: Mapping[str, Host], seed: int) -> None:
        self.flows = flows
        self.timeline = Timeline(tuple(flow.name for flow in flows), hosts, seed)
        self.groups: dict[str, _Group] = {}
        self.replicas: list[tuple[Replica, _Group]] = []
        for name, host in hosts.items():
            made = [host.replica() for _ in range(host.num_replicas)]
            group = _Group(made, len(self.replicas), [0] * len(made))
            for index in range(len(made)):
                group.rank(index)
            self.groups[name] = group
            self.replicas += [(replica, group) for replica in made]
        self.versions = [0] * len(self.replicas)
        self.events: list[tuple[float, int, int, int, int]] = []
        self.num_events = 0
        self.num_picked = 0
        self.scripts: list[Script] = []
        self.pending: list[list[int]] = []
        self.calls: list[tuple[int, int]] = []

    def run(self) -> None:
        """Until the last run has ended."""
        for index, flow in enumerate(self.flows):
            if flow.times_s is None:
                for _ in range(min(flow.max_in_flight, len(flow.order))):
                    self._arrive(0.0, index)
            else:
                self._push(flow.times_s[0], _ARRIVE, index, 0)
        handlers = (self._on_arrival, self._start, self._end_node, self._advance, self._leave)
        while self.events:
            now_s, _, kind, one, other = heappop(self.events)
            handlers[kind](now_s, one, other)

    def _push(self, time_s: float, kind: int, one: int, other: int) -> None:
        self.num_events += 1
        heappush(self.events, (time_s, self.num_events, kind, one, other))

    def _on_arrival(self, now_s: float, index: int, number: int) -> None:
        flow = self.flows[index]
        assert flow.times_s is not None
        if number + 1 < len(flow.times_s):
            self._push(flow.times_s[number + 1], _ARRIVE, index, number + 1)
        self._arrive(now_s, index)

    def _arrive(self, now_s: float, index: int) -> None:
        flow = self.flows[index]
        traced = flow.order[flow.num_started]
        flow.num_started += 1
        script = flow.scripts[traced]
        run = self.timeline.start_run(index, traced, now_s, script.is_ok)
        self.scripts.append(script)
        self.pending.append(list(script.num_parents))
        for node, number in enumerate(script.num_parents):
            if number == 0:
                self._ready(now_s, run, node)

    def _ready(self, now_s: float, run: int, node: int) -> None:
        """All that a node waited for has ended."""
        script = self.scripts[run]
        if node == len(script.gaps_s):
            self._push(now_s + script.tail_s, _LEAVE, run, 0)
        elif script.sizes[node] is None:
            self._push(now_s + script.gaps_s[node] + script.fixed_s[node], _END, run, node)
        elif script.gaps_s[node] > 0.0:
            self._push(now_s + script.gaps_s[node], _READY, run, node)
        else:
            self._start(now_s, run, node)

    def _start(self, now_s: float, run: int, node: int) -> None:
        """Send a call to a replica."""
        name, size = self.scripts[run].deployments[node], self.scripts[run].sizes[node]
        assert name is not None
        assert size is not None
        group = self.groups[name]
        index = group.pick()
        self.num_picked += 1
        group.picked[index] = self.num_picked
        replica = group.first + index
        call = self.timeline.start_call(run, name, replica, now_s)
        self.calls.append((run, node))
        group.replicas[index].add(call, size, now_s)
        group.rank(index)
        self._schedule(replica)

    def _schedule(self, replica: int) -> None:
        self.versions[replica] += 1
        end_s = self.replicas[replica][0].end_s
        if end_s < math.inf:
            self._push(end_s, _REPLICA, replica, self.versions[replica])

    def _advance(self, now_s: float, replica: int, version: int) -> None:
        if version != self.versions[replica]:
            return  # the replica's next end has changed since
        server, group = self.replicas[replica]
        ended = server.pop()
        if ended:
            group.rank(replica - group.first)
        self._schedule(replica)
        for call in ended:
            self.timeline.end_call(call, now_s)
        for call in ended:
            self._end_node(now_s, *self.calls[call])

    def _end_node(self, now_s: float, run: int, node: int) -> None:
        pending = self.pending[run]
        for child in self.scripts[run].children[node]:
            pending[child] -= 1
            if pending[child] == 0:
                self._ready(now_s, run, child)

    def _leave(self, now_s: float, run: int, _: int) -> None:
        """A run has ended; the next of a closed batch starts."""
        self.timeline.end_run(run, now_s)
        index = self.timeline.run_workflow[run]
        flow = self.flows[index]
        if flow.times_s is None and flow.num_started < len(flow.order):
            self._arrive(now_s, index)
