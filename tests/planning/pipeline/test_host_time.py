"""Waiting for cores against closed forms, and against a simulation of runs burst by burst."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import replace

import pytest
from hand_plans import BUNDLES, NEEDS, PLAN

from scepsy_hpc.cluster.cpu_slices import SLICE_CORES
from scepsy_hpc.formats.plan import Allocation, Component, Instance, Plan
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.pipeline.closed_network import ClosedStage, closed_batch
from scepsy_hpc.planning.pipeline.host_time import HostTime, cores_for_agents, host_of
from scepsy_hpc.planning.pipeline.of_plan import predict_plan


def erlang_wait(cores: int, busy: float) -> float:
    """Mean wait of M/M/c in service times, by Erlang's C formula."""
    terms = [busy**k / math.factorial(k) for k in range(cores)]
    last = busy**cores / math.factorial(cores) * cores / (cores - busy)
    return last / (sum(terms) + last) / (cores - busy)


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
@pytest.mark.parametrize("load", [0.05, 0.5, 0.9])
def test_waiting_is_that_of_the_closed_form(cores: int, load: float) -> None:
    """One workflow: Erlang's C for its CPU time over the cores; with one core, rho / (1 - rho)."""
    cpu_s = 0.4
    rate = load * cores / cpu_s
    found = HostTime(cores, {"w": cpu_s}).waiting_s({"w": rate})["w"]
    assert found == pytest.approx(cpu_s * erlang_wait(cores, load * cores), rel=1e-6, abs=1e-12)
    if cores == 1:
        assert found == pytest.approx(cpu_s * load / (1 - load), rel=1e-6)


def test_a_thousand_cores_keep_their_digits() -> None:
    """Erlang's sums overflow there: they are e^900. Against logarithms."""
    cores, busy = 1000, 960.0
    logs = [k * math.log(busy) - math.lgamma(k + 1) for k in range(cores + 1)]
    last = math.exp(logs[-1] - max(logs)) * cores / (cores - busy)
    wait = last / (math.fsum(math.exp(x - max(logs)) for x in logs[:-1]) + last) / (cores - busy)
    assert HostTime(cores, {"w": 1.0}).waiting_s({"w": busy})["w"] == pytest.approx(wait, rel=1e-5)


def test_workflows_wait_in_proportion_to_what_they_burn() -> None:
    """Processor sharing stretches every second alike; one that burns nothing waits for nothing."""
    host = HostTime(2.0, {"light": 0.1, "heavy": 0.5, "none": 0.0})
    rates = {"light": 4.0, "heavy": 2.0, "none": 9.0}
    assert host.busy_cores(rates) == pytest.approx(1.4)
    waits = host.waiting_s(rates)
    assert waits["heavy"] == pytest.approx(5 * waits["light"])
    assert waits["light"] == pytest.approx(0.1 * erlang_wait(2, 1.4), rel=1e-6)
    assert waits["none"] == 0.0


@pytest.mark.parametrize("cores", [0.6, 1.3, 2.5])
def test_part_of_a_core_lies_between_whole_ones(cores: float) -> None:
    """What is left of the cores need not be whole: more is better, and less than one slows all."""
    rate = {"w": 0.5 * cores}
    wait = HostTime(cores, {"w": 1.0}).waiting_s(rate)["w"]
    assert HostTime(cores + 0.3, {"w": 1.0}).waiting_s(rate)["w"] < wait
    if cores < 1:
        # A single server of that speed: a run alone lasts 1 / cores.
        assert wait == pytest.approx(1 / cores / (1 - 0.5) - 1.0, rel=1e-6)


def test_cores_over_cpu_time_is_the_most() -> None:
    """At and above it there is no mean, and the flag names the figures."""
    host = HostTime(4.0, {"w": 0.5})
    assert host.factor({"w": 2.0}) == pytest.approx(4.0)
    assert math.isinf(host.waiting_s({"w": 8.0})["w"])
    [flag] = host.flags({"w": 9.0}, math.inf)
    assert flag.startswith("host: overloaded: agents need 4.5 cores and the plan counts on 4")
    [flag] = host.flags({"w": 7.8}, math.inf)
    assert flag.startswith("host: above_95_percent")
    [flag] = host.flags({"w": 4.0}, 2.5)
    assert flag.startswith("host: bottleneck")
    assert host.flags({"w": 4.0}, 1.9) == []


def test_unknown_is_no_stage() -> None:
    """Cores or CPU time that nobody knows: nothing is added, and nothing is made up."""
    assert host_of(None, {"w": 0.5}) is None
    assert host_of(4.0, {"w": 0.5, "other": None}) is None
    assert host_of(4.0, {"w": 0.0}) is None
    assert host_of(4.0, {"w": 0.5, "other": 0.0}) == HostTime(4.0, {"w": 0.5, "other": 0.0})


