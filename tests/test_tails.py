"""Percentiles in plans by replay, and limits on the 95th."""

from __future__ import annotations

import random

import pytest
from planning_cases import bundle, cluster, engine_points, workflow

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.planning import tails
from scepsy_hpc.planning.build import make_plan
from scepsy_hpc.planning.plan import Plan
from scepsy_hpc.planning.tails import Tails
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate, Target
from scepsy_hpc.tracing.spans import Span
from scepsy_hpc.tracing.workflow import Llm

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
    with pytest.raises(InfeasibleError, match="at any rate"):
        _plan(MaxThroughput(), Limits(p95_limit_s=0.01))


def test_limit_that_holds_changes_nothing() -> None:
    """A limit that the plan of lowest mean keeps leaves it as it is."""
    free = _plan(Rate(1.0))
    assert _plan(Rate(1.0), Limits(p95_limit_s=10 * _p95_s(free))).llms == free.llms


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
