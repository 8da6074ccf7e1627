"""Predicted and simulated side by side: what agrees passes, what does not is flagged."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from planning_cases import SHAPES, bundle, cluster, engine_points, workflow
from traced_plans import plan_of_runs, spans_of_runs

from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.choose import choose
from scepsy_hpc.planning.compared import beyond_interval, with_differences
from scepsy_hpc.planning.curves.curve import Curve
from scepsy_hpc.planning.emission import emit
from scepsy_hpc.planning.offers import Offers
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Limits, MaxThroughput, Rate


def _differs(figures: Figures | None, key: str = "") -> list[str]:
    assert figures is not None
    return [flag for flag in figures.flags if f"{key}: differs: " in flag]


def _request(rate: float) -> PlanRequest:
    flow = workflow("w", {"a": Llm(model="org/model")})
    bundles, spans = [bundle(engine_points(SHAPES))], {"w": spans_of_runs(30)}
    return PlanRequest([(flow, None)], bundles, cluster(), Rate(rate), Limits(), spans)


def test_a_plan_is_simulated_at_its_rate() -> None:
    """Figures with intervals, the seed and the number of runs, near the rate and the prediction."""
    plan = plan_of_runs(Rate(1.0))
    assert plan.simulated is not None
    assert plan.predicted is not None
    assert plan.simulated.how == "simulated"
    assert plan.simulated.seed is not None
    low, high = plan.simulated.intervals["latency_mean_s"]
    assert low < (plan.simulated.latency_mean_s or 0.0) < high
    assert high - low <= 2 * 0.05 * (plan.simulated.latency_mean_s or 0.0) * 1.2
    assert plan.simulated.throughput_rps == pytest.approx(1.0, rel=0.15)
    assert plan.simulated.latency_mean_s == pytest.approx(plan.predicted.latency_mean_s, rel=0.15)
    assert not _differs(plan.simulated, "latency_mean_s")


class _Promising(Curve):
    """A curve that is wrong about what its calls take under load."""

    def latency_s(self, *load: Any) -> float:
        return super().latency_s(*load) / 3


def test_a_curve_that_promises_too_much_is_flagged() -> None:
    """A curve whose calls take a third of what its throughput allows."""
    known = _request(1.0).with_demands()
    honest = PlanningProblem.of(known)
    (offer,) = honest.offers["a"].found
    wrong = _Promising(**{f.name: getattr(offer.curve, f.name) for f in fields(offer.curve)})
    offers = {"a": Offers((replace(offer, curve=wrong),), ())}
    assert honest.checker is not None
    planted = replace(honest, offers=offers, checker=replace(honest.checker, offers=offers))
    plan = emit(known, planted, choose(planted, known.target))
    (flag,) = _differs(plan.simulated, "latency_mean_s")
    assert "trust the simulation" in flag
    assert not _differs(emit(known, honest, choose(honest, known.target)).simulated, "mean_s")


def test_the_same_request_gives_the_same_bytes() -> None:
    """Nothing random without its seed: two plans of one request are equal."""
    assert plan_of_runs(Rate(1.0)) == plan_of_runs(Rate(1.0))


def test_the_highest_rate_is_simulated_closed_too() -> None:
    """So many runs always in flight carry the planned rate; the flag says where it comes from."""
    plan = plan_of_runs(MaxThroughput())
    (flow,) = plan.workflows
    assert plan.simulated is not None
    assert any(flag.startswith("throughput_rps: closed: ") for flag in plan.simulated.flags)
    assert (plan.simulated.throughput_rps or 0.0) > 0.85 * (flow.rate_rps or 0.0)
    assert not _differs(plan.simulated, "throughput_rps")


def test_without_spans_nothing_is_simulated() -> None:
    """Demand that is known without its runs has no graph to simulate: simulated is null."""
    known = replace(_request(1.0).with_demands(), spans={})
    problem = PlanningProblem.of(known)
    assert emit(known, problem, choose(problem, known.target)).simulated is None


def test_fewer_calls_leave_a_wider_interval_that_is_flagged() -> None:
    """`--check-calls` ends the simulation; what is then not known well enough says so."""
    known = replace(_request(1.0), check_calls=400).with_demands()
    problem = PlanningProblem.of(known)
    plan = emit(known, problem, choose(problem, known.target))
    assert plan.simulated is not None
    assert any("wide_interval: " in flag for flag in plan.simulated.flags)


@pytest.mark.parametrize(
    ("predicted", "interval", "expected"),
    [(1.0, (0.9, 1.1), 0.0), (0.8, (0.9, 1.1), 0.1), (1.4, (0.9, 1.1), 0.3)],
)
def test_difference_counts_from_the_interval(
    predicted: float, interval: tuple[float, float], expected: float
) -> None:
    """Inside there is none; outside it is measured from the nearer end."""
    assert beyond_interval(predicted, 1.0, interval) == pytest.approx(expected)


def test_unknown_figures_are_not_compared() -> None:
    """A null on either side is no difference, and an interval that is missing is said to be."""
    said = Figures(per_workflow={"w": RunFigures(latency_mean_s=1.0, latency_p95_s=9.0)})
    found = Figures(per_workflow={"w": RunFigures(latency_mean_s=2.0)})
    flags = with_differences(said, found).flags
    assert len(flags) == 1
    assert flags[0] == (
        "w: latency_mean_s: differs: predicted 1 s, simulated 2 s (no interval: too few runs to "
        "say by how much); simulate more"
    )
