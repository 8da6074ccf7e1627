"""Closed batches against the answers that can be worked out by hand."""

from __future__ import annotations

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.pipeline.closed_network import ClosedStage, closed_batch, closed_times

ONE = Server((1.0,), (1.0,))


def test_one_stage_keeps_its_calls_in_flight() -> None:
    """With one LLM and no tools, K runs keep K x parallelism calls in flight, spread evenly."""
    server = Server((1.0, 8.0, 32.0), (1.0, 5.0, 12.0))
    stage = ClosedStage(server, num_replicas=2, calls_per_run=6.0, parallelism=3.0)
    state = closed_batch([stage], num_runs=8, overlap=1.0, tool_time_s=0.0)
    throughput, latency_s = server.closed(12.0)
    assert state.throughput_rps == pytest.approx(2 * throughput / 6.0, rel=1e-6)
    assert state.call_latency_s[0] == pytest.approx(latency_s, rel=1e-6)
    assert state.run_s == pytest.approx(6.0 / 3.0 * latency_s, rel=1e-6)


def test_one_run_alone_visits_its_stages_in_turn() -> None:
    """One run in flight lasts the sum of its calls and tools."""
    stages = [ClosedStage(ONE, 1, 3.0, 1.0), ClosedStage(Server((1.0,), (4.0,)), 1, 2.0, 1.0)]
    state = closed_batch(stages, 1, overlap=1.0, tool_time_s=2.0)
    assert state.run_s == pytest.approx(3.0 + 0.5 + 2.0, rel=1e-6)
    assert state.call_latency_s == pytest.approx((1.0, 0.25), rel=1e-6)


def test_machine_repair() -> None:
    """One server and a delay: the closed form of the machine-repair model (Erlang's loss sums)."""
    population, delay_s = 7, 3.0
    terms = [1.0]
    for k in range(1, population + 1):
        terms.append(terms[-1] * (population - k + 1) / delay_s)
    busy = 1.0 - terms[0] / sum(terms)
    rate, _ = closed_times([ClosedStage(ONE, 1, 1.0, 1.0)], population, delay_s)
    assert rate == pytest.approx(busy, rel=1e-9)


def test_two_equal_single_servers() -> None:
    """Two equal servers in a ring with N runs: N / (N + 1) of one server's rate."""
    stages = [ClosedStage(ONE, 1, 1.0, 1.0), ClosedStage(ONE, 1, 1.0, 1.0)]
    for population in (1, 5, 400):
        rate, times_s = closed_times(stages, population, 0.0)
        assert rate == pytest.approx(population / (population + 1), rel=1e-6)
        assert times_s[0] == pytest.approx(times_s[1], rel=1e-6)


def test_overlap_holds_more_than_one_place() -> None:
    """With half the LLM time overlapped and no limit on servers, a run takes half as long."""
    wide = Server((1.0, 4096.0), (1.0, 4096.0))
    stages = [ClosedStage(wide, 1, 1.0, 1.0), ClosedStage(wide, 1, 1.0, 1.0)]
    state = closed_batch(stages, 20, overlap=0.5, tool_time_s=1.0)
    assert state.run_s == pytest.approx(0.5 * 2.0 + 1.0, rel=1e-3)
    assert state.throughput_rps == pytest.approx(10.0, rel=1e-3)


def test_never_above_capacity() -> None:
    """However many runs are in flight, the slowest stage's capacity bounds the batch."""
    stages = [
        ClosedStage(ONE, 2, 4.0, 2.0),
        ClosedStage(Server((1.0, 64.0), (2.0, 50.0)), 1, 9.0, 9.0),
    ]
    rates = [closed_batch(stages, k, 0.8, 5.0).throughput_rps for k in (1, 4, 16, 64, 512)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5, rel=0.01)
    assert max(rates) <= 0.5 + 1e-6


def test_bad_populations_are_refused() -> None:
    """No run in flight, or more than can be computed, is refused by value."""
    with pytest.raises(ValueError, match="num_runs"):
        closed_batch([ClosedStage(ONE, 1, 1.0, 1.0)], 0, 1.0, 0.0)
    with pytest.raises(InputError, match="more than"):
        closed_times([ClosedStage(ONE, 1, 1.0, 1.0)], 10**6, 0.0)
