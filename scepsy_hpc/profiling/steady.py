"""From raw calls to one operating point: the steady part of a closed or open run.

A closed run of c workers, each sending its next call when the last has ended, is only steady in
the middle: the window of a worker opens when its first call has ended (by then the common start
has spread out) and closes with its last call that ended while all were still at work. So it
holds whole calls only, and Little's law holds by construction: throughput x latency is the mean
number of calls in flight, which is c less the moments that the client took between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scepsy_hpc import metrics
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.points import Point

CLIENT_TOLERANCE = 0.3
"""A client that keeps less than 70% of the wanted calls in flight measures itself."""

NEGLIGIBLE_GAP = 0.01

WARM_UP = 0.1
"""This first part of an open run's calls is not counted."""


@dataclass(frozen=True, slots=True)
class TimedCall:
    """One answered call; times in seconds of one monotonic clock."""

    worker: int
    start_s: float
    end_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    cached_tokens: int | None = None

    @property
    def latency_s(self) -> float:
        """From sending to the last byte."""
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.ttft_s is None:
            return None
        return metrics.tpot_s(self.latency_s, self.ttft_s, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Window:
    """The calls that count, the time they took, and how many were in flight on average."""

    calls: tuple[TimedCall, ...]
    length_s: float
    in_flight: float

    @property
    def throughput_rps(self) -> float:
        """Calls per second."""
        return len(self.calls) / self.length_s

    @property
    def latency_mean_s(self) -> float:
        """Mean latency of the calls."""
        return sum(call.latency_s for call in self.calls) / len(self.calls)


def closed_window(calls: Sequence[TimedCall], concurrency: int) -> Window | None:
    """The steady window of a closed run; None before each worker has a whole call in it."""
    by_worker: dict[int, list[TimedCall]] = {}
    for call in sorted(calls, key=lambda call: call.end_s):
        by_worker.setdefault(call.worker, []).append(call)
    if len(by_worker) < concurrency or any(len(own) < 2 for own in by_worker.values()):
        return None
    counted = [call for own in by_worker.values() for call in own[1:]]
    worked_s = sum(own[-1].end_s - own[0].end_s for own in by_worker.values())
    in_flight = concurrency * sum(call.latency_s for call in counted) / worked_s
    return Window(tuple(counted), worked_s / concurrency, in_flight)


def open_window(calls: Sequence[TimedCall]) -> Window | None:
    """The calls of an open run sent after its first part, from there to the last end."""
    by_start = sorted(calls, key=lambda call: call.start_s)
    counted = by_start[int(len(by_start) * WARM_UP) :]
    if len(counted) < 2:
        return None
    length_s = max(c.end_s for c in counted) - counted[0].start_s
    in_flight = sum(call.latency_s for call in counted) / length_s
    return Window(tuple(counted), length_s, in_flight)


def closed_point(window: Window, concurrency: int, at: Parallelism) -> Point:
    """A closed operating point, at the calls in flight that there really were."""
    missed = abs(window.in_flight / concurrency - 1.0)
    held = float(concurrency) if missed <= NEGLIGIBLE_GAP else round(window.in_flight, 4)
    return _point(window, at, load="closed", concurrency=held)


def open_point(window: Window, arrival_rate_rps: float, at: Parallelism) -> Point:
    """An open operating point; saturated when the engine fell behind the arrivals by over 5%."""
    behind = window.throughput_rps < 0.95 * arrival_rate_rps
    return _point(window, at, load="open", arrival_rate_rps=arrival_rate_rps, saturated=behind)


def _point(window: Window, at: Parallelism, **load: Any) -> Point:
    calls = window.calls
    latencies = [call.latency_s for call in calls]
    ttfts = [call.ttft_s for call in calls if call.ttft_s is not None]
    cached = [call.cached_tokens for call in calls if call.cached_tokens is not None]
    return Point(
        tp_degree=at.tp_degree,
        gpu_share_pct=at.gpu_share_pct,
        link=at.link,
        throughput_rps=window.throughput_rps,
        latency_mean_s=window.latency_mean_s,
        input_tokens_mean=_mean([call.input_tokens for call in calls]) or 0.0,
        output_tokens_mean=_mean([call.output_tokens for call in calls]) or 0.0,
        num_requests=len(calls),
        latency_p50_s=metrics.percentile(latencies, 50),
        latency_p95_s=metrics.percentile(latencies, 95),
        latency_p99_s=metrics.percentile(latencies, 99),
        ttft_mean_s=_mean(ttfts),
        ttft_p95_s=metrics.percentile(ttfts, 95),
        tpot_mean_s=_mean([tpot for call in calls if (tpot := call.tpot_s) is not None]),
        cached_tokens_mean=_mean(cached),
        **load,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
