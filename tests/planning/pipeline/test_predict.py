"""Closed batches: steady state, makespan with fill and drain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_plans import BUNDLES, NEEDS, PLAN

from scepsy_hpc.planning.pipeline.of_plan import predict_plan
from scepsy_hpc.planning.pipeline.predict import longest_of


def test_batch_of_equal_runs() -> None:
    """Four slots, runs of one second, 100 tasks: 25 rounds of a second."""
    found = predict_plan(PLAN, NEEDS, BUNDLES, num_tasks=100)
    assert found.throughput_rps == pytest.approx(4.0)
    assert found.latency_mean_s == pytest.approx(1.0)
    assert found.makespan_s == pytest.approx(25.0)
    assert any(flag.startswith("makespan_s") for flag in found.flags)


def test_drain_waits_for_the_longest() -> None:
    """Runs that differ drain for as long as the longest of those in flight is expected to last."""
    varied = {"w": replace(NEEDS["w"], run_lengths_s=(1.0, 1.0, 1.0, 5.0))}
    found = predict_plan(PLAN, varied, BUNDLES, num_tasks=100)
    assert found.makespan_s == pytest.approx(24.0 + longest_of(4, (1.0, 1.0, 1.0, 5.0)))


def test_makespan_is_never_shorter_than_the_longest_run() -> None:
    """A batch that all starts at once still lasts as long as its longest run."""
    plan = replace(PLAN, workflows=(replace(PLAN.workflows[0], max_runs_in_flight=2),))
    varied = {"w": replace(NEEDS["w"], run_lengths_s=(1.0,) * 99 + (1000.0,))}
    found = predict_plan(plan, varied, BUNDLES, num_tasks=1000)
    assert found.latency_mean_s is not None
    assert found.makespan_s is not None
    assert found.makespan_s >= 0.99 * found.latency_mean_s * 1000.0 / 10.99


def test_fewer_tasks_than_places() -> None:
    """With fewer tasks than places the batch lasts one run."""
    found = predict_plan(PLAN, NEEDS, BUNDLES, num_tasks=3)
    assert found.makespan_s == pytest.approx(1.0, rel=1e-6)


def test_longest_of_draws() -> None:
    """The expected longest of k draws: the mean for one, the largest for very many."""
    lengths = (1.0, 2.0, 3.0)
    assert longest_of(1, lengths) == pytest.approx(1.0)
    assert longest_of(2, lengths) == pytest.approx((1 * 1 + 2 * 3 + 3 * 5) / 9 / 2.0)
    assert longest_of(10_000, lengths) == pytest.approx(1.5)
    assert longest_of(7, ()) == 1.0
