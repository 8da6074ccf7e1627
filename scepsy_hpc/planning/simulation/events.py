"""Discrete-event simulation of traced runs on a plan.

Runs arrive (closed, Poisson, or at given times), each is a traced run's dependency graph: think
and tool times stay as they were, LLM calls go to the replicas of their deployment by the
dispatcher's rule (fewest in flight, then picked longest ago) and take what the replica's state
makes of them. A replica with an engine model that passed its hold-out is simulated by its engine's
steps, any other as a processor-sharing server of the curve X(k): see ``replicas``.

Where spans say what a prompt repeats (``prefix_of``), an engine's prefix cache is part of its
state, and `sticky_prefix` sends a call to the replica that has its prefix. Where they say the CPU
seconds of the agents, these share so many cores (``host_cores``).

Not simulated: the network and the dispatcher between agent and engine (a trace's gaps hold some of
it), engines that fail, retries.

What happens goes to a `Recorder`: `results.Timeline` keeps every run and call, `tally.Tally` is
bounded. Random numbers depend on the seed and a workflow's name alone: two plans see the same runs
arrive at the same times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.curves.curve import Curve
from scepsy_hpc.planning.simulation.arrivals import Arrivals, arrivals_of
from scepsy_hpc.planning.simulation.flows import Flow, Script, aliases_of
from scepsy_hpc.planning.simulation.host_cores import HostCores
from scepsy_hpc.planning.simulation.hosts import Host, hosts_of
from scepsy_hpc.planning.simulation.prefix_cache import Stretch
from scepsy_hpc.planning.simulation.replicas import Replica
from scepsy_hpc.planning.simulation.results import Timeline
from scepsy_hpc.planning.simulation.run_graph import RunGraph, graph_flags, run_graphs


class Recorder(Protocol):
    """Told what happens. Runs are numbered as they start; what names a call is its own matter.

    ``workflow`` and ``deployment`` are indices; the simulation stops once ``is_done``.
    """

    is_done: bool

    def start_run(self, workflow: int, traced: int, now_s: float, is_ok: bool) -> int:
        """Number of a run that starts."""
        ...

    def end_run(self, run: int, workflow: int, start_s: float, now_s: float, is_ok: bool) -> None:
        """A run has ended."""
        ...

    def start_call(self, run: int, deployment: int, replica: int, now_s: float) -> int:
        """Name of a call that starts."""
        ...

    def end_call(self, call: int, deployment: int, start_s: float, now_s: float) -> None:
        """A call has ended."""
        ...


def simulate_timeline(
    plan: Plan,
    spans_by_workflow: Mapping[str, Sequence[Span]],
    curves: Mapping[str, Curve],
    arrivals: Arrivals | Mapping[str, Arrivals],
    *,
    seed: int = 0,
    engine_models: Mapping[str, EngineModel] | None = None,
    profiled_on_spans: Collection[str] = (),
    cores: float | None = None,
) -> Timeline:
    """Simulate traced runs on a complete plan: what happened when (figures: ``result_of``).

    ``curves`` and ``engine_models`` are by deployment; a deployment without an engine model is a
    processor-sharing server. ``arrivals`` may be by workflow; open ones for all are split by the
    plan's mix of rates. ``profiled_on_spans``: deployments whose points were measured with the
    traced calls' own lengths instead of calls alike, so that their dispersion is in the curve
    already. ``cores``: those of the agents, where waiting for them is to be simulated. Raises
    InputError.
    """
    graphs = {name: run_graphs(spans) for name, spans in spans_by_workflow.items()}
    names = {name: aliases_of(plan, name, mine) for name, mine in graphs.items()}
    by_workflow = arrivals_of(plan, arrivals, graphs)
    endless = [name for name, mine in by_workflow.items() if mine.num_runs is None]
    if endless:
        raise InputError(f"arrivals: {', '.join(endless)}: a timeline needs a number of runs")
    hosts = hosts_of(plan, names, graphs, curves, engine_models or {}, profiled_on_spans)
    flows = [
        Flow.of(name, scripts_of(mine, names[name], hosts), by_workflow[name], seed)
        for name, mine in graphs.items()
    ]
    timeline = Timeline(tuple(graphs), hosts, seed)
    simulation = Simulation(flows, hosts, timeline, plan.routing, cores)
    simulation.run()
    timeline.flags = [*flags_of(graphs), *(flag for flow in flows for flag in flow.flags)]
    timeline.flags += simulation.flags()
    return timeline


def scripts_of(
    graphs: Sequence[RunGraph], names: Mapping[str, str], hosts: Mapping[str, Host]
) -> list[Script]:
    """Traced runs as the event loop wants them."""
    return [Script.of(graph, names, hosts) for graph in graphs]


def flags_of(graphs: Mapping[str, Sequence[RunGraph]]) -> list[str]:
    """What the traced runs of each workflow rest on."""
    return [f"{name}: {flag}" for name, mine in graphs.items() for flag in graph_flags(mine)]


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

    def pick(self, holder: int = -1, max_behind: int = 0) -> int:
        """The replica that takes the next call; ``holder`` (-1: none) has its prefix.

        The choice is that of `engines.picking.pick`.
        """
        while True:
            in_flight, last, index = heappop(self.ranked)
            if in_flight == self.replicas[index].in_flight and last == self.picked[index]:
                break
        if holder >= 0 and holder != index:
            held = self.replicas[holder].in_flight
            if held - in_flight <= max_behind:
                heappush(self.ranked, (in_flight, last, index))
                in_flight, index = held, holder
        self.most_in_flight = max(self.most_in_flight, in_flight + 1)
        return index


class _Run:
    """A run under way; ``went_to`` are the replicas of its calls so far, where prefixes matter."""

    __slots__ = ("flow", "number", "pending", "script", "start_s", "went_to")

    def __init__(self, flow: int, script: Script, number: int, start_s: float) -> None:
        self.flow = flow
        self.script = script
        self.number = number
        self.start_s = start_s
        self.pending = list(script.num_parents)
        self.went_to = [-1] * len(script.sizes) if script.paths is not None else None


class _Call(NamedTuple):
    """A call under way; ``name`` is the recorder's."""

    run: _Run
    node: int
    name: int
    start_s: float


