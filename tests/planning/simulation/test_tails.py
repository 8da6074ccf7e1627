"""Percentiles in plans by replay, and limits on the 95th."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_cases import SHAPES, bundle, engine_points
from traced_plans import p95_s_of, plan_of_runs, spans_of_runs

from scepsy_hpc.planning.pipeline.deployments import demands_in
from scepsy_hpc.planning.pipeline.host_time import HostTime
from scepsy_hpc.planning.pipeline.of_plan import hosted_of
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


def test_runs_that_wait_for_cores_end_later() -> None:
    """Percentiles and intervals move by the mean wait; where it is unbounded they are null."""
    tails_, plan = Tails.of({"w": spans_of_runs(30)}), plan_of_runs(Rate(1.0))
    demand = {"w": replace(plan.demand["w"], tool_time_s=2.0, cpu_s=2.0)}
    demands = demands_in(replace(plan, demand=demand))
    pipeline, hosted = hosted_of(plan, demands, [bundle(engine_points(SHAPES))], 1.0)
    alone = tails_.figures(replace(pipeline, agent_cores=None), hosted)["w"]
    found = tails_.figures(replace(pipeline, agent_cores=2.5), hosted)["w"]
    wait_s = found.latency_mean_s - alone.latency_mean_s
    assert wait_s == pytest.approx(HostTime(2.5, {"w": 2.0}).waiting_s({"w": 1.0})["w"])
    assert found.latency_p95_s == pytest.approx(alone.latency_p95_s + wait_s)
    low, high = alone.intervals["latency_p95_s"]
    assert found.intervals["latency_p95_s"] == pytest.approx((low + wait_s, high + wait_s))
    too_few = tails_.figures(replace(pipeline, agent_cores=2.0), hosted)["w"]
    assert (too_few.latency_p95_s, too_few.num_runs) == (None, alone.num_runs)


def test_many_calls_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many runs an even part is replayed, so that a plan stays quick."""
    monkeypatch.setattr(tails, "MOST_CALLS", 50)
    graphs = Tails.of({"w": spans_of_runs(60)}).graphs["w"]
    assert 0 < sum(len(g.nodes) for g in graphs) <= 100
    assert len(graphs) >= 8
