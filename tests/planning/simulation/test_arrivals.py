"""When runs come: Poisson gaps, the mix of workflows, what makes no sense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from simulation_cases import UNLIMITED, plan_of, simulate_plan, single_calls

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import PlanWorkflow
from scepsy_hpc.planning.simulation.arrivals import Closed, Open
from scepsy_hpc.planning.simulation.events import simulate_timeline


def test_unlimited_open_arrivals_are_poisson() -> None:
    """Arrivals come at the rate, with gaps as dispersed as an exponential's."""
    timeline = simulate_timeline(
        plan_of("a"), {"w": single_calls(1)}, {"a": UNLIMITED}, Open(4000, 5.0), seed=3
    )
    gaps_s = np.diff(timeline.run_start_s)
    assert gaps_s.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps_s.std() == pytest.approx(0.2, rel=0.1)


def test_open_arrivals_keep_the_mix() -> None:
    """One rate for two workflows is split as the plan's rates are, and so are the runs."""
    workflows = (
        PlanWorkflow(name="v", llms={"a": "a"}, rate_rps=3.0),
        PlanWorkflow(name="w", llms={"a": "a"}, rate_rps=1.0),
    )
    spans = {"v": single_calls(1), "w": single_calls(1)}
    plan = plan_of("a", workflows=workflows)
    result = simulate_plan(plan, spans, {"a": UNLIMITED}, Open(4000, 8.0))
    assert [result.per_workflow[name].num_runs for name in ("v", "w")] == [3000, 1000]
    for name, rate in (("v", 6.0), ("w", 2.0)):
        assert result.per_workflow[name].throughput_rps == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Closed(0, 1), "num_runs (0)"),
        (lambda: Closed(1, 0), "max_in_flight (0)"),
        (lambda: Open(0, 1.0), "num_runs (0)"),
        (lambda: Open(1, math.nan), "rate_rps (nan)"),
        (lambda: Open(1, -1.0), "rate_rps (-1.0)"),
    ],
)
def test_bad_arrivals(make: Any, message: str) -> None:
    """Arrivals that make no sense repeat the value they refuse."""
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
