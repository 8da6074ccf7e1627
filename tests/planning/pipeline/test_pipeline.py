"""The Aggregate LLM Pipeline on workflows whose answer is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planning_cases import bundle, calls, demand, point, workflow

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import evidence_for
from scepsy_hpc.planning.curves.making import make_curve
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand, deployments_of, pipeline_of
from scepsy_hpc.planning.pipeline.pipeline import Pipeline
from scepsy_hpc.planning.pipeline.predict import Hosted, predict_open

LLM = Llm(model="org/model")


def _curve(rate_rps: float, slots: int = 1) -> Curve:
    """M/M/c with so many slots, each of rate ``rate_rps``."""
    points = [point(1, rate_rps)] + ([point(slots, slots * rate_rps)] if slots > 1 else [])
    evidence = next(evidence_for("org/model", "h100_sxm", [bundle(points)]))
    return make_curve(evidence, Parallelism("h100_sxm", None, 1, 100), TokenLengths(1000.0, 100.0))


def _one(needs: WorkflowDemand, rate_rps: float) -> Pipeline:
    flow = workflow("w", dict.fromkeys(needs.summary.llms, LLM))
    return pipeline_of([flow], {"w": needs}, {"w": rate_rps})


def _predict(pipeline: Pipeline, curves: dict[str, Curve], replicas: int = 1) -> Figures:
    return predict_open(
        pipeline, [Hosted(stage, curves[stage.name], replicas) for stage in pipeline.stages]
    )


def test_chain() -> None:
    """Two calls in a row to two M/M/1 servers, then a tool: the sum of the three."""
    pipeline = _one(demand({"a": calls(1.0), "b": calls(1.0)}, tool_time_s=0.5), 0.6)
    found = _predict(pipeline, {"a": _curve(1.0), "b": _curve(2.0)})
    assert found.latency_mean_s == pytest.approx(1 / 0.4 + 1 / 1.4 + 0.5)
    assert found.throughput_rps == pytest.approx(1.0)
    assert found.per_llm["a"].utilisation == pytest.approx(0.6)
    assert found.per_llm["a"].share_of_latency == pytest.approx(2.5 / (2.5 + 1 / 1.4 + 0.5))


def test_repeated_calls() -> None:
    """Three calls in a row to one server: its load is threefold, and so are its rounds."""
    pipeline = _one(demand({"a": calls(3.0)}), 0.2)
    found = _predict(pipeline, {"a": _curve(1.0)})
    assert found.latency_mean_s == pytest.approx(3 / (1.0 - 0.6))
    assert found.throughput_rps == pytest.approx(1 / 3)


def test_fork_join() -> None:
    """Four calls at once to one server are M^[4]/M/1: one round of (b + 1) / 2 / (mu - load)."""
    needs = demand({"a": calls(4.0, parallelism=4.0, fan_out=4.0)})
    found = _predict(_one(needs, 0.1), {"a": _curve(1.0)})
    assert found.latency_mean_s == pytest.approx(2.5 / 0.6)


def test_fork_join_over_replicas() -> None:
    """The dispatcher spreads a fan-out: over four replicas each gets one call of it."""
    needs = demand({"a": calls(4.0, parallelism=4.0, fan_out=4.0)})
    found = _predict(_one(needs, 0.1), {"a": _curve(1.0)}, replicas=4)
    assert found.latency_mean_s == pytest.approx(1 / 0.9)
    three = _predict(_one(needs, 0.1), {"a": _curve(1.0)}, replicas=3)
    load = 0.4 / 3
    assert three.latency_mean_s == pytest.approx(1.5 / (1 - load))


def test_overlap_shortens_the_llm_time_only() -> None:
    """Overlap scales the LLMs' part; tool time stays."""
    needs = demand({"a": calls(1.0), "b": calls(1.0)}, overlap=0.5, tool_time_s=3.0)
    found = _predict(_one(needs, 0.5), {"a": _curve(1.0), "b": _curve(1.0)})
    assert found.latency_mean_s == pytest.approx(0.5 * (2.0 + 2.0) + 3.0)


