"""From raw calls to one operating point: the steady part of a closed or open run.

A closed run of c workers, each sending its next call when the last has ended, is only steady in
the middle. The window opens when every worker has ended its first call (by then the common start
has spread out) and closes at the end of a call such that it holds whole rounds of c calls; what
is in flight then is not counted. Throughput is calls per second of that window, latency the mean
of the same calls, so Little's law (throughput x latency = c) holds up to the calls cut by the two
edges. A point that misses it by more than 5% is not an operating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scepsy_hpc import metrics
from scepsy_hpc.bundles.bundle import Point

LITTLE_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Call:
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
    """The calls that count and the time they took."""

    calls: tuple[Call, ...]
    length_s: float

    @property
    def throughput_rps(self) -> float:
        """Calls per second."""
        return len(self.calls) / self.length_s

    @property
    def latency_mean_s(self) -> float:
        """Mean latency of the calls."""
        return sum(call.latency_s for call in self.calls) / len(self.calls)

    def little_error(self, concurrency: int) -> float:
        """``|throughput x latency / concurrency - 1|``."""
        return abs(self.throughput_rps * self.latency_mean_s / concurrency - 1.0)


def closed_window(calls: Sequence[Call], concurrency: int) -> Window | None:
    """The steady window of a closed run; None before it holds one round."""
    first_ends: dict[int, float] = {}
    for call in sorted(calls, key=lambda call: call.end_s):
        first_ends.setdefault(call.worker, call.end_s)
    if len(first_ends) < concurrency:
        return None
    opens_s = max(first_ends.values())
    later = sorted((c for c in calls if c.end_s > opens_s), key=lambda call: call.end_s)
    whole_rounds = len(later) // concurrency * concurrency
    if whole_rounds == 0:
        return None
    counted = later[:whole_rounds]
    return Window(tuple(counted), counted[-1].end_s - opens_s)


def open_window(calls: Sequence[Call], warmup_fraction: float = 0.1) -> Window | None:
    """The calls of an open run sent after its first part, from there to the last end."""
    by_start = sorted(calls, key=lambda call: call.start_s)
    counted = by_start[int(len(by_start) * warmup_fraction) :]
    if len(counted) < 2:
        return None
    return Window(tuple(counted), max(c.end_s for c in counted) - counted[0].start_s)


def closed_point(
    window: Window, concurrency: int, tp_degree: int, gpu_share_pct: int, link: str | None
) -> Point:
    """A closed operating point."""
    return _point(window, "closed", concurrency, None, tp_degree, gpu_share_pct, link)


def open_point(
    window: Window, arrival_rate_rps: float, tp_degree: int, gpu_share_pct: int, link: str | None
) -> Point:
    """An open operating point; saturated when the engine fell behind the arrivals by over 5%."""
    behind = window.throughput_rps < 0.95 * arrival_rate_rps
    return _point(window, "open", None, arrival_rate_rps, tp_degree, gpu_share_pct, link, behind)


def _point(
    window: Window,
    load: str,
    concurrency: int | None,
    arrival_rate_rps: float | None,
    tp_degree: int,
    gpu_share_pct: int,
    link: str | None,
    saturated: bool | None = None,
) -> Point:
    calls = window.calls
    latencies = [call.latency_s for call in calls]
    ttfts = [call.ttft_s for call in calls if call.ttft_s is not None]
    cached = [call.cached_tokens for call in calls if call.cached_tokens is not None]
    return Point(
        tp_degree=tp_degree,
        gpu_share_pct=gpu_share_pct,
        load=load,  # type: ignore[arg-type]
        throughput_rps=window.throughput_rps,
        latency_mean_s=window.latency_mean_s,
        input_tokens_mean=_mean([call.input_tokens for call in calls]) or 0.0,
        output_tokens_mean=_mean([call.output_tokens for call in calls]) or 0.0,
        arrival_rate_rps=arrival_rate_rps,
        concurrency=concurrency,
        link=link,  # type: ignore[arg-type]
        num_requests=len(calls),
        latency_p50_s=metrics.percentile(latencies, 50),
        latency_p95_s=metrics.percentile(latencies, 95),
        latency_p99_s=metrics.percentile(latencies, 99),
        ttft_mean_s=_mean(ttfts),
        ttft_p95_s=metrics.percentile(ttfts, 95),
        tpot_mean_s=_mean([tpot for call in calls if (tpot := call.tpot_s) is not None]),
        cached_tokens_mean=_mean(cached),
        saturated=saturated,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
