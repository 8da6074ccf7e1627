"""What is simulated: traced runs, how they come, the replicas they go to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.figures import ReplicaServer
from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.planning.pipeline.pipeline import HostedStage
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, arrivals_of
from scepsy_hpc.planning.simulation.events import Recorder, Simulation, flags_of, scripts_of
from scepsy_hpc.planning.simulation.flows import Flow, Script, aliases_of
from scepsy_hpc.planning.simulation.hosts import Host, engines_used, hosts_of
from scepsy_hpc.planning.simulation.offered import Offered, offered_by
from scepsy_hpc.planning.simulation.run_graph import RunGraph
from scepsy_hpc.planning.simulation.tally import Tally


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated: runs, how they come, and on what."""

    graphs: Mapping[str, Sequence[RunGraph]]
    arrivals: dict[str, Arrivals]
    hosts: dict[str, Host]
    scripts: dict[str, list[Script]]
    offered: Offered
    routing: Routing
    cores: float | None

    @classmethod
    def of(
        cls,
        plan: Plan,
        graphs: Mapping[str, Sequence[RunGraph]],
        hosted: Sequence[HostedStage],
        load: Arrivals | Mapping[str, Arrivals],
        engine_models: Mapping[str, EngineModel],
        profiled_on_spans: Collection[str],
        cores: float | None,
        server: ReplicaServer | None = None,
    ) -> Case:
        """Raises InputError."""
        arrivals = arrivals_of(plan, load, graphs)
        names = {name: aliases_of(plan, name, mine) for name, mine in graphs.items()}
        curves = {host.stage.name: host.curve for host in hosted}
        engines = {n: e for n, e in engine_models.items() if n in curves}
        engines |= {name: c.engine for name, c in curves.items() if c.engine is not None}
        engines = engines_used(server, engines, names, graphs)
        hosts = hosts_of(plan, names, graphs, curves, engines, profiled_on_spans)
        scripts = {name: scripts_of(mine, names[name], hosts) for name, mine in graphs.items()}
        offered = offered_by(arrivals, scripts, hosts, cores)
        return cls(graphs, arrivals, hosts, scripts, offered, plan.routing, cores)

    def simulation(self, tally: Recorder, seed: int) -> Simulation:
        """A new one."""
        flows = [
            Flow.of(name, self.scripts[name], self.arrivals[name], seed, in_order=False)
            for name in self.graphs
        ]
        return Simulation(flows, self.hosts, tally, self.routing, self.cores)

    def tally(self, wanted: int) -> Tally:
        """A new one."""
        return Tally(len(self.graphs), len(self.hosts), wanted)

    def flags(self) -> list[str]:
        """What the runs, their prefixes and their CPU time rest on."""
        found = flags_of(self.graphs)
        for name, mine in self.scripts.items():
            repeats = any(node.prefix_of for graph in self.graphs[name] for node in graph.nodes)
            if repeats and not any(script.paths for script in mine):
                found.append(
                    f"{name}: no_prefix_state: without an engine model replicas have no cache; "
                    "hits are those of the trace"
                )
        if self.cores is None:
            return found
        without = [
            name for name, mine in self.scripts.items() if not any(s.cpu_part > 0.0 for s in mine)
        ]
        return found + [f"{name}: no_cpu_time: --cores has no effect" for name in without]

    def in_flight(self, workflow: str) -> int | None:
        """Runs that are always in flight, all sent at the start; None: they come by themselves."""
        load = self.arrivals[workflow]
        return load.max_in_flight if isinstance(load, Closed) else None

    @property
    def all_in_flight(self) -> int | None:
        """The same of all workflows together."""
        known = [self.in_flight(name) for name in self.arrivals]
        return None if None in known else sum(number or 0 for number in known)

    @property
    def calls_per_run(self) -> float:
        """Mean over the runs that come."""
        return self.offered.calls_per_run
