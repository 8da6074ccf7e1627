"""Plans that keep a limit on the 95th percentile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_cases import ENGINE, SHAPES, bundle, cluster, engine_points, workflow
from traced_plans import plan_of_runs, simulated_p95_s_of

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Limits, MaxThroughput, Rate


def test_limit_on_the_p95() -> None:
    """The highest rate under a p95 limit keeps it, is below the free one, and says how."""
    free = plan_of_runs(MaxThroughput())
    limit_s = 1.3 * simulated_p95_s_of(plan_of_runs(Rate(0.1)))
    held = plan_of_runs(MaxThroughput(), Limits(p95_limit_s=limit_s))
    assert simulated_p95_s_of(held) <= limit_s < simulated_p95_s_of(free)
    assert (held.workflows[0].rate_rps or 0.0) < (free.workflows[0].rate_rps or 0.0)
    assert any("replayed" in line for line in held.explanation)
    assert held.certificate is not None
    assert held.certificate.metric == "rate_rps"


def test_limit_out_of_reach() -> None:
    """A p95 limit below what an idle plan has is infeasible and names the nearest."""
    with pytest.raises(InfeasibleError, match=r"p95 limit 0\.01 s .* nearest"):
        plan_of_runs(Rate(1.0), Limits(p95_limit_s=0.01))
    with pytest.raises(InfeasibleError, match="rate of nearly zero") as caught:
        plan_of_runs(MaxThroughput(), Limits(p95_limit_s=0.01))
    nearest_s = float(str(caught.value).partition("feasible limit is ")[2].split()[0])
    assert (
        plan_of_runs(MaxThroughput(), Limits(p95_limit_s=1.01 * nearest_s)).certificate is not None
    )


def test_limit_that_holds_changes_nothing() -> None:
    """A limit that the plan of lowest mean keeps leaves it as it is, and the plan says so."""
    free = plan_of_runs(Rate(1.0), Limits(within_pct=0.0))
    limits = Limits(p95_limit_s=10 * simulated_p95_s_of(free), within_pct=0.0)
    held = plan_of_runs(Rate(1.0), limits)
    assert held.llms == free.llms
    assert held.certificate == free.certificate
    assert any("the plan of lowest mean latency keeps it" in line for line in held.explanation)


def _call(run: int, number: int, llm: str) -> Span:
    return Span(
        run_id=f"r{run}",
        span_id=f"s{number}",
        kind="llm",
        llm=llm,
        start_s=1.1 * number,
        end_s=1.1 * number + 1.0,
        status="ok",
        input_tokens=1000,
        output_tokens=100,
    )


def _faster(gain: float) -> EngineModel:
    return replace(ENGINE, step_s=ENGINE.step_s / gain)


def _one_of_two(limits: Limits | None = None) -> Plan:
    """Three GPUs: most runs call `a`, which the mean rests on; one in ten, the tail, calls `b`."""
    spans = [
        _call(run, number, "b" if run % 10 == 0 else "a")
        for run in range(40)
        for number in range(40 if run % 10 == 0 else 10)
    ]
    points = [
        point
        for tp, gain in ((1, 1.0), (2, 1.6))
        for point in engine_points(SHAPES, engine=_faster(gain), tp_degree=tp)
    ]
    flow = workflow("w", {x: Llm(model=f"org/{x}", gpu_shares_pct=(100,)) for x in "ab"})
    bundles = [bundle(points, model=f"org/{x}", link="nvlink") for x in "ab"]
    gpus, target = cluster(gpus=3), Rate(0.01)
    return make_plan(
        PlanRequest([(flow, None)], bundles, gpus, target, limits or Limits(), {"w": spans})
    )


def test_ranking_by_simulation() -> None:
    """Where only a plan of higher mean keeps the p95 limit it is taken, certified, and said."""
    free = _one_of_two()
    assert (free.llms["a"].tp_degree, free.llms["b"].tp_degree) == (2, 1)
    assert free.certificate is not None
    held = _one_of_two(Limits(p95_limit_s=0.8 * simulated_p95_s_of(free)))
    assert (held.llms["a"].tp_degree, held.llms["b"].tp_degree) == (1, 2)
    assert simulated_p95_s_of(held) <= 0.8 * simulated_p95_s_of(free)
    assert held.predicted is not None
    assert held.certificate is not None
    assert held.certificate.value == pytest.approx(held.predicted.latency_mean_s)
    assert held.certificate.bound == pytest.approx(free.certificate.value)
    assert held.certificate.gap > 0.01
    assert not held.certificate.proved
    assert any("kept by simulation" in line for line in held.explanation)
    assert any("plans were replayed" in line for line in held.explanation)


def test_ranking_within_a_percentage() -> None:
    """With --within, of the plans that keep the p95 limit one on fewer GPUs is taken."""
    best = plan_of_runs(Rate(1.0), Limits(within_pct=0.0))
    limits = Limits(p95_limit_s=1.2 * simulated_p95_s_of(best), within_pct=10.0)
    few = plan_of_runs(Rate(1.0), limits)
    assert len(few.instances) < len(best.instances)
    assert simulated_p95_s_of(few) <= 1.2 * simulated_p95_s_of(best)
    assert few.certificate is not None
    assert best.certificate is not None
    assert few.certificate.value <= 1.1 * best.certificate.value
    assert any("fewest GPUs found within 10%" in line for line in few.explanation)