_ARRIVE, _READY, _END, _REPLICA, _LEAVE, _COMPUTE, _CORES = range(7)


class Simulation:
    """The event loop."""

    def __init__(
        self,
        flows: Sequence[Flow],
        hosts: Mapping[str, Host],
        recorder: Recorder,
        routing: Routing | None = None,
        cores: float | None = None,
    ) -> None:
        """Idle replicas, and flows that have not begun; ``cores`` of the agents, if limited."""
        self.sticky = -1  # least in flight
        if routing is not None and routing.rule == "sticky_prefix":
            self.sticky = routing.max_behind
        self.cores = HostCores(cores) if cores is not None else None
        self.cores_version = 0
        self.flows = flows
        self.hosts = hosts
        self.recorder = recorder
        self.groups: list[_Group] = []
        self.replicas: list[tuple[Replica, _Group]] = []
        for host in hosts.values():
            made = [host.replica() for _ in range(host.num_replicas)]
            group = _Group(made, len(self.replicas), [0] * len(made))
            for index in range(len(made)):
                group.rank(index)
            self.groups.append(group)
            self.replicas += [(replica, group) for replica in made]
        self.versions = [0] * len(self.replicas)
        self.events: list[tuple[float, int, int, Any, int]] = []
        self.num_events = 0
        self.num_calls = 0
        self.now_s = 0.0
        self.most_calls: float = math.inf
        self._has_begun = False
        self.handlers: tuple[Callable[[float, Any, int], None], ...] = (
            self._on_arrival,
            self._start,
            self._end_node,
            self._advance,
            self._leave,
            self._compute,
            self._advance_cores,
        )

    def run(self) -> None:
        """Until the last run has ended, the recorder is done, or ``most_calls`` were sent."""
        if not self._has_begun:
            self._begin()
        handlers, events, recorder = self.handlers, self.events, self.recorder
        versions, most_calls = self.versions, self.most_calls
        while events and not recorder.is_done and self.num_calls < most_calls:
            now_s, _, kind, one, other = heappop(events)
            if kind == _REPLICA and other != versions[one]:
                continue  # the replica's next end has changed since
            self.now_s = now_s
            handlers[kind](now_s, one, other)

    def flags(self) -> list[str]:
        """What the deployments' figures rest on, after what has happened."""
        return [
            f"{name}: {flag}"
            for (name, host), group in zip(self.hosts.items(), self.groups, strict=True)
            for flag in host.flags(group.most_in_flight)
        ]

    def _begin(self) -> None:
        self._has_begun = True
        for index, flow in enumerate(self.flows):
            if flow.times_s is None:
                for _ in range(int(min(flow.max_in_flight, flow.left))):
                    self._arrive(0.0, index)
            else:
                self._push(next(flow.times_s), _ARRIVE, index, 0)

    def _push(self, time_s: float, kind: int, one: Any, other: int) -> None:
        self.num_events += 1
        heappush(self.events, (time_s, self.num_events, kind, one, other))

    def _on_arrival(self, now_s: float, index: int, _: int) -> None:
        flow = self.flows[index]
        assert flow.times_s is not None
        if flow.left > 1:
            self._push(next(flow.times_s), _ARRIVE, index, 0)
        self._arrive(now_s, index)

    def _arrive(self, now_s: float, index: int) -> None:
        flow = self.flows[index]
        traced = next(flow.order)
        flow.left -= 1
        script = flow.scripts[traced]
        number = self.recorder.start_run(index, traced, now_s, script.is_ok)
        run = _Run(index, script, number, now_s)
        for node in script.first:
            self._ready(now_s, run, node)

    def _ready(self, now_s: float, run: _Run, node: int) -> None:
        """All that a node waited for has ended."""
        script = run.script
        if node == len(script.gaps_s):
            if script.tail_s > 0.0 or self.flows[run.flow].times_s is None:
                self._think(now_s, script.tail_s, _LEAVE, run, node)
            else:
                self._leave(now_s, run, 0)
        elif script.deployments[node] < 0:
            self._think(now_s, script.gaps_s[node] + script.fixed_s[node], _END, run, node)
        elif script.gaps_s[node] > 0.0:
            self._think(now_s, script.gaps_s[node], _READY, run, node)
        else:
            self._start(now_s, run, node)

    def _think(self, now_s: float, length_s: float, kind: int, run: _Run, node: int) -> None:
        """Think or tool time: what of it is CPU time comes last, and may wait for cores."""
        part = run.script.cpu_part
        if self.cores is None or part <= 0.0 or length_s <= 0.0:
            self._push(now_s + length_s, kind, run, node)
            return
        waits_s = length_s * (1.0 - part)
        if waits_s > 0.0:
            self._push(now_s + waits_s, _COMPUTE, (kind, run, length_s * part, 1.0), node)
        else:
            self._compute(now_s, (kind, run, length_s, part), node)

    def _compute(self, now_s: float, what: tuple[int, _Run, float, float], node: int) -> None:
        """The CPU part of a think time: seconds on so many cores."""
        assert self.cores is not None
        kind, run, length_s, width = what
        self.cores.add((kind, run, node), length_s, width, now_s)
        self._schedule_cores()

    def _schedule_cores(self) -> None:
        assert self.cores is not None
        self.cores_version += 1
        if self.cores.end_s < math.inf:
            self._push(self.cores.end_s, _CORES, None, self.cores_version)

    def _advance_cores(self, now_s: float, _: Any, version: int) -> None:
        if version != self.cores_version:
            return
        assert self.cores is not None
        kind, run, node = self.cores.pop()
        self._schedule_cores()
        self.handlers[kind](now_s, run, node)

    def _start(self, now_s: float, run: _Run, node: int) -> None:
        """Send a call to a replica."""
        script = run.script
        deployment, size = script.deployments[node], script.sizes[node]
        assert size is not None
        group = self.groups[deployment]
        paths = script.paths
        path: tuple[Stretch, ...] = ()
        if paths is None:
            index = group.pick()
        else:
            assert run.went_to is not None
            path, holder = paths[node], -1
            if self.sticky >= 0 and script.holders[node] >= 0:
                holder = run.went_to[script.holders[node]]
            index = group.pick(holder, self.sticky)
            run.went_to[node] = index
        self.num_calls += 1
        group.picked[index] = self.num_calls
        replica = group.first + index
        name = self.recorder.start_call(run.number, deployment, replica, now_s)
        server = group.replicas[index]
        server.add(_Call(run, node, name, now_s), size, now_s, run.number, path)
        group.rank(index)
        self._schedule(replica, server.end_s)

    def _schedule(self, replica: int, end_s: float) -> None:
        version = self.versions[replica] = self.versions[replica] + 1
        if end_s < math.inf:
            self.num_events += 1
            heappush(self.events, (end_s, self.num_events, _REPLICA, replica, version))

    def _advance(self, now_s: float, replica: int, _: int) -> None:
        server, group = self.replicas[replica]
        ended = server.pop()
        if ended:
            group.rank(replica - group.first)
        self._schedule(replica, server.end_s)
        for run, node, name, start_s in ended:
            self.recorder.end_call(name, run.script.deployments[node], start_s, now_s)
        for run, node, _, _ in ended:
            self._end_node(now_s, run, node)

    def _end_node(self, now_s: float, run: _Run, node: int) -> None:
        pending = run.pending
        for child in run.script.children[node]:
            pending[child] -= 1
            if pending[child] == 0:
                self._ready(now_s, run, child)

    def _leave(self, now_s: float, run: _Run, _: int) -> None:
        """A run has ended; the next of a closed batch starts."""
        self.recorder.end_run(run.number, run.flow, run.start_s, now_s, run.script.is_ok)
        flow = self.flows[run.flow]
        if flow.times_s is None and flow.left > 0:
            self._arrive(now_s, run.flow)
