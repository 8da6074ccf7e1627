"""The Aggregate LLM Pipeline on workflows whose answer is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planning_cases import bundle, calls, demand, flat_group_s, point, workflow

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.curves.bursts import Bursts
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import evidence_for
from scepsy_hpc.planning.curves.making import make_curve
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand, pipeline_of
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline, Use, run_latency_s, use_of
from scepsy_hpc.planning.pipeline.predict import predict_open

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
        pipeline, [HostedStage(stage, curves[stage.name], replicas) for stage in pipeline.stages]
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
    """The dispatcher spreads a fan-out: over four replicas each gets one call of it.

    On two, calls of unequal pairs leave at their own times: between 1.5 s as on one replica and
    the 2 s of equal calls that keep each other company to the end.
    """
    needs = demand({"a": calls(4.0, parallelism=4.0, fan_out=4.0)})
    one, two, four = (
        _predict(_one(needs, 0.01), {"a": _curve(1.0)}, replicas).latency_mean_s
        for replicas in (1, 2, 4)
    )
    # Hardly any load: four exponential calls on one replica, two on each of two, one on each.
    assert one == pytest.approx(2.5 / 0.96)
    assert two is not None
    assert 1.5 < two < 2.0
    assert four == pytest.approx(1.0, rel=0.02)


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
    assert pipeline.aliases == {"x": {"a": "a"}, "y": {"b": "a", "c": "c"}}
    shared = pipeline.stages[0]
    assert shared.calls_rps(pipeline.rates_rps) == pytest.approx(0.5)
    assert shared.tokens(pipeline.rates_rps).inputs == pytest.approx((0.2 * 1000 + 0.3 * 400) / 0.5)
    curve = _curve(1.0)
    found = _predict(pipeline, {"a": curve, "c": _curve(1.0)})
    # A call of x is 1000 prompt tokens, one of y 400; outputs are alike.
    works = [curve.work_of(TokenLengths(n, 100.0)) for n in (1000.0, 400.0)]
    mean = (0.2 * works[0] + 0.3 * works[1]) / 0.5
    assert works[0] > works[1]
    latency_x = 2 / 0.5 * works[0] / mean
    latency_y = 1 / 0.5 * works[1] / mean + 1 / 0.7
    assert found.per_workflow["x"].latency_mean_s == pytest.approx(latency_x)
    assert found.per_workflow["y"].latency_mean_s == pytest.approx(latency_y)
    assert found.latency_mean_s == pytest.approx((latency_x + 3 * latency_y) / 4)


def test_an_llm_without_calls_costs_nothing() -> None:
    """A declared LLM that no run called takes one replica and no time."""
    needs = demand({"a": calls(1.0), "idle": calls(0.0, parallelism=1.0)})
    pipeline = _one(needs, 0.5)
    tables = pipeline.tables({"a": [(_curve(1.0), 2)], "idle": [(_curve(1.0), 2)]})
    assert tables[1].cost_s.tolist() == [0.0, 0.0]
    assert all(math.isinf(x) for x in tables[1].throughput_rps)
    assert pipeline.cost_s(pipeline.stages[1], _curve(1.0), math.inf) == 0.0
    found = _predict(pipeline, {"a": _curve(1.0), "idle": _curve(1.0)})
    assert found.latency_mean_s == pytest.approx(2.0)
    assert found.throughput_rps == pytest.approx(1.0)


def test_token_lengths_must_be_known() -> None:
    """Spans without token counts carry no curve: the error names workflow, LLM and key."""
    needs = demand({"a": calls(1.0, input_tokens_mean=None)})
    with pytest.raises(InputError, match="workflow w, LLM a: input_tokens"):
        _one(needs, 1.0)
    without_outputs = demand({"a": calls(1.0, output_tokens_mean=None)})
    with pytest.raises(InputError, match="workflow w, LLM a: output_tokens"):
        _one(without_outputs, 1.0)


def test_latency_of_a_run() -> None:
    """Overlap 0.5, 4 s of calls one after another and 3 s of tools: 0.5 x 4 + 3 = 5 s."""
    assert run_latency_s(4.0, 3.0, 0.5) == 5.0
    # A cost has the overlap in it already.
    assert run_latency_s(4.0, 3.0) == 7.0


def test_workflows_weigh_as_their_rates() -> None:
    """Three runs of 2 s of calls at overlap 0.5 and 7 s of tools on one of 6 s of calls and 3 s."""
    flows = [workflow("x", {"a": LLM}), workflow("y", {"a": LLM})]
    needs = {
        "x": demand({"a": calls(6.0)}, tool_time_s=3.0),
        "y": demand({"a": calls(4.0, parallelism=2.0)}, overlap=0.5, tool_time_s=7.0),
    }
    pipeline = pipeline_of(flows, needs, {"x": 0.01, "y": 0.03})
    (stage,) = pipeline.stages
    assert pipeline.total_rps == pytest.approx(0.04)
    assert pipeline.tool_time_s == pytest.approx((3.0 + 3 * 7.0) / 4)
    curve = _curve(1.0)
    hosted = [HostedStage(stage, curve, 1)]
    assert pipeline.latency_s("x", hosted, {"a": 1.0}) == pytest.approx(6.0 + 3.0)
    assert pipeline.latency_s("y", hosted, {"a": 1.0}) == pytest.approx(0.5 * 2.0 + 7.0)
    cost_s = pipeline.cost_s(stage, curve, 1.0)
    assert cost_s == pytest.approx((6.0 + 3 * 0.5 * 2.0) / 4)
    assert pipeline.mean_latency_s(cost_s) == pytest.approx((9.0 + 24.0) / 4)


def test_fan_outs_and_tokens_mix_by_calls() -> None:
    """One call in four comes in fives, the others alone: two at once in the mean."""
    flows = [workflow("x", {"a": LLM}), workflow("y", {"a": LLM})]
    needs = {
        "x": demand({"a": calls(3.0, input_tokens_mean=800.0, output_tokens_mean=40.0)}),
        "y": demand({"a": calls(1.0, fan_out=5.0, cached_tokens_mean=600.0)}),
    }
    (stage,) = pipeline_of(flows, needs, {"x": 0.25, "y": 0.25}).stages
    rates = {"x": 0.25, "y": 0.25}
    assert stage.calls_rps(rates) == pytest.approx(1.0)
    assert stage.bursts(rates, _curve(1.0)).size == pytest.approx(2.0)
    assert stage.tokens(rates) == TokenLengths(850.0, 55.0, 150.0)
    # Without calls each counts as much as the other.
    assert stage.tokens({"x": 0.0, "y": 0.0}) == TokenLengths(900.0, 70.0, 300.0)


def test_replicas_end_at_95_percent() -> None:
    """At 95% of one M/M/1 server a call takes 1 / (1 - 0.95) s; above it costs are infinite."""
    needs = demand({"a": calls(1.0)}, tool_time_s=5.0)
    room = {"a": [(_curve(1.0), 2)]}
    (at,) = _one(needs, 0.95).tables(room)
    assert at.cost_s == pytest.approx([20.0, flat_group_s(1.0, 2, 0.95)])
    (above,) = _one(needs, 0.951).tables(room)
    assert math.isinf(above.cost_s[0])
    assert above.cost_s[1] == pytest.approx(flat_group_s(1.0, 2, 0.951))


def test_options_for_the_highest_rate() -> None:
    """Without cost an option says how many times the wanted rates its replicas serve."""
    pipeline = _one(demand({"a": calls(2.0), "b": calls(1.0)}), 0.5)
    small, large = _curve(1.0), _curve(3.0)
    tables = pipeline.tables({"a": [(small, 3), (large, 1)], "b": [(small, 2)]}, with_cost=False)
    assert [(t.llm, t.payload) for t in tables] == [("a", small), ("a", large), ("b", small)]
    assert [t.num_replicas.tolist() for t in tables] == [[1, 2, 3], [1], [1, 2]]
    assert [t.throughput_rps.tolist() for t in tables] == [[1.0, 2.0, 3.0], [3.0], [2.0, 4.0]]
    assert all(not t.cost_s.any() for t in tables)
    assert tables[0].kind == small.kind


def test_chosen_options_host_the_stages() -> None:
    """What was chosen is hosted in the order of the stages; its cost is that of the tables."""
    pipeline = _one(demand({"a": calls(1.0), "b": calls(2.0)}, tool_time_s=1.0), 0.3)
    curves = {"a": _curve(1.0), "b": _curve(2.0)}
    tables = pipeline.tables({name: [(curve, 2)] for name, curve in curves.items()})
    chosen = {table.llm: table.option(1) for table in reversed(tables)}
    hosted = pipeline.hosted_by(chosen)
    assert [(h.stage.name, h.curve, h.num_replicas) for h in hosted] == [
        ("a", curves["a"], 2),
        ("b", curves["b"], 2),
    ]
    cost_s = flat_group_s(1.0, 2, 0.3) + 2 * flat_group_s(2.0, 2, 0.6)
    assert pipeline.cost_on(hosted) == pytest.approx(cost_s)
    assert sum(option.cost_s for option in chosen.values()) == pytest.approx(cost_s)
    assert [pipeline.theta(host) for host in hosted] == pytest.approx([2 / 0.3, 4 / 0.6])


def test_load_on_a_curve() -> None:
    """A hosted stage's replicas: load, latency of M^[4]/M/1 and the part of capacity in use."""
    (stage,) = _one(demand({"a": calls(4.0, fan_out=4.0)}), 0.3).stages
    one = HostedStage(stage, _curve(3.0), 1).load({"w": 0.3})
    assert one.latency_s == pytest.approx(2.5 / (3.0 - 1.2))
    load = HostedStage(stage, _curve(1.5), 2).load({"w": 0.3})
    assert (load.arrivals_rps, load.num_replicas) == (pytest.approx(1.2), 2)
    assert load.bursts == Bursts(4.0)
    assert load.utilisation == pytest.approx(0.4)
    assert any(flag.startswith("capacity_lower_bound") for flag in load.flags)


