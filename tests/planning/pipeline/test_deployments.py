"""Who shares a deployment, and demand as the pipeline takes it: from spans or from a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_cases import calls, demand, workflow
from span_cases import call, run_span

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan, PlanWorkflow
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.pipeline.deployments import (
    WorkflowDemand,
    demands_in,
    deployments_of,
    pipeline_of,
)
from scepsy_hpc.tracing.demand.demand import demand_of

LLM = Llm(model="org/model")


def test_demand_in_a_plan() -> None:
    """A plan's own demand serves when there are no spans; a plan without any says what to give."""
    flow = PlanWorkflow(name="w", llms={"a": "a"})
    needs = demand({"a": calls(4.0, parallelism=4.0)})
    plan = Plan(workflows=(flow,), demand={"w": needs.summary})
    assert demands_in(plan)["w"].use("w", "a").bursts.size == 4.0
    with pytest.raises(InputError, match=r"demand\.w: missing"):
        demands_in(Plan(workflows=(flow,)))


def test_a_plan_predicts_from_its_demand_what_spans_predict() -> None:
    """Fan-out and cached tokens stand in what a plan keeps: without its spans it says the same."""
    together = [call("r", "a", 0.0, 2.0, n=n, input_tokens=9, output_tokens=3, cached_tokens=4)
                for n in range(3)]  # fmt: skip
    traced = WorkflowDemand.of(demand_of([run_span("r", 0.0, 5.0), *together], "w", ["a", "b"]))
    flow = PlanWorkflow(name="w", llms={"a": "a"})
    kept = demands_in(Plan(workflows=(flow,), demand={"w": traced.summary}))["w"]
    assert kept.use("w", "a") == traced.use("w", "a")
    assert (kept.use("w", "a").bursts.size, kept.use("w", "a").tokens.cached) == (3.0, 4.0)
    assert traced.warnings == ("w: b: not called in the spans; its load is taken as zero",)
    assert (traced.run_lengths_s, kept.run_lengths_s) == ((5.0,), ())


def test_a_fan_out_below_one_is_no_fan_out() -> None:
    """Where only a parallelism below one is known, a call still sees itself."""
    assert demand({"a": calls(1.0, parallelism=0.5)}).use("w", "a").bursts.size == 1.0


def test_names_of_deployments() -> None:
    """Two aliases of one workflow never share; a clash of names is resolved by the workflow's."""
    flows = [
        workflow("x", {"a": LLM, "b": LLM}),
        workflow("y", {"a": Llm(model="org/other"), "b": LLM}),
    ]
    assert deployments_of(flows) == {"x": {"a": "a", "b": "b"}, "y": {"a": "y-a", "b": "b"}}


def test_shared_limits_must_meet() -> None:
    """Workflows that share an LLM but allow different TP degrees are refused by key."""
    flows = [
        workflow("x", {"a": Llm(model="m", tp_degrees=(1,))}),
        workflow("y", {"a": Llm(model="m", tp_degrees=(2, 4))}),
    ]
    needs = {name: demand({"a": calls(1.0)}) for name in "xy"}
    with pytest.raises(InputError, match="tp_degrees"):
        pipeline_of(flows, needs, {"x": 1.0, "y": 1.0})


def test_another_engine_version_or_precision_is_another_deployment() -> None:
    """Two workflows share what agrees in model, engine, version, precision and arguments only."""
    one = Llm(model="org/m", engine="vllm", engine_version="0.24.0", precision="bf16")
    others = ({}, {"engine": "other"}, {"engine_version": "0.25.0"}, {"precision": "fp8"})
    shared = [
        deployments_of([workflow("v", {"a": one}), workflow("w", {"b": replace(one, **changes)})])
        for changes in others
    ]
    assert [found["v"]["a"] == found["w"]["b"] for found in shared] == [True, False, False, False]
