"""Sticky routing is adopted where it gains beyond the interval, else not looked at or not taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_plans import PLAN
from span_cases import call

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.planning.routing_choice import choose_routing, repeating

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
