"""Percentiles in plans by replay, and limits on the 95th."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planning_cases import ENGINE, bundle, cluster, engine_points, workflow

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.simulation import tails
from scepsy_hpc.planning.simulation.tails import Tails
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate, Target

FLOW = workflow("w", {"a": Llm(model="org/model")})
SHAPES = ((1000.0, 100.0), (4000.0, 200.0), (500.0, 1.0), (2000.0, 400.0))


def _spans(num_runs: int) -> list[Span]:
    rng = random.Random(1)
    found = []
    for run in range(num_runs):
        clock_s = 0.0
        for call in range(rng.randint(1, 9)):
            found.append(
                Span(
                    run_id=f"r{run}",
                    span_id=f"s{call}",
                    kind="llm",
                    llm="a",
                    start_s=clock_s,
                    end_s=clock_s + 1.0,
                    status="ok",
                    input_tokens=1000,
                    output_tokens=100,
                )
            )
            clock_s += 1.1
    return found


def _plan(target: Target, limits: Limits | None = None, num_runs: int = 30) -> Plan:
    spans = {"w": _spans(num_runs)}
    return make_plan(
        [(FLOW, None)], spans, [bundle(engine_points(SHAPES))], cluster(), target, limits
    )


def _p95_s(plan: Plan) -> float:
    assert plan.predicted is not None
    assert plan.predicted.latency_p95_s is not None
    return plan.predicted.latency_p95_s


def test_percentiles_come_with_their_interval() -> None:
    """A plan from spans carries p50 and p95, in order, and says how sure the p95 is."""
    plan = _plan(Rate(1.0))
    found = plan.predicted
    assert found is not None
    assert found.latency_p50_s is not None
    assert found.latency_mean_s is not None
    assert found.latency_p50_s < _p95_s(plan)
    assert found.latency_mean_s < _p95_s(plan)
    assert any("95% interval" in flag for flag in found.flags)


def test_one_run_has_no_percentiles() -> None:
    """From a single run nothing is known of how runs differ: null, and said so."""
    found = _plan(Rate(0.1), num_runs=1).predicted
    assert found is not None
    assert found.latency_p95_s is None
    assert any("too few runs" in flag for flag in found.flags)


def test_limit_on_the_p95() -> None:
    """The highest rate under a p95 limit keeps it, is below the free one, and says how."""
    free = _plan(MaxThroughput())
    limit_s = 1.3 * _p95_s(_plan(Rate(0.1)))
    held = _plan(MaxThroughput(), Limits(p95_limit_s=limit_s))
    assert _p95_s(held) <= limit_s < _p95_s(free)
    assert (held.workflows[0].rate_rps or 0.0) < (free.workflows[0].rate_rps or 0.0)
    assert any("replayed" in line for line in held.explanation)
    assert held.certificate is not None
    assert held.certificate.metric == "rate_rps"


def test_limit_out_of_reach() -> None:
    """A p95 limit below what an idle plan has is infeasible and names the nearest."""
    with pytest.raises(InfeasibleError, match=r"p95 limit 0\.01 s .* nearest"):
        _plan(Rate(1.0), Limits(p95_limit_s=0.01))
    with pytest.raises(InfeasibleError, match="rate of nearly zero") as caught:
        _plan(MaxThroughput(), Limits(p95_limit_s=0.01))
    nearest_s = float(str(caught.value).partition("feasible limit is ")[2].split()[0])
    assert _plan(MaxThroughput(), Limits(p95_limit_s=1.01 * nearest_s)).certificate is not None


def test_limit_that_holds_changes_nothing() -> None:
    """A limit that the plan of lowest mean keeps leaves it as it is, and the plan says so."""
    free = _plan(Rate(1.0))
    held = _plan(Rate(1.0), Limits(p95_limit_s=10 * _p95_s(free)))
    assert held.llms == free.llms
    assert held.certificate == free.certificate
    assert any("did not change the order" in line for line in held.explanation)


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
    return make_plan([(flow, None)], {"w": spans}, bundles, cluster(gpus=3), Rate(0.01), limits)


def test_ranking_by_replay() -> None:
    """Where only a plan of higher mean keeps the p95 limit it is taken, certified, and said."""
    free = _one_of_two()
    assert (free.llms["a"].tp_degree, free.llms["b"].tp_degree) == (2, 1)
    assert free.certificate is not None
    held = _one_of_two(Limits(p95_limit_s=0.8 * _p95_s(free)))
    assert (held.llms["a"].tp_degree, held.llms["b"].tp_degree) == (1, 2)
    assert _p95_s(held) <= 0.8 * _p95_s(free)
    assert held.predicted is not None
    assert held.certificate is not None
    assert held.certificate.value == pytest.approx(held.predicted.latency_mean_s)
    assert held.certificate.bound == pytest.approx(free.certificate.value)
    assert held.certificate.gap > 0.01
    assert any("changed the order" in line for line in held.explanation)


def test_ranking_within_a_percentage() -> None:
    """With --within, of the plans that keep the p95 limit one on fewer GPUs is taken."""
    best = _plan(Rate(1.0))
    limits = Limits(p95_limit_s=1.2 * _p95_s(best), within_pct=10.0)
    few = _plan(Rate(1.0), limits)
    assert len(few.instances) < len(best.instances)
    assert _p95_s(few) <= 1.2 * _p95_s(best)
    assert few.certificate is not None
    assert best.certificate is not None
    assert few.certificate.value <= 1.1 * best.certificate.value
    assert any("fewest GPUs found within 10%" in line for line in few.explanation)


def test_a_deadline_takes_no_p95_limit() -> None:
    """A batch has no p95 limit: refused by option."""
    with pytest.raises(InputError, match="--p95-limit"):
        _plan(Deadline(100, 1000.0), Limits(p95_limit_s=5.0))


def test_many_calls_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many runs an even part is replayed, so that a plan stays quick."""
    monkeypatch.setattr(tails, "MOST_CALLS", 50)
    graphs = Tails.of({"w": _spans(60)}).graphs["w"]
    assert 0 < sum(len(g.nodes) for g in graphs) <= 100
    assert len(graphs) >= 8