def test_overload_is_unknown_not_large() -> None:
    """Above capacity there is no mean latency: null, and a flag that says by how much."""
    found = _predict(_one(demand({"a": calls(1.0)}), 2.0), {"a": _curve(1.0)})
    assert found.latency_mean_s is None
    assert found.throughput_rps == pytest.approx(1.0)
    assert any("overloaded: at 200% of capacity" in flag for flag in found.flags)


def test_table_equals_prediction() -> None:
    """What the search adds up is what the prediction says, and 95% is the limit."""
    needs = demand(
        {"a": calls(3.0, parallelism=2.5, fan_out=3.0), "b": calls(1.0)},
        overlap=0.8,
        tool_time_s=1.0,
    )
    pipeline = _one(needs, 1.3)
    curves = {"a": _curve(1.0, slots=4), "b": _curve(1.5)}
    tables = pipeline.tables({name: [(curve, 9)] for name, curve in curves.items()})
    for replicas in (2, 3, 9):
        total_s = sum(float(table.cost_s[replicas - 1]) for table in tables) + 1.0
        found = _predict(pipeline, curves, replicas)
        assert found.latency_mean_s == pytest.approx(total_s)
    assert np.isinf(tables[0].cost_s[0]) == (3.9 > 0.95 * 4.0)
    assert float(tables[0].throughput_rps[1]) == pytest.approx(2 * 4.0 / 3.9)


def test_two_workflows_share_a_stage() -> None:
    """Equal model and arguments: one deployment, the loads add up, tokens mix by calls."""
    flows = [workflow("x", {"a": LLM}), workflow("y", {"b": LLM, "c": Llm(model="org/other")})]
    needs = {
        "x": demand({"a": calls(2.0, input_tokens_mean=1000.0)}),
        "y": demand({"b": calls(1.0, input_tokens_mean=400.0), "c": calls(1.0)}),
    }
    pipeline = pipeline_of(flows, needs, {"x": 0.1, "y": 0.3})
    assert deployments_of(flows) == {"x": {"a": "a"}, "y": {"b": "a", "c": "c"}}
    shared = pipeline.stages[0]
    assert shared.calls_rps(pipeline.rates_rps) == pytest.approx(0.5)
    assert shared.tokens(pipeline.rates_rps).inputs == pytest.approx((0.2 * 1000 + 0.3 * 400) / 0.5)
    found = _predict(pipeline, {"a": _curve(1.0), "c": _curve(1.0)})
    latency_x, latency_y = 2 / 0.5, 1 / 0.5 + 1 / 0.7
    assert found.per_workflow["x"].latency_mean_s == pytest.approx(latency_x)
    assert found.per_workflow["y"].latency_mean_s == pytest.approx(latency_y)
    assert found.latency_mean_s == pytest.approx((latency_x + 3 * latency_y) / 4)


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


def test_an_llm_without_calls_costs_nothing() -> None:
    """A declared LLM that no run called takes one replica and no time."""
    needs = demand({"a": calls(1.0), "idle": calls(0.0, parallelism=1.0)})
    pipeline = _one(needs, 0.5)
    tables = pipeline.tables({"a": [(_curve(1.0), 2)], "idle": [(_curve(1.0), 2)]})
    assert tables[1].cost_s.tolist() == [0.0, 0.0]
    assert all(math.isinf(x) for x in tables[1].throughput_rps)
    found = _predict(pipeline, {"a": _curve(1.0), "idle": _curve(1.0)})
    assert found.latency_mean_s == pytest.approx(2.0)
    assert found.throughput_rps == pytest.approx(1.0)


def test_token_lengths_must_be_known() -> None:
    """Spans without token counts carry no curve: the error names workflow, LLM and key."""
    needs = demand({"a": calls(1.0, input_tokens_mean=None)})
    with pytest.raises(InputError, match="workflow w, LLM a: input_tokens"):
        _one(needs, 1.0)
