"""From a request to a whole plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planning_cases import (
    FLOW,
    NEEDS,
    calls,
    demand,
    gpus_of_plan,
    request_for,
    workflow,
)

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import load_plan, save_plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.targets import MaxThroughput, Rate


def test_lowest_latency_at_a_rate(tmp_path: Path) -> None:
    """A plan at a rate is whole: certified, placed, predicted, explained, and reads back."""
    plan = make_plan(request_for(Rate(1.0)))
    assert plan.certificate is not None
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert plan.predicted is not None
    assert plan.predicted.latency_mean_s == pytest.approx(plan.certificate.value)
    assert sum(f.share_of_latency or 0 for f in plan.predicted.per_llm.values()) < 1.0
    assert len(plan.instances) == sum(d.num_replicas for d in plan.llms.values())
    assert plan.allocation is not None
    assert plan.allocation.components[0].gpus_per_node == gpus_of_plan(plan)
    assert plan.workflows[0].llms == {"a": "a", "b": "b"}
    assert [line.split(":")[0] for line in plan.explanation[:2]] == ["a", "b"]
    save_plan(tmp_path / "plan.yaml", plan)
    assert load_plan(tmp_path / "plan.yaml") == plan


def test_two_workflows_share_the_gpus() -> None:
    """Two workflows: the shared model has one deployment, and both reach their rates."""
    other = workflow("v", {"x": Llm(model="org/small")})
    needs = {"w": NEEDS, "v": demand({"x": calls(4.0)})}
    flows: list[tuple[Workflow, float | None]] = [(FLOW, 1.0), (other, 2.0)]
    asked = request_for(Rate(), workflows=flows, demands=needs)
    plan = make_plan(asked)
    assert set(plan.llms) == {"a", "b"}
    assert {w.name: w.llms for w in plan.workflows} == {
        "w": {"a": "a", "b": "b"},
        "v": {"x": "b"},
    }
    assert plan.predicted is not None
    for name, rate in (("w", 1.0), ("v", 2.0)):
        assert (plan.predicted.per_workflow[name].throughput_rps or 0.0) > rate
    most = make_plan(replace(asked, target=MaxThroughput()))
    rates = {w.name: w.rate_rps or 0.0 for w in most.workflows}
    assert rates["v"] == pytest.approx(2 * rates["w"])


def test_from_spans() -> None:
    """Spans alone carry the demand: two runs of one call a second apart are one call a run."""
    flow = workflow("w", {"a": Llm(model="org/model")})
    spans = [
        Span(
            run_id=f"r{i}",
            span_id=f"s{i}",
            kind="llm",
            llm="a",
            start_s=float(i),
            end_s=i + 0.5,
            status="ok",
            input_tokens=1000,
            output_tokens=100,
        )
        for i in range(2)
    ]
    plan = make_plan(request_for(Rate(), flow, demands={}, spans={"w": spans}))
    assert plan.demand["w"].num_runs == 2
    assert plan.demand["w"].llms["a"].calls_per_run == 1.0
    with pytest.raises(InputError, match="no spans"):
        make_plan(request_for(Rate(), flow, demands={}))
