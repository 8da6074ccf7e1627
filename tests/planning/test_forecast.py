"""Both predictions of a plan under one load, host time included."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hand_plans import BUNDLES, PLAN
from span_cases import call, run_span

from scepsy_hpc.formats.plan import Allocation, Component, Instance, Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.forecast import forecast, simulated
from scepsy_hpc.planning.simulation.arrivals import Closed, Open

CPU_S, CALL_S, NUM_RUNS = 0.6, 1.0, 200


def runs(known: bool = True) -> dict[str, list[Span]]:
    """Runs of one call between thinks that are CPU time alone, ``CPU_S`` and ``CALL_S`` on average.

    They differ: equal ones that start together would stay together, and wait for each other.
    """
    chance, found = random.Random(3), []
    factors = [-math.log(1 - (n + 0.5) / NUM_RUNS) for n in range(NUM_RUNS)]
    scale = NUM_RUNS / sum(factors)
    for number, factor in enumerate(factors):
        name, cpu_s, outputs = f"r{number}", CPU_S * factor * scale, chance.randrange(20, 181)
        before_s, call_s = cpu_s * chance.random(), CALL_S * outputs / 100
        tokens = {"input_tokens": 1000, "output_tokens": outputs}
        said = cpu_s if known else None
        found.append(run_span(name, 0.0, call_s + cpu_s, workflow="w", cpu_s=said))
        found.append(call(name, "a", before_s, before_s + call_s, **tokens))
    return {"w": found}


def plan_with(cpus_per_gpu: int) -> Plan:
    """Sixteen replicas, so that only cores are short; each node's engine takes three of them."""
    count = 16
    component = Component(
        num_nodes=count, gpus_per_node=1, gpu_type="h100_sxm", cpus_per_gpu=cpus_per_gpu
    )
    instances = tuple(
        Instance(id=f"a-{n}", llm="a", node=f"n{n:02d}", gpus=(0,), gpu_share_pct=100)
        for n in range(count)
    )
    llms = {"a": replace(PLAN.llms["a"], num_replicas=count)}
    allocation = Allocation(components=(component,))
    return replace(PLAN, llms=llms, instances=instances, allocation=allocation)


@pytest.mark.parametrize(("cores", "rate"), [(1, 1.0), (2, 2.5), (4, 5.5)])
def test_open_arrivals_wait_for_cores_in_both(cores: int, rate: float) -> None:
    """Pipeline and simulation agree on the wait, and without CPU time neither has one."""
    plan, load = plan_with(3 + cores), Open(4000, rate)
    found = forecast(plan, runs(), BUNDLES, load)
    silent = forecast(plan, runs(known=False), BUNDLES, load)
    wait_s = found.pipeline.latency_mean_s - silent.pipeline.latency_mean_s
    assert wait_s > 0.25 * CPU_S
    assert silent.simulation.latency_mean_s == pytest.approx(CALL_S + CPU_S, rel=0.02)
    assert found.simulation.latency_mean_s - silent.simulation.latency_mean_s == pytest.approx(
        wait_s, rel=0.15
    )


@pytest.mark.parametrize(("cores", "in_flight"), [(1, 2), (1, 6), (2, 8)])
def test_a_batch_waits_for_cores_in_both(cores: int, in_flight: int) -> None:
    """A closed batch: throughput and mean of pipeline and simulation agree within 5%."""
    found = forecast(plan_with(3 + cores), runs(), BUNDLES, Closed(600, in_flight))
    assert found.pipeline.throughput_rps <= cores / CPU_S
    assert found.simulation.latency_mean_s == pytest.approx(found.pipeline.latency_mean_s, rel=0.05)
    assert found.simulation.makespan_s == pytest.approx(found.pipeline.makespan_s, rel=0.05)


def test_cores_given_go_before_the_plans() -> None:
    """More cores than the plan counts on: no wait is left."""
    plan, load = plan_with(4), Closed(200, 6)
    few = simulated(plan, runs(), BUNDLES, load)
    many = simulated(plan, runs(), BUNDLES, load, cores=6)
    assert many.latency_mean_s == pytest.approx(CALL_S + CPU_S, rel=0.02)
    assert few.latency_mean_s > 1.5 * many.latency_mean_s
