"""One replica as a load-dependent server: from closed points to Poisson and burst arrivals.

Source: the contract, "From closed points to open arrivals". With X(k) the throughput at k calls
in flight and batches of b calls arriving at a total rate of L calls per second, the stationary
weights obey X(k) w_k = (L / b) (w_{k-b} + ... + w_{k-1}), and the mean latency is E[k] / L. For
b = 1 that is exact for M/M/c.

X is flat after its last point, so the tail beyond it is summed in closed form, not cut off:
summing the balance equations over the tail gives its mass, summing k times them its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.metrics import Floats, Ints

_HUGE = 1e200
_IDLE_SHARE = 1e-9
"""A load below this part of the limit counts as this part: the latency of an idle replica."""
_NEGLIGIBLE = 1e-19
_MAX_STATES = 200_000
_CHECK_EVERY = 16


@dataclass(frozen=True, slots=True)
class Server:
    """Throughput X(k) of one replica at k calls in flight, by its closed points.

    Linear between points, flat after the last; below the first the latency is held flat, which
    is a line through the origin. ``concurrency`` ascends strictly; both are positive.
    """

    concurrency: tuple[float, ...]
    throughput_rps: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = (self.concurrency, self.throughput_rps)
        if not self.concurrency or len(self.concurrency) != len(self.throughput_rps):
            raise ValueError(f"a server needs as many concurrencies as throughputs, got {pairs}")
        if min(map(min, pairs)) <= 0 or not np.all(np.isfinite(pairs)):
            raise ValueError(f"concurrency and throughput must be above 0 and finite, got {pairs}")
        if np.any(np.diff(self.concurrency) <= 0):
            raise ValueError(f"concurrency ({self.concurrency}) must ascend strictly")

    @property
    def capacity_rps(self) -> float:
        """The largest measured throughput."""
        return max(self.throughput_rps)

    @property
    def limit_rps(self) -> float:
        """Arrivals at or above this pile up without end: the throughput after the last point."""
        return self.throughput_rps[-1]

    def rate_rps(self, in_flight: float | Floats) -> Floats:
        """X(k) for any k >= 0, whole or not."""
        return np.asarray(
            np.interp(in_flight, (0.0, *self.concurrency), (0.0, *self.throughput_rps))
        )

    def closed(self, in_flight: float) -> tuple[float, float]:
        """Throughput (calls/s) and latency (s) with a fixed number of calls in flight."""
        rate_rps = float(self.rate_rps(max(in_flight, 1e-9)))
        return rate_rps, max(in_flight, 1e-9) / rate_rps

    def call_states(self, arrivals_rps: float, burst: int = 1) -> tuple[Floats, Floats]:
        """States k and the part of all calls that end in each: a call's latency there is k / X(k).

        The weights sum to 1 and the mean of k / X(k) under them is the mean latency; a tail below
        1e-7 is cut off. Raises ValueError where the replica cannot keep up.
        """
        load = max(float(arrivals_rps), _IDLE_SHARE * self.limit_rps)
        if load >= self.limit_rps * (1.0 - 1e-9):
            raise ValueError(
                f"arrivals_rps ({arrivals_rps:g}) must be below the limit ({self.limit_rps:g})"
            )
        weights = _chain(self, load, burst)
        states = np.arange(1, len(weights))
        ending = weights[1:] * self.rate_rps(states.astype(np.float64))
        return states.astype(np.float64), ending / ending.sum()


def mean_latencies_s(
    servers: Sequence[Server], which: Ints, arrivals_rps: Floats, bursts: Ints
) -> Floats:
    """Mean latencies (s) of many (server, load, burst) at once; infinite where overloaded.

    ``which`` indexes ``servers``; ``which``, ``arrivals_rps`` and ``bursts`` have one length, and
    so has the answer. A thousand servers' loads cost little more than one's.
    """
    limits = np.array([s.limit_rps for s in servers])[which]
    loads = np.maximum(arrivals_rps, _IDLE_SHARE * limits)
    # So close to the limit the mean is unbounded in practice and loses its digits.
    stable = loads < limits * (1.0 - 1e-9)
    latency_s = np.full(len(loads), np.inf)
    tables = _Tables.of(servers)
    for burst in np.unique(bursts[stable]):
        rows = np.flatnonzero(stable & (bursts == burst))
        latency_s[rows] = _same_burst(tables, which[rows], loads[rows], int(burst))
    return latency_s


@dataclass(frozen=True, slots=True)
class _Tables:
    """X(k) of several servers as one table; shape of ``rates`` and ``floor``: (states, servers)."""

    rates: Floats
    floor: Floats  # the smallest X(j) over j >= k
    last: Ints  # X is flat from this state on

    @classmethod
    def of(cls, servers: Sequence[Server]) -> _Tables:
        last = np.array([max(int(np.ceil(s.concurrency[-1])), 1) for s in servers])
        states = np.arange(last.max() + _CHECK_EVERY + 1, dtype=np.float64)
        rates = np.stack([s.rate_rps(states) for s in servers], axis=1)
        floor = np.minimum.accumulate(rates[::-1], axis=0)[::-1]
        return cls(rates, floor, last)


def _same_burst(tables: _Tables, which: Ints, loads: Floats, burst: int) -> Floats:
    """March the balance equations up the states; a lane leaves once only its tail is left."""
    latency_s = np.full(len(loads), np.nan)
    lanes = np.arange(len(loads))
    limits = tables.rates[-1, which]
    recent = np.zeros((burst, len(loads)))  # state k stands in row k mod burst
    recent[0] = 1.0
    mass, mean, window = np.ones(len(loads)), np.zeros(len(loads)), np.ones(len(loads))
    feed = loads / burst
    for k in range(1, len(tables.rates)):
        weight = feed * window / tables.rates[k, which]
        mass += weight
        mean += k * weight
        window += weight - recent[k % burst]
        np.maximum(window, 0.0, out=window)
        recent[k % burst] = weight
        if k % _CHECK_EVERY and k + 1 < len(tables.rates):
            continue
        ended = (k >= tables.last[which]) | (
            (window < _NEGLIGIBLE * mass) & (loads < tables.floor[k, which])
        )
        if np.any(ended):
            near = np.stack([recent[(k - d) % burst, ended] for d in range(min(burst, k + 1))])
            latency_s[lanes[ended]] = _close(
                k, burst, loads[ended], limits[ended], mass[ended], mean[ended], near
            )
            keep = ~ended
            lanes, which, loads, limits, feed = (
                a[keep] for a in (lanes, which, loads, limits, feed)
            )
            mass, mean, window, recent = mass[keep], mean[keep], window[keep], recent[:, keep]
            if not len(lanes):
                break
        scale = np.where(window > _HUGE, 1.0 / _HUGE, 1.0)
        mass, mean, window, recent = mass * scale, mean * scale, window * scale, recent * scale
    return latency_s


def _close(
    last: int, burst: int, loads: Floats, limits: Floats, mass: Floats, mean: Floats, near: Floats
) -> Floats:
    """Add the tail beyond state ``last`` in closed form and return the mean latency.

    ``near[d]`` is the weight of state last - d. An arrival of i of a burst's calls jumps over
    ``last`` from there for i = d + 1 .. burst, and lands on last - d + i.
    """
    back = np.arange(len(near), dtype=np.float64)[:, None]
    spare = limits - loads
    jumps = burst - back
    tail_mass = loads / burst * (jumps * near).sum(axis=0) / spare
    landing = jumps * (last - back) + (burst * (burst + 1) - back * (back + 1)) / 2.0
    inflow = loads / burst * (landing * near).sum(axis=0)
    tail_mean = (inflow + loads * (burst + 1) / 2.0 * tail_mass) / spare
    return np.asarray((mean + tail_mean) / (mass + tail_mass) / loads)


def _chain(server: Server, load: float, burst: int) -> Floats:
    """Weights of states 0, 1, ... until what is left out cannot matter; not normalised."""
    last = max(int(np.ceil(server.concurrency[-1])), 1)
    rates = server.rate_rps(np.arange(last + 1, dtype=np.float64))
    found = np.zeros(last + 1)
    found[0] = 1.0
    for k in range(1, last + 1):
        found[k] = load / burst * found[max(k - burst, 0) : k].sum() / rates[k]
        if found[k] > _HUGE:
            found[: k + 1] /= _HUGE
    return _with_tail(server, found, load, burst)


def _with_tail(server: Server, weights: Floats, load: float, burst: int) -> Floats:
    """Append states after the last point until what is left out cannot matter."""
    found = list(weights / weights.max())
    total = sum(found)
    ratio = load / (burst * server.limit_rps)
    window = sum(found[-burst:])
    while window > 1e-7 * (1.0 - load / server.limit_rps) * total and len(found) < _MAX_STATES:
        found.append(ratio * window)
        total += found[-1]
        window = max(window + found[-1] - (found[-burst - 1] if len(found) > burst else 0.0), 0.0)
    return np.asarray(found)
