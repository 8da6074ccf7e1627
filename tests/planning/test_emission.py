"""A choice as a plan: its placement, what it asks of Slurm, its prediction."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planning_cases import (
    FLOW,
    MODELS,
    NEEDS,
    SHAPES,
    bundle,
    cluster,
    engine_points,
    gpus_of_plan,
    request_for,
    two_bundles,
    workflow,
)
from span_cases import run_span
from traced_plans import spans_of_runs

from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.pipeline.host_time import cores_for_agents
from scepsy_hpc.planning.pipeline.of_plan import predict_plan
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Limits, MaxThroughput, Rate


def test_prediction_of_the_plan_is_its_own() -> None:
    """Predicting an emitted plan from its file gives the figures it was emitted with."""
    plan = make_plan(request_for(Rate(1.0)))
    again = predict_plan(plan, {"w": NEEDS}, two_bundles())
    assert plan.predicted is not None
    assert again.latency_mean_s == pytest.approx(plan.predicted.latency_mean_s)
    assert again.throughput_rps == pytest.approx(plan.predicted.throughput_rps)


def test_shares_that_do_not_divide_stay_where_the_search_put_them() -> None:
    """Shares of 30, 40 and 60%: the plan's GPUs and allocation are those of the search."""
    odd = (30, 40, 60)
    flow = workflow("w", {x: Llm(model=m, gpu_shares_pct=odd) for x, m in MODELS.items()})
    plan = make_plan(request_for(Rate(), flow, limits=Limits(num_gpus=2)))
    load: dict[tuple[str, int], int] = {}
    for instance in plan.instances:
        for gpu in instance.gpus:
            load[instance.node, gpu] = load.get((instance.node, gpu), 0) + instance.gpu_share_pct
    assert len(load) == gpus_of_plan(plan) <= 2
    assert max(load.values()) <= 100
    assert plan.allocation is not None
    assert plan.allocation.components[0].gpus_per_node == gpus_of_plan(plan)


def test_other_engine_args_are_flagged() -> None:
    """Arguments that the profile was not measured under reach the engine, and are flagged."""
    args: dict[str, str | int | float | bool | tuple[str, ...]] = {"max_num_seqs": 8}
    flow = workflow("w", {"a": Llm(model="org/model", engine_args=args), "b": FLOW.llms["b"]})
    plan = make_plan(request_for(Rate(), flow))
    assert plan.llms["a"].engine_args == args
    assert plan.predicted is not None
    flagged = [flag for flag in plan.predicted.flags if "engine_args max_num_seqs" in flag]
    assert [flag.split(":")[0] for flag in flagged] == ["a"]


def test_components_by_equal_nodes() -> None:
    """Nodes that need equally many GPUs are one component of the allocation, others another."""
    plan = make_plan(request_for(MaxThroughput(), topology=cluster(num_nodes=3, gpus=4)))
    assert plan.allocation is not None
    parts = plan.allocation.components
    assert sum(p.num_nodes * p.gpus_per_node for p in parts) == gpus_of_plan(plan)
    assert len({(p.gpu_type, p.gpus_per_node) for p in parts}) == len(parts)


def test_a_plan_says_on_how_many_cores_of_its_agents_it_counts() -> None:
    """What is known of the agents' CPU time is in figures and explanation, and read back alike."""
    busy = replace(NEEDS, summary=replace(NEEDS.summary, tool_time_s=15.0, cpu_s=12.0))
    idle = replace(busy, summary=replace(busy.summary, cpu_s=None))
    best = Limits(within_pct=0.0)
    plan = make_plan(request_for(Rate(1.0), demands={"w": busy}, limits=best))
    silent = make_plan(request_for(Rate(1.0), demands={"w": idle}, limits=best))
    assert plan.instances == silent.instances
    assert plan.predicted is not None
    assert silent.predicted is not None
    assert plan.predicted.latency_mean_s > silent.predicted.latency_mean_s
    [line] = [line for line in plan.explanation if line.startswith("agents:")]
    assert "a run takes CPU seconds: w 12; at this rate that is 12 cores" in line
    assert not any(line.startswith("agents:") for line in silent.explanation)
    again = predict_plan(plan, {"w": busy}, two_bundles())
    assert again.latency_mean_s == pytest.approx(plan.predicted.latency_mean_s)


def test_the_highest_rate_is_one_that_the_agents_can_do() -> None:
    """Where their cores end it, not the LLMs, the rate is 95% of what the cores do, and flagged."""
    free = make_plan(request_for(MaxThroughput()))
    busy = replace(NEEDS, summary=replace(NEEDS.summary, tool_time_s=15.0, cpu_s=12.0))
    plan = make_plan(request_for(MaxThroughput(), demands={"w": busy}))
    assert (free.instances, free.allocation) == (plan.instances, plan.allocation)
    cores = cores_for_agents(plan)
    assert cores is not None
    assert plan.workflows[0].rate_rps == pytest.approx(0.95 * cores / 12.0)
    assert free.workflows[0].rate_rps > plan.workflows[0].rate_rps
    assert plan.predicted is not None
    assert plan.predicted.throughput_rps == pytest.approx(cores / 12.0)
    assert plan.predicted.latency_mean_s is not None
    assert any(flag.startswith("host: bottleneck") for flag in plan.predicted.flags)


def test_check_and_prediction_wait_for_the_same_cores() -> None:
    """On one GPU an engine leaves one core of four: pipeline, replay and simulation all say so."""
    chance, spans = random.Random(2), spans_of_runs(60)
    burnt = {span.run_id: chance.expovariate(1 / 0.6) for span in spans}
    ends = {name: max(s.end_s for s in spans if s.run_id == name) for name in burnt}
    found = {}
    for known in (True, False):
        runs = [
            run_span(name, 0.0, ends[name] + cpu_s, cpu_s=cpu_s if known else None)
            for name, cpu_s in burnt.items()
        ]
        request = PlanRequest(
            [(workflow("w", {"a": Llm(model="org/model")}), 1.0)],
            [bundle(engine_points(SHAPES))],
            cluster(gpus=1),
            Rate(),
            Limits(),
            {"w": [*spans, *runs]},
        )
        found[known] = make_plan(request)
    for figures in ("predicted", "simulated"):
        waiting, silent = (getattr(found[known], figures) for known in (True, False))
        assert waiting.latency_mean_s - silent.latency_mean_s == pytest.approx(0.9, rel=0.3)
        assert waiting.latency_p95_s > silent.latency_p95_s
