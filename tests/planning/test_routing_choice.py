"""Sticky routing is adopted where it gains beyond the interval, else not looked at or not taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_plans import PLAN
from span_cases import call

from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.formats.bundle import load_bundle
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow, Routing
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.planning.forecast import simulated as simulated_plan
from scepsy_hpc.planning.routing_choice import choose_routing, repeating
from scepsy_hpc.planning.simulation.arrivals import Closed

TWO = replace(PLAN, llms={"a": replace(PLAN.llms["a"], num_replicas=2)})


def spans(tokens: int) -> dict[str, list[Span]]:
    first, second = call("r", "a", 0.0, 1.0), call("r", "a", 1.0, 2.0)
    return {"w": [first, replace(second, prefix_of=Prefix(span_id=first.span_id, tokens=tokens))]}


def simulated(least: Figures, sticky: Figures) -> tuple[list[str], object]:
    asked: list[str] = []

    def simulate(plan: Plan) -> Figures:
        asked.append(plan.routing.rule)
        return sticky if plan.routing.rule == "sticky_prefix" else least

    return asked, simulate


def figures(low: float, mean: float, high: float, metric: str = "latency_mean_s") -> Figures:
    return Figures(**{metric: mean}, intervals={metric: (low, high)})


@pytest.mark.parametrize(
    ("least", "sticky", "metric", "rule"),
    [
        ((9.5, 10.0, 10.5), (8.5, 9.0, 9.4), "latency_mean_s", "sticky_prefix"),
        ((9.5, 10.0, 10.5), (8.5, 9.0, 9.6), "latency_mean_s", "least_in_flight"),
        ((9.5, 10.0, 10.5), (10.6, 11.0, 11.4), "latency_mean_s", "least_in_flight"),
        ((9.5, 10.0, 10.5), (10.6, 11.0, 11.4), "throughput_rps", "sticky_prefix"),
        ((9.5, 10.0, 10.5), (10.4, 11.0, 11.4), "throughput_rps", "least_in_flight"),
    ],
)
def test_only_a_gain_beyond_both_intervals_counts(least, sticky, metric, rule) -> None:
    """Intervals that touch each other show nothing; less latency and more throughput are gains."""
    one, other = figures(*least, metric), figures(*sticky, metric)
    asked, simulate = simulated(one, other)
    found = choose_routing(TWO, spans(500), simulate, metric)
    assert asked == ["least_in_flight", "sticky_prefix"]
    assert found.plan == replace(TWO, routing=Routing(rule=rule))
    assert found.simulated is (other if rule == "sticky_prefix" else one)
    assert found.why.startswith(f"routing: {rule}")


def test_a_load_that_only_one_rule_carries() -> None:
    """Figures that are unknown are those of an overloaded plan."""
    held = figures(9.0, 10.0, 11.0)
    _, simulate = simulated(Figures(), held)
    found = choose_routing(TWO, spans(500), simulate)
    assert found.plan.routing.rule == "sticky_prefix"
    assert found.why.endswith("latency_mean_s unknown (overloaded) becomes 10")
    _, simulate = simulated(held, Figures())
    assert choose_routing(TWO, spans(500), simulate).plan.routing.rule == "least_in_flight"


def test_nothing_is_simulated_where_no_rule_matters() -> None:
    """One replica, no repeats, less than a block."""

    def never(plan: Plan) -> Figures:
        raise AssertionError("simulated for nothing")

    silent = {"w": [call("r", "a", 0.0, 1.0)]}
    for plan, traced in ((PLAN, spans(500)), (TWO, silent), (TWO, spans(15))):
        found = choose_routing(plan, traced, never)
        assert (found.plan, found.simulated, found.why) == (plan, None, None)
    assert repeating(TWO, spans(16)) == ["a"]


def test_an_alias_is_looked_up_in_its_workflow() -> None:
    """A deployment's name need not be the alias."""
    workflow = replace(TWO.workflows[0], llms={"a": "big"})
    plan = replace(TWO, workflows=(workflow,), llms={"big": TWO.llms["a"]})
    assert repeating(plan, spans(500)) == ["big"]


def conversations(num_runs: int, num_turns: int) -> list[Span]:
    """Turns that repeat all that was said, 2000 tokens at first and 1200 more each time."""
    found = []
    for run in range(num_runs):
        before: Span | None = None
        for turn in range(num_turns + run % 3):
            prefix = None
            if before is not None:
                said = (before.input_tokens or 0) + (before.output_tokens or 0)
                prefix = Prefix(span_id=before.span_id, tokens=said)
            lengths = {"input_tokens": 2000 + 1200 * turn, "output_tokens": 60}
            before = call(f"r{run}", "a", 2.0 * turn, 2.0 * turn + 1.9, prefix_of=prefix, **lengths)
            found.append(before)
    return found


def test_conversations_on_replicas_gain_and_the_gain_is_simulated() -> None:
    """Shipped timing of Qwen3-8B: one turn in four finds its past by chance, all when sticky."""
    bundle = load_bundle(resolve_bundle("h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid"))
    llm = Deployment(
        model="Qwen/Qwen3-8B",
        engine="vllm",
        engine_version="0.24.0",
        gpu_type="h100_sxm",
        tp_degree=1,
        gpu_share_pct=100,
        num_replicas=4,
        bundle_sha256=bundle.sha256,
    )
    workflows = (PlanWorkflow(name="w", llms={"a": "a"}, max_runs_in_flight=32),)
    plan = Plan(workflows=workflows, llms={"a": llm})
    traced = {"w": conversations(6, 10)}
    asked: list[Figures] = []

    def simulate(one: Plan) -> Figures:
        asked.append(simulated_plan(one, traced, [bundle], Closed(None, 32)))
        return asked[-1]

    found = choose_routing(plan, traced, simulate)
    assert found.plan.routing == Routing(rule="sticky_prefix", max_behind=2)
    assert found.simulated is asked[1]
    assert asked[1].latency_mean_s is not None
    assert asked[0].latency_mean_s is not None
    assert asked[1].latency_mean_s < 0.95 * asked[0].latency_mean_s
    alone = replace(plan, llms={"a": replace(llm, num_replicas=1)})
    assert choose_routing(alone, traced, simulate).why is None