def test_other_rates_keep_the_mix() -> None:
    """Twice the rates are twice the load; what a run asks for stays."""
    flows = [workflow("x", {"a": LLM}), workflow("y", {"a": LLM})]
    needs = {
        "x": demand({"a": calls(1.0)}, tool_time_s=3.0),
        "y": demand({"a": calls(1.0)}, overlap=0.5),
    }
    slow = pipeline_of(flows, needs, {"x": 1.0, "y": 3.0})
    fast = slow.at_rates(2.0)
    assert fast.rates_rps == {"x": 2.0, "y": 6.0}
    assert fast.stages == slow.stages
    assert fast.tool_time_s == slow.tool_time_s == pytest.approx(0.75)
    hosted = [HostedStage(fast.stages[0], _curve(9.0), 1)]
    assert fast.latency_s("y", hosted, {"a": 1.0}) == 0.5


def test_use_of_an_llm() -> None:
    """A use keeps what demand says; lengths are a token at least; without calls it is idle."""
    known = calls(6.0, parallelism=2.0, input_tokens_mean=0.2, output_tokens_mean=7.0)
    use = use_of("w", "a", known, Bursts(3.0), 40.0)
    assert use == Use("w", "a", 6.0, 2.0, Bursts(3.0), TokenLengths(1.0, 7.0, 40.0))
    assert use.num_rounds == 3.0
    short = use_of("w", "a", calls(6.0, output_tokens_mean=0.0), Bursts(), 40.0)
    assert short.tokens == TokenLengths(1000.0, 1.0, 40.0)
    # Nothing is known of calls that never came: one token, one at a time.
    idle = use_of("w", "a", calls(0.0, parallelism=0.0, input_tokens_mean=None), Bursts(3.0), 40.0)
    assert idle == Use("w", "a", 0.0, 1.0, Bursts(), TokenLengths(1.0, 1.0))
    assert idle.num_rounds == 0.0
    rare = use_of("w", "a", calls(0.5), Bursts(), 0.0)
    assert rare.num_rounds == 0.5