class Cores:
    """Bursts under processor sharing, one by one: every job's clock is the service it attained."""

    def __init__(self, cores: float) -> None:
        self.cores, self.now_s, self.attained_s = cores, 0.0, 0.0
        self.jobs: list[tuple[float, int]] = []

    def next_end_s(self) -> float:
        if not self.jobs:
            return math.inf
        left_s = self.jobs[0][0] - self.attained_s
        return self.now_s + left_s / min(1.0, self.cores / len(self.jobs))

    def go_to(self, time_s: float) -> None:
        if self.jobs:
            speed = min(1.0, self.cores / len(self.jobs))
            self.attained_s += (time_s - self.now_s) * speed
        self.now_s = time_s


def mean_run_s(cores: float, starts: list[float], bursts_s: list[float], gap_s: float) -> float:
    """Mean length of runs that alternate CPU bursts with waits of ``gap_s`` for an LLM."""
    host, ends = Cores(cores), [0.0] * len(starts)
    waiting = [(start_s, run, 0) for run, start_s in enumerate(starts)]
    heapq.heapify(waiting)
    at = [0] * len(starts)
    while waiting or host.jobs:
        end_s = host.next_end_s()
        if waiting and waiting[0][0] <= end_s:
            start_s, run, number = heapq.heappop(waiting)
            host.go_to(start_s)
            at[run] = number
            heapq.heappush(host.jobs, (host.attained_s + bursts_s[number], run))
            continue
        host.go_to(end_s)
        _, run = heapq.heappop(host.jobs)
        ends[run] = end_s
        if at[run] + 1 < len(bursts_s):
            heapq.heappush(waiting, (end_s + gap_s, run, at[run] + 1))
    skipped = len(starts) // 10
    lengths = [e - s for s, e in zip(starts, ends, strict=True)][skipped:]
    return sum(lengths) / len(lengths)


@pytest.mark.parametrize(("cores", "load"), [(1, 0.6), (2, 0.7), (4, 0.8), (2.5, 0.7)])
def test_runs_of_several_bursts_wait_as_predicted(cores: float, load: float) -> None:
    """Bursts of fixed, unequal lengths with waits between: the mean length is the prediction's."""
    bursts_s, gap_s, chance = [0.3, 0.02, 0.1], 2.0, random.Random(5)
    rate = load * cores / sum(bursts_s)
    time_s, starts = 0.0, []
    for _ in range(40_000):
        time_s += chance.expovariate(rate)
        starts.append(time_s)
    measured_s = mean_run_s(cores, starts, bursts_s, gap_s)
    waiting_s = HostTime(cores, {"w": sum(bursts_s)}).waiting_s({"w": rate})["w"]
    assert measured_s - 2 * gap_s == pytest.approx(sum(bursts_s) + waiting_s, rel=0.04)


@pytest.mark.parametrize(("cores", "num_runs"), [(1, 1), (1, 6), (2, 8), (3, 40)])
def test_a_closed_batch_shares_the_cores(cores: int, num_runs: int) -> None:
    """Runs that use an LLM without limit, tools, and cores: the closed form of machine repair."""
    cpu_s, away_s = 0.5, 1.5
    weights = [1.0]
    for k in range(1, num_runs + 1):
        weights.append(weights[-1] * (num_runs - k + 1) / away_s * cpu_s / min(k, cores))
    at_cores = sum(k * w for k, w in enumerate(weights)) / sum(weights)
    rate = (num_runs - at_cores) / away_s
    llm = ClosedStage(Server((1.0, 4096.0), (1.0, 4096.0)), 1, 1.0, 1.0)  # always 1 s
    host = ClosedStage(HostTime(cores, {"w": cpu_s}).server, 1, cpu_s, 1.0)
    state = closed_batch([llm], num_runs, 1.0, 0.5 + cpu_s, host)
    assert state.throughput_rps == pytest.approx(rate, rel=1e-6)
    assert state.run_s == pytest.approx(num_runs / rate, rel=1e-6)
    assert state.waiting_s == pytest.approx(num_runs / rate - 2.0, rel=1e-5, abs=1e-9)
    assert state.throughput_rps <= cores / cpu_s
    assert state.call_latency_s == pytest.approx((1.0,), rel=1e-5)


def component(nodes: int, gpus: int, gpu_type: str, cpus_per_gpu: int | None) -> Component:
    """Equal nodes."""
    return Component(
        num_nodes=nodes, gpus_per_node=gpus, gpu_type=gpu_type, cpus_per_gpu=cpus_per_gpu
    )


def instance(llm: str, node: str, *gpus: int) -> Instance:
    """One replica on whole GPUs."""
    name = f"{llm}-{node}-{gpus[0]}"
    return Instance(id=name, llm=llm, node=node, gpus=gpus, gpu_share_pct=100)


