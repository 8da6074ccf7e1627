"""What `scepsy plan` shows: every figure with its unit, every flag of the file, 100 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_cases import NEEDS, request_for
from rich.console import Console
from traced_plans import plan_of_runs

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.targets import Deadline, MaxThroughput, Rate, Target
from scepsy_hpc.report.plan_screen import WIDTH, every_flag, plan_parts


def screen(plan: Plan) -> str:
    """As a wide terminal shows it."""
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        for part in plan_parts(plan):
            console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return capture.get()


@pytest.mark.parametrize("target", [Rate(1.0), MaxThroughput(), Deadline(200, 3600.0)])
def test_nothing_of_the_file_is_missing(target: Target) -> None:
    """Rate or batch, both figures, the certificate, what it rests on, all flags; 100 columns."""
    plan = plan_of_runs(target)
    shown = screen(plan)
    assert max(map(len, shown.splitlines())) <= WIDTH
    words = " ".join(shown.split())
    for flag in (*plan.predicted.flags, *plan.simulated.flags):  # type: ignore[union-attr]
        assert f"flag: {' '.join(flag.split())}" in words
    for line in plan.explanation:
        assert " ".join(line.split()) in words
    assert "certificate: by the predicted" in words
    assert "rests on: 1" in words or "rests on: " in words
    assert "predicted simulated 95% interval difference" in words
    assert "frontier: " in words
    assert ("makespan" in words) == isinstance(target, Deadline)


def test_what_rests_on_derived_figures_is_named() -> None:
    """Parts of the certificate stand in percent, those of nothing are left out."""
    plan = plan_of_runs(Rate(1.0))
    assert plan.certificate is not None
    assert plan.certificate.rests_on is not None
    rests = replace(plan.certificate.rests_on, measured_pct=60.0, derived_pct=40.0)
    rests = replace(rests, modelled_pct=0.0, transferred_pct=0.0, extrapolated_pct=0.0)
    shown = screen(replace(plan, certificate=replace(plan.certificate, rests_on=rests)))
    assert "rests on: 60% measured, 40% derived figures" in shown


def test_a_difference_stands_before_other_flags() -> None:
    """Each flag once, whichever figures carry it; where the two differ comes first."""
    plan = plan_of_runs(Rate(1.0))
    assert plan.simulated is not None
    assert plan.predicted is not None
    worse = replace(plan.simulated, flags=("x: other", "w: latency_mean_s: differs: much"))
    flags = every_flag(
        replace(plan, simulated=worse, predicted=replace(plan.predicted, flags=("x: other",)))
    )
    assert flags == ("w: latency_mean_s: differs: much", "x: other")


def test_a_plan_without_spans_says_so() -> None:
    """Known demand alone cannot be simulated: the table says why the column is empty."""
    plan = make_plan(request_for(Rate(1.0), demands={"w": NEEDS}))
    assert plan.simulated is None
    assert "not simulated: no spans" in screen(plan)
