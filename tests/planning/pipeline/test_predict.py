"""Closed batches: steady state, makespan with fill and drain."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import pytest
from hand_plans import BUNDLES, NEEDS, PLAN

from scepsy_hpc.planning.pipeline.closed_network import ClosedState
from scepsy_hpc.planning.pipeline.makespan import ClosedBatch, longest_s, makespan
from scepsy_hpc.planning.pipeline.of_plan import predict_plan

EQUAL = {"w": replace(NEEDS["w"], run_lengths_s=(1.0, 1.0))}


def list_schedule_s(lengths_s: list[float], places: int, number: int = 300) -> float:
    """Mean makespan of runs in random order, each to the first place that is free."""
    chance, total_s = random.Random(1), 0.0
    for _ in range(number):
        order = chance.sample(lengths_s, len(lengths_s))
        free_s = [0.0] * places
        for length_s in order:
            heapq.heapreplace(free_s, free_s[0] + length_s)
        total_s += max(free_s)
    return total_s / number


@pytest.mark.parametrize("places", [1, 4, 16, 64, 200])
@pytest.mark.parametrize("tail_s", [1.0, 30.0, 300.0])
def test_makespan_of_list_scheduling(places: int, tail_s: float) -> None:
    """Runs of tool time alone that nothing stretches, one of them long: within its bounds and
    6%, or 13% where there are hardly three rounds of runs.

    Truth: the mean over random orders, each run to the first free place.
    """
    chance = random.Random(7)
    lengths = [0.5 + chance.random() for _ in range(199)] + [tail_s]
    tools = tuple(x - 0.1 for x in lengths)
    run_s = sum(lengths) / 200
    state = ClosedState(places / run_s, run_s, ())
    alone = ClosedState(1.0 / run_s, run_s, ())
    found_s, _ = makespan(state, alone, ClosedBatch(200, places, tuple(lengths), tools))
    work_s, longest = 200 * run_s / places, max(lengths)
    assert max(work_s, longest) <= found_s * (1 + 1e-9)
    assert found_s <= work_s + longest
    rel = 0.13 if places == 64 and tail_s == 1.0 else 0.06
    assert found_s == pytest.approx(list_schedule_s(lengths, places), rel=rel)


def test_drain_waits_for_the_longest() -> None:
    """Runs that differ drain for as long as the longest of those in flight is expected to last.

    Truth: four places, as the server does four calls as fast as one.
    """
    varied = {"w": replace(NEEDS["w"], run_lengths_s=(1.0, 1.0, 1.0, 5.0))}
    found = predict_plan(PLAN, varied, BUNDLES, num_tasks=100)
    assert found.makespan_s == pytest.approx(
        list_schedule_s([0.5, 0.5, 0.5, 2.5] * 25, 4), rel=0.03
    )


def test_makespan_is_never_shorter_than_the_longest_run() -> None:
    """A batch that all starts at once still lasts as long as its longest run."""
    plan = replace(PLAN, workflows=(replace(PLAN.workflows[0], max_runs_in_flight=2),))
    varied = {"w": replace(NEEDS["w"], run_lengths_s=(1.0,) * 99 + (1000.0,))}
    found = predict_plan(plan, varied, BUNDLES, num_tasks=1000)
    assert found.latency_mean_s is not None
    assert found.makespan_s is not None
    assert found.makespan_s >= 0.99 * found.latency_mean_s * 1000.0 / 10.99


def test_waiting_stretches_llm_time_only() -> None:
    """A run of 300 s of tools among short ones that wait 100 times as long: its tools do not."""
    lengths, tools = (*(1.0,) * 99, 301.0), (*(0.0,) * 99, 300.0)
    run_s = 3.0 + 100.0
    state, alone = ClosedState(100 / run_s, run_s, ()), ClosedState(1 / 4.0, 4.0, ())
    found_s, _ = makespan(state, alone, ClosedBatch(100, 100, lengths, tools))
    assert 301.0 <= found_s <= 400.0


def test_without_spans_a_makespan_is_unknown() -> None:
    """A plan keeps means alone: no figure, and what is missing is said."""
    found = predict_plan(PLAN, NEEDS, BUNDLES, num_tasks=100)
    assert (found.makespan_s, found.per_workflow["w"].makespan_s) == (None, None)
    assert any(flag.startswith("makespan_s: unknown: ") for flag in found.flags)


def test_batch_of_equal_runs() -> None:
    """Four slots, runs of one second, 100 tasks: 25 rounds of a second."""
    found = predict_plan(PLAN, EQUAL, BUNDLES, num_tasks=100)
    assert found.throughput_rps == pytest.approx(4.0)
    assert found.latency_mean_s == pytest.approx(1.0)
    assert found.makespan_s == pytest.approx(25.0)


def test_fewer_tasks_than_places() -> None:
    """With fewer tasks than places the batch lasts one run."""
    found = predict_plan(PLAN, EQUAL, BUNDLES, num_tasks=3)
    assert found.makespan_s == pytest.approx(1.0, rel=1e-6)


def test_longest_of_a_sample() -> None:
    """The expected longest of k of three runs, each equally often: the mean for one, then more."""
    lengths = (1.0, 2.0, 3.0)
    for number, truth_s in ((1, 2.0), (3, 3.0), (10_000, 3.0)):
        batch = ClosedBatch(number, 1, lengths)
        assert longest_s(2.0, batch) == pytest.approx(truth_s, rel=0.12)
    assert longest_s(5.0, ClosedBatch(7, 1)) == pytest.approx(5.0)
