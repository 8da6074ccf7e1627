"""Operating points from raw calls: exact on timelines made by hand."""

from __future__ import annotations

import random

import pytest

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.profiling.steady import (
    TimedCall,
    closed_point,
    closed_window,
    open_point,
    open_window,
)

ALONE = Parallelism("h100_sxm", None, 1, 100)


def call(worker: int, start_s: float, end_s: float, ttft_s: float | None = None) -> TimedCall:
    return TimedCall(worker, start_s, end_s, input_tokens=10, output_tokens=5, ttft_s=ttft_s)


def closed_run(latencies: list[list[float]]) -> list[TimedCall]:
    """Calls of workers that all start at 0 and send the next when the last has ended."""
    calls = []
    for worker, own in enumerate(latencies):
        now_s = 0.0
        for latency_s in own:
            calls.append(call(worker, now_s, now_s + latency_s))
            now_s += latency_s
    return calls


def test_lockstep_rounds_are_counted_whole():
    """Two workers in step: the first round is dropped, the others give throughput and latency."""
    window = closed_window(closed_run([[2.0] * 4, [2.0] * 4]), concurrency=2)
    assert window is not None
    assert len(window.calls) == 6
    assert window.length_s == 6.0
    assert window.throughput_rps == 1.0
    assert window.latency_mean_s == 2.0
    assert window.in_flight == 2.0


def test_first_calls_do_not_count():
    """A slow first call changes nothing: each worker's window opens when its own has ended."""
    window = closed_window(closed_run([[9.0, 1.0, 1.0, 1.0, 1.0], [10.0, 1.0, 1.0]]), concurrency=2)
    assert window is not None
    assert len(window.calls) == 6
    assert window.throughput_rps == 2.0
    assert window.latency_mean_s == 1.0


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_little_holds_for_random_latencies(concurrency):
    """Throughput x latency is the mean number in flight, whatever the latencies."""
    chance = random.Random(7)
    rows = [[chance.uniform(0.5, 1.5) for _ in range(20)] for _ in range(concurrency)]
    window = closed_window(closed_run(rows), concurrency)
    assert window is not None
    in_flight = window.throughput_rps * window.latency_mean_s
    assert in_flight == pytest.approx(window.in_flight) == pytest.approx(concurrency)


def test_a_slow_client_is_seen():
    """Pauses between a worker's calls show as fewer calls in flight, and the point says so."""
    calls = [call(0, i * 2.0, i * 2.0 + 1.5) for i in range(5)]
    window = closed_window(calls, concurrency=1)
    assert window is not None
    point = closed_point(window, 1, ALONE)
    assert point.concurrency == pytest.approx(0.75)
    assert point.throughput_rps * point.latency_mean_s == pytest.approx(0.75)


def test_no_window_before_a_round():
    """Until every worker has ended a first call, and a round after it, there is nothing."""
    assert closed_window(closed_run([[1.0, 1.0]]), concurrency=2) is None
    assert closed_window(closed_run([[1.0], [1.0]]), concurrency=2) is None


def test_point_holds_the_percentiles_and_token_times():
    """TTFT, TPOT (without the first token), tokens and percentiles follow from the calls."""
    calls = [call(0, 0.0, 1.0, 0.2)] + [call(0, i, i + 1.0, 0.2) for i in range(1, 4)]
    window = closed_window(calls, concurrency=1)
    assert window is not None
    point = closed_point(window, 1, Parallelism("h100_sxm", "nvlink", 2, 100))
    assert point.ttft_mean_s == pytest.approx(0.2)
    assert point.tpot_mean_s == pytest.approx(0.8 / 4)
    assert (point.input_tokens_mean, point.output_tokens_mean) == (10.0, 5.0)
    assert point.latency_p95_s == pytest.approx(1.0)
    assert point.cached_tokens_mean is None
    assert (point.num_requests, point.link, point.concurrency) == (3, "nvlink", 1)


@pytest.mark.parametrize(("latency_s", "saturated"), [(0.1, False), (60.0, True)])
def test_open_run_behind_its_arrivals_is_saturated(latency_s, saturated):
    """An open point whose calls end later than they come is saturated, otherwise it is not."""
    calls = [call(i, float(i), i + latency_s) for i in range(100)]
    window = open_window(calls)
    assert window is not None
    point = open_point(window, 1.0, ALONE)
    assert len(window.calls) == 90
    assert point.saturated is saturated
    assert point.latency_mean_s == pytest.approx(latency_s)
