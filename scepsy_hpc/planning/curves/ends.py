"""Where a curve ends: at batch or KV cache, at a measured capacity, or at its last point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.curves.sources import Making
from scepsy_hpc.planning.curves.sweep import ClosedPoints, ceiling_of, measured_parts

_STILL_RISING = 1.02
_EXTRAPOLATED = 1.1
"""Capacity above the measured throughput by more than this factor is worth a flag."""


def never_slower(closed: ClosedPoints, last: float) -> ClosedPoints:
    """Past the last point more calls in flight never do less: the others would wait."""
    found: ClosedPoints = {}
    best = closed[last][0]
    for k, (rate, ttft_s) in closed.items():
        if k > last:
            best = max(best, rate)
            rate = best
        found[k] = (rate, ttft_s)
    return found


def ended(
    making: Making, closed: ClosedPoints, held: Sequence[float], stated_end: float = math.inf
) -> ClosedPoints:
    """The curve cut at what memory and batch hold, at a measured capacity, and flagged for it."""
    room = making.room if making.room is not None else math.inf
    end, last = min(room, stated_end), max(closed)
    if end < last:
        uncut, closed = closed, _cut(closed, end)
        what = "kv_limited: the KV cache" if room <= stated_end else "batch_limited: the batch"
        beyond = [k for k in held if k > end] if making.own else []
        said = _left_out(uncut, beyond, closed[end][0]) if beyond else ""
        making.flags.append(f"{what} holds {end:.0f} calls of this length{said}")
    measured = {
        k: closed[k][0] * part
        for k, part in measured_parts(making.source.shape.points).items()
        if k in held and k in closed
    }
    ceiling = ceiling_of(making.source.shape.points) if making.own else None
    if ceiling is not None:
        return _at_ceiling(closed, measured, ceiling)
    best = max(measured.values(), default=0.0)
    capacity = list(closed.values())[-1][0]
    if best and capacity > _EXTRAPOLATED * best:
        by_model = making.passed or not making.own
        said = "the fitted engine model's" if by_model else "what an arrival finds (open points)"
        making.flags.append(
            f"extrapolated: capacity, {capacity / best:.1f} times the most that was measured (at "
            f"{max(measured):.3g} calls in flight), is {said} at {max(closed):.0f}"
        )
    elif making.own and max(closed) <= max(held):
        _flag_unknown_end(making, closed, held)
    return closed


def _left_out(uncut: ClosedPoints, beyond: Sequence[float], capacity: float) -> str:
    """What is said of points past the end: calls in them waited for a seat."""
    most = max(uncut[k][0] for k in beyond)
    said = f"; points past it, up to {max(beyond):g} calls in flight, are left out of capacity"
    if most > _EXTRAPOLATED * capacity:
        said += (
            f", though they did {most / capacity:.1f} times as much: was the limit another when "
            "they were measured?"
        )
    return said


def _flag_unknown_end(making: Making, closed: ClosedPoints, held: Sequence[float]) -> None:
    rates = [closed[k][0] for k in held if k in closed]
    rising = len(rates) <= 1 or (rates[-1] > _STILL_RISING * max(rates[:-1]))
    if rising and not any(p.saturated for p in making.source.shape.points):
        making.flags.append(
            f"capacity_lower_bound: throughput still rises at {max(closed):g} calls in flight"
        )
    if making.batch is None and making.passed:
        header = making.evidence.merged.header
        making.flags.append(
            f"batch_limit_unknown: neither max_num_seqs nor a recorded default of {header.engine} "
            f"{header.engine_version}; capacity counted up to the last point"
        )


def _cut(closed: ClosedPoints, end: float) -> ClosedPoints:
    server = Server(tuple(closed), tuple(x for x, _ in closed.values()))
    ttft_s = float(np.interp(end, list(closed), [t for _, t in closed.values()]))
    kept = {k: v for k, v in closed.items() if k < end}
    return {**kept, end: (float(server.rate_rps(end)), ttft_s)}


def _at_ceiling(
    closed: ClosedPoints, measured: Mapping[float, float], ceiling: float
) -> ClosedPoints:
    """The curve held to the capacity of a saturated open point, past the last of the others.

    ``measured``: throughput of those, which ends no lower than the last of them.
    """
    last = max(measured, default=max(closed))
    ceiling = max(ceiling, measured.get(last, closed[last][0]))
    is_open = measured.get(last, closed[last][0]) < closed[last][0]
    found = {
        k: (min(rate, ceiling) if k > last or (k == last and is_open) else rate, ttft_s)
        for k, (rate, ttft_s) in closed.items()
    }
    end, (rate, _) = list(found.items())[-1]
    if rate < ceiling:
        # Where it is reached nobody measured; in proportion, and not within the points.
        found[end * max(ceiling / rate, 1.0 + 1e-6) ** 2] = (ceiling, math.nan)
    return found