def planned(cpus_per_gpu: int | None = 4, **changes: object) -> Plan:
    """The plan by hand, placed on one GPU of one node."""
    allocation = Allocation(components=(component(1, 1, "h100_sxm", cpus_per_gpu),))
    instances = (instance("a", "n1", 0),)
    return replace(PLAN, instances=instances, allocation=allocation, **changes)


def needs(cpu_s: float | None, tool_time_s: float = 0.5) -> dict:
    summary = replace(NEEDS["w"].summary, cpu_s=cpu_s, tool_time_s=tool_time_s)
    return {"w": replace(NEEDS["w"], summary=summary)}


def test_a_plans_figures_hold_the_host() -> None:
    """Of 4 cores an engine leaves one: the mean is longer by the wait, the throughput is capped."""
    without = predict_plan(planned(), needs(None), BUNDLES, rate_rps=1.0)
    found = predict_plan(planned(), needs(0.4), BUNDLES, rate_rps=1.0)
    wait_s = 0.4 * 0.4 / 0.6
    assert found.latency_mean_s == pytest.approx(without.latency_mean_s + wait_s, rel=1e-6)
    assert (without.throughput_rps, found.throughput_rps) == (pytest.approx(4.0), 2.5)
    assert found.per_workflow["w"].throughput_rps == pytest.approx(2.5)
    assert any(flag.startswith("host: bottleneck") for flag in found.flags)
    more = predict_plan(planned(9), needs(0.4), BUNDLES, rate_rps=1.0)
    assert more.throughput_rps == pytest.approx(4.0)
    assert not any(flag.startswith("host") for flag in more.flags)
    over = predict_plan(planned(), needs(0.4), BUNDLES, rate_rps=2.6)
    assert over.latency_mean_s is None
    assert any(flag.startswith("host: overloaded") for flag in over.flags)


def varied(cpu_s: float | None) -> dict:
    """The same with the lengths of its runs, all alike: a makespan asks for them."""
    return {name: replace(one, run_lengths_s=(1.0, 1.0)) for name, one in needs(cpu_s).items()}


def test_a_batchs_figures_hold_the_host() -> None:
    """Four runs in flight on one core end no faster than it works, and the batch lasts longer."""
    without = predict_plan(planned(), varied(None), BUNDLES, num_tasks=100)
    found = predict_plan(planned(), varied(0.4), BUNDLES, num_tasks=100)
    assert found.throughput_rps < min(without.throughput_rps, 1 / 0.4)
    assert found.latency_mean_s == pytest.approx(4 / found.throughput_rps, rel=1e-6)
    assert found.makespan_s > without.makespan_s
    assert any(flag.startswith("host: bottleneck") for flag in found.flags)


def test_a_plan_without_allocation_has_no_host() -> None:
    """Written by hand: the cores are unknown, and the figures are those without CPU time."""
    for plan in (PLAN, planned(None)):
        known = predict_plan(plan, needs(0.4), BUNDLES, rate_rps=1.0)
        assert known == predict_plan(plan, needs(None), BUNDLES, rate_rps=1.0)


def test_cores_are_those_that_the_engines_of_the_first_node_leave() -> None:
    """Each engine takes two and one for each GPU; a CPU slice its quota; one core is the least."""
    wide = planned(llms={"a": replace(PLAN.llms["a"], tp_degree=2)})
    two = (instance("a", "n1", 0, 1), instance("a", "n2", 0, 1))
    allocation = Allocation(components=(component(2, 2, "h100_sxm", 8),))
    assert cores_for_agents(replace(wide, instances=two, allocation=allocation)) == 16 - 4
    assert cores_for_agents(planned(1)) == 1
    sliced = planned(llms={"a": replace(PLAN.llms["a"], gpu_type="cpu_slice")})
    allocation = Allocation(components=(component(1, 1, "cpu_slice", 2),))
    found = cores_for_agents(replace(sliced, allocation=allocation))
    assert found == pytest.approx(2 - SLICE_CORES)


def test_agents_run_with_the_first_component() -> None:
    """Of a heterogeneous job: on the node that is granted first, the one that needs most GPUs."""
    components = (component(2, 4, "h100_sxm", 8), component(1, 1, "a100_sxm", 32))
    four = [instance("a", "n2", gpu) for gpu in range(4)]
    plan = Plan(
        llms={"a": PLAN.llms["a"], "b": replace(PLAN.llms["a"], gpu_type="a100_sxm")},
        instances=(*four, instance("a", "n1", 0), instance("b", "n0", 0)),
        allocation=Allocation(components=components),
    )
    assert cores_for_agents(plan) == 32 - 4 * 3
