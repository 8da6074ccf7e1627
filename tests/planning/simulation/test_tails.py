"""Percentiles in plans by replay, and limits on the 95th."""

from __future__ import annotations

import pytest
from traced_plans import p95_s_of, plan_of_runs, spans_of_runs

from scepsy_hpc.planning.simulation import tails
from scepsy_hpc.planning.simulation.tails import Tails
from scepsy_hpc.planning.targets import Rate


def test_percentiles_come_with_their_interval() -> None:
    """A plan from spans carries p50 and p95, in order, and says how sure the p95 is."""
    plan = plan_of_runs(Rate(1.0))
    found = plan.predicted
    assert found is not None
    assert found.latency_p50_s is not None
    assert found.latency_mean_s is not None
    assert found.latency_p50_s < p95_s_of(plan)
    assert found.latency_mean_s < p95_s_of(plan)
    assert any("95% interval" in flag for flag in found.flags)


def test_one_run_has_no_percentiles() -> None:
    """From a single run nothing is known of how runs differ: null, and said so."""
    found = plan_of_runs(Rate(0.1), num_runs=1).predicted
    assert found is not None
    assert found.latency_p95_s is None
    assert any("too few runs" in flag for flag in found.flags)


def test_many_calls_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many runs an even part is replayed, so that a plan stays quick."""
    monkeypatch.setattr(tails, "MOST_CALLS", 50)
    graphs = Tails.of({"w": spans_of_runs(60)}).graphs["w"]
    assert 0 < sum(len(g.nodes) for g in graphs) <= 100
    assert len(graphs) >= 8
