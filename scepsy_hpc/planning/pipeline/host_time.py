"""Host time: the cores that the agents of all runs share, as one more station of the pipeline.

A run's CPU seconds are part of its tool time as traced; what runs in flight add is their waiting
for cores. k runs that want a core get min(k, cores) of them in equal parts, so the station is
M/M/c under processor sharing: its mean depends on nothing of the CPU time but its mean (Kelly,
1979). The trace's own waiting is not taken off: record a trace with few runs in flight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from scepsy_hpc.cluster.cpu_slices import quota_cores
from scepsy_hpc.formats.parallelism import CPU_TYPE
from scepsy_hpc.formats.plan import Deployment, Plan
from scepsy_hpc.planning.curves.queueing import Server

MAX_HOST_UTILISATION = 0.95
_SERVER_CORES = 2
"""An engine's API server and scheduler: vLLM, "Architecture Overview", process counts."""
_LEAST_CORES = 1.0
_HUGE = 1e200


@dataclass(frozen=True, slots=True)
class HostTime:
    """``cores`` that agents share, and the CPU seconds of a run of each workflow."""

    cores: float
    cpu_s: Mapping[str, float]

    def busy_cores(self, rates_rps: Mapping[str, float]) -> float:
        """Cores that the agents need at these rates (runs per second)."""
        return sum(rates_rps[name] * cpu_s for name, cpu_s in self.cpu_s.items())

    def factor(self, rates_rps: Mapping[str, float]) -> float:
        """Times these rates that the cores can do at most."""
        busy = self.busy_cores(rates_rps)
        return self.cores / busy if busy > 0 else math.inf

    def waiting_s(self, rates_rps: Mapping[str, float]) -> dict[str, float]:
        """What waiting for cores adds to a run of each workflow; infinite where they are too few.

        Under processor sharing every second of work takes equally long, whoever's it is.
        """
        stretch = _stretch(self.busy_cores(rates_rps), self.cores)
        return {n: cpu_s * (stretch - 1.0) if cpu_s else 0.0 for n, cpu_s in self.cpu_s.items()}

    @property
    def server(self) -> Server:
        """CPU seconds that are done per second with k runs at the station."""
        return Server((self.cores,), (self.cores,))

    def said(self, rates_rps: Mapping[str, float]) -> str:
        """What is counted on, for people."""
        used = ", ".join(f"{name} {cpu_s:.3g}" for name, cpu_s in self.cpu_s.items())
        return (
            f"agents: {self.cores:.3g} cores of the first node are counted on, what its engines "
            f"leave of the allocation; a run takes CPU seconds: {used}; at this rate that is "
            f"{self.busy_cores(rates_rps):.3g} cores"
        )

    def flags(
        self, rates_rps: Mapping[str, float], llm_factor: float, *, closed: bool = False
    ) -> list[str]:
        """What is to be known of the host at these rates; the LLMs do ``llm_factor`` times them.

        ``closed``: the rates are those that the runs in flight reach, never too high.
        """
        busy, factor = self.busy_cores(rates_rps), self.factor(rates_rps)
        means = f"agents need {busy:.3g} cores and the plan counts on {self.cores:.3g} for them"
        more = "ask for more CPUs (allocation: cpus_per_gpu), or trace a lighter agent"
        if factor * MAX_HOST_UTILISATION < 1.0 and not closed:
            what = "overloaded" if factor <= 1.0 else "above_95_percent"
            return [f"host: {what}: {means}; {more}"]
        if factor < llm_factor:
            return [
                f"host: bottleneck: the agents' CPU time, not an LLM, ends the throughput: {means} "
                f"at this rate; {more}"
            ]
        return []


def _stretch(busy: float, cores: float) -> float:
    """Mean time at the station by CPU second: Erlang's sums, also for part of a core."""
    if busy >= cores * (1.0 - 1e-9):
        return math.inf
    if busy <= 0.0:
        return max(1.0 / cores, 1.0)
    whole, weight, mass, jobs = math.ceil(cores), 1.0, 1.0, 0.0
    for k in range(1, whole + 1):
        weight *= busy / min(k, cores)
        mass, jobs = mass + weight, jobs + k * weight
        if mass > _HUGE:
            weight, mass, jobs = weight / _HUGE, mass / _HUGE, jobs / _HUGE
    # Beyond, every state's weight is the same part of the last one's.
    part = busy / cores
    tail = weight * part / (1.0 - part)
    jobs += tail * (whole + 1.0 / (1.0 - part))
    return jobs / (mass + tail) / busy


def host_of(cores: float | None, cpu_s: Mapping[str, float | None]) -> HostTime | None:
    """The station; None where the cores or the CPU time of a workflow are unknown."""
    known = {name: used_s for name, used_s in cpu_s.items() if used_s is not None}
    if cores is None or len(known) < len(cpu_s) or not any(known.values()):
        return None
    return HostTime(cores, known)


def cores_for_agents(plan: Plan) -> float | None:
    """Cores of the node that runs the agents, less what its engines need; None where unknown.

    Agents run where the dispatcher does: on the first node of the first component. At least one
    core is counted on, since engines do not always use theirs.
    """
    component = plan.allocation.components[0] if plan.allocation else None
    if component is None or component.cpus_per_gpu is None or not plan.instances:
        return None
    cores = component.cpus_per_gpu * component.gpus_per_node
    node = _first_node(plan)
    used = sum(_engine_cores(plan.llms[i.llm]) for i in plan.instances if i.node == node)
    return max(cores - used, _LEAST_CORES)


def _first_node(plan: Plan) -> str:
    """Nodes are granted to those that need most GPUs first, then by name."""
    gpus = {(i.node, gpu) for i in plan.instances for gpu in i.gpus}
    counts = Counter(node for node, _ in gpus)
    first = plan.allocation.components[0] if plan.allocation else None
    types = {i.node: plan.llms[i.llm].gpu_type for i in plan.instances}
    mine = [node for node in counts if first is None or types[node] == first.gpu_type]
    return min(mine or counts, key=lambda node: (-counts[node], node))


def _engine_cores(deployment: Deployment) -> float:
    """Cores of one replica: its server's two, and one for the worker of each GPU."""
    if deployment.gpu_type == CPU_TYPE:
        return quota_cores(deployment.tp_degree, deployment.gpu_share_pct)
    return _SERVER_CORES + deployment.tp_degree
