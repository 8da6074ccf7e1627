"""Points of one shape as a sweep: throughput by calls in flight, several at one averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scepsy_hpc.bundles.engine_fit import in_flight_of
from scepsy_hpc.bundles.engine_model import is_evidence
from scepsy_hpc.bundles.shapes import num_calls
from scepsy_hpc.formats.points import Point

ClosedPoints = dict[float, tuple[float, float]]
"""Calls in flight to (throughput in rps, TTFT in s; NaN: unknown), ascending."""

_SAME_STATE = 0.02
"""Open points within this part of another point's calls in flight are of the same state."""


def sweep_of(points: Sequence[Point]) -> ClosedPoints:
    """All points that say how fast the engine is, as under a closed load.

    An open one stands where its calls find the engine (``in_flight_of``). At one state latency is
    the mean over all calls, and throughput what these calls take in all.
    """
    return {in_flight: _mean(in_flight, same) for in_flight, same in _states(points)}


def measured_parts(points: Sequence[Point]) -> dict[float, float]:
    """What was measured at each state of ``sweep_of``, as a part of the throughput there.

    Below 1 for open points: a call that comes finds the engine busier than it is in the mean, and
    what it does then is more than arrived.
    """
    found = {}
    for in_flight, same in _states(points):
        most_rps = max(p.throughput_rps for p in same)
        found[in_flight] = min(most_rps / _mean(in_flight, same)[0], 1.0)
    return found


def _states(points: Sequence[Point]) -> list[tuple[float, list[Point]]]:
    """Points by the calls in flight of their state, ascending."""
    states: list[tuple[float, list[Point]]] = []
    for point in sorted((p for p in points if is_evidence(p)), key=in_flight_of):
        in_flight = in_flight_of(point)
        near = _SAME_STATE if point.load == "open" or (states and _is_open(states[-1][1])) else 0.0
        if states and in_flight <= states[-1][0] * (1.0 + near):
            states[-1][1].append(point)
        else:
            states.append((in_flight, [point]))
    return states


def ceiling_of(points: Sequence[Point]) -> float | None:
    """The largest throughput of saturated open points: capacity, as measured; None without any."""
    full = [p.throughput_rps for p in points if p.load == "open" and p.saturated]
    return max(full, default=None)


def _is_open(points: Sequence[Point]) -> bool:
    return any(p.load == "open" for p in points)


def _rate(point: Point, in_flight: float) -> float:
    return point.throughput_rps if point.load == "closed" else in_flight / point.latency_mean_s


def _mean(in_flight: float, points: Sequence[Point]) -> tuple[float, float]:
    calls = [num_calls(p) for p in points]
    took = sum(n / _rate(p, in_flight) for n, p in zip(calls, points, strict=True))
    ttft_s = sum(n * _ttft_s(p) for n, p in zip(calls, points, strict=True))
    return sum(calls) / took, ttft_s / sum(calls)


def _ttft_s(point: Point) -> float:
    if point.ttft_mean_s is None and point.output_tokens_mean <= 1:
        return point.latency_mean_s
    return math.nan if point.ttft_mean_s is None else point.ttft_mean_s
