"""A group of replicas behind the least-in-flight rule as one birth-death chain.

The replicas are kept balanced, so with k calls in flight the group does r x(k / r) calls per
second, x being X linear between whole numbers, less what imbalance costs where X bends. Calls go
in lots of s that begin and end together (``bursts``): at j lots the rate is r x(s j / r) / s, the
weights are w_j = prod (load / rate), and L = E[j] s / load. For one replica without bursts that is
exact whatever the sizes.

The chain may have a million states. The first ``_HEAD`` are summed one by one; beyond them the sum
of log rates is an integral with its end corrections (Euler-Maclaurin), known at whole numbers from
tables, and at most ``_GRID`` states are looked at, from where the weights begin to matter to where
they end; past the last point, where X is flat, the tail is a geometric series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.curves.queueing import Server

_IDLE_SHARE = 1e-9
"""A load below this part of the limit counts as this part: the latency of an idle group."""
_HEAD = 64
_GRID = 128
_COARSE = 32
_CUT = 30.0  # weights below exp(-30) of the largest are left out
_LANES_AT_ONCE = 4096
_GAUSS = ((0.5 - np.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + np.sqrt(0.15), 5 / 18))


@dataclass(frozen=True, slots=True)
class Lanes:
    """Many groups at once; all arrays have one length. ``which`` indexes the servers.

    ``loads_rps`` are those of whole groups. ``together`` and ``uneven``: see ``bursts``.
    """

    which: Ints
    num_replicas: Floats
    loads_rps: Floats
    together: Floats
    uneven: Floats

    def keep(self, rows: Ints | slice) -> Lanes:
        """Some of them."""
        return Lanes(*(getattr(self, name)[rows] for name in self.__slots__))


def group_latencies_s(servers: Sequence[Server], lanes: Lanes) -> Floats:
    """Mean latency of a call (s) in each lane; infinite where it cannot keep up."""
    tables = _tables_of(tuple(servers))
    limits = tables.limit_rps[lanes.which] * lanes.num_replicas
    found = np.full(len(limits), np.inf)
    # So close to the limit the mean is unbounded in practice and loses its digits.
    stable = np.flatnonzero(lanes.loads_rps < limits * (1.0 - 1e-9))
    for first in range(0, len(stable), _LANES_AT_ONCE):
        rows = stable[first : first + _LANES_AT_ONCE]
        some = _Chains.of(tables, lanes.keep(rows))
        lots, weights, tail_mass, tail_lots = some.states()
        mass = weights.sum(axis=1) + tail_mass
        in_flight = some.lanes.together * ((weights * lots).sum(axis=1) + tail_lots) / mass
        found[rows] = in_flight / (some.offered * some.lanes.num_replicas)
    return found


def group_states(server: Server, lanes: Lanes) -> tuple[Floats, Floats, Floats]:
    """Of one group (one lane): calls in flight a replica, part of all calls that end there, rate.

    The parts sum to 1, and the mean of state / rate under them is the mean latency. Raises
    ValueError where the group cannot keep up.
    """
    tables = _tables_of((server,))
    load, limit = float(lanes.loads_rps[0]), float(tables.limit_rps[0] * lanes.num_replicas[0])
    if load >= limit * (1.0 - 1e-9):
        raise ValueError(f"arrivals_rps ({load:g}) must be below the limit ({limit:g})")
    chains = _Chains.of(tables, lanes)
    all_lots, all_weights, tail_mass, _ = chains.states()
    lots, weights = all_lots[0], all_weights[0]
    if tail_mass[0] > 0.0:
        # The geometric tail in pieces of equal weight, each at its mean.
        ratio = float(chains.offered[0] * lanes.num_replicas[0]) / limit
        edges = np.linspace(0.0, 1.0, _GRID + 1)[:-1]
        middle = np.log1p(-(edges + 0.5 / _GRID)) / np.log(ratio)
        mean = 1.0 / (1.0 - ratio)
        steps = np.maximum(middle + (mean - middle.mean()), 1.0)
        lots = np.concatenate([lots, max(float(chains.end[0]), _HEAD) + steps])
        weights = np.concatenate([weights, np.full(_GRID, tail_mass[0] / _GRID)])
    keep = (weights > 0.0) & (lots > 0.0)
    calls = lots[keep] / chains.per_call[0]
    rate = chains.rates(np.asarray(calls)[None, :])[0]
    parts = weights[keep] * rate
    return calls, parts / parts.sum(), rate


@dataclass(frozen=True, slots=True)
class _Tables:
    """X and its integrals at whole numbers of calls, shape (states, servers), flat at the end.

    ``bend`` is X(n+1) - 2 X(n) + X(n-1). ``log``, ``first``, ``second``: integrals from 0 of log X,
    bend / X, and its square. ``floor`` and ``ceiling``: smallest X from n on, largest up to n.
    """

    rates: Floats
    bend: Floats
    log: Floats
    first: Floats
    second: Floats
    floor: Floats
    ceiling: Floats
    last: Ints

    @property
    def limit_rps(self) -> Floats:
        """Throughput after the last point of each server."""
        return np.asarray(self.rates[-1])

    @classmethod
    def of(cls, servers: Sequence[Server]) -> _Tables:
        last = np.array([max(int(np.ceil(s.concurrency[-1])), 1) + 1 for s in servers])
        whole = np.arange(last.max() + 2, dtype=np.float64)
        rates = np.stack([s.rate_rps(whole) for s in servers], axis=1)
        bend = np.zeros_like(rates)
        bend[1:-1] = rates[2:] - 2.0 * rates[1:-1] + rates[:-2]
        sums = [np.zeros_like(rates) for _ in range(3)]
        low, high, low_bend, high_bend = rates[1:-1], rates[2:], bend[1:-1], bend[2:]
        for at, weight in _GAUSS:
            x = low + at * (high - low)
            u = (low_bend + at * (high_bend - low_bend)) / x
            for total, value in zip(sums, (np.log(x), u, u * u), strict=True):
                total[2:] += weight * value
        u = bend[1] / rates[1]
        sums[0][1], sums[1][1], sums[2][1] = np.log(rates[1]) - 1.0, u, u * u
        log, first, second = (np.cumsum(total, axis=0) for total in sums)
        floor = np.minimum.accumulate(rates[::-1], axis=0)[::-1]
        return cls(
            rates, bend, log, first, second, floor, np.maximum.accumulate(rates, axis=0), last
        )


@lru_cache(maxsize=128)
def _tables_of(servers: tuple[Server, ...]) -> _Tables:
    """Kept: a search asks the same servers at one load after another."""
    return _Tables.of(servers)


@dataclass(frozen=True, slots=True)
class _Chains:
    """The chains of some lanes. ``per_call``: lots per call of one replica, r / s.

    ``offered`` is the load of one replica in calls per second, ``end`` the number of lots from
    which on X is flat.
    """

    tables: _Tables
    lanes: Lanes
    per_call: Floats
    offered: Floats
    end: Floats

    @classmethod
    def of(cls, tables: _Tables, lanes: Lanes) -> _Chains:
        """Stable lanes only."""
        limits = tables.limit_rps[lanes.which]
        offered = np.maximum(lanes.loads_rps / lanes.num_replicas, _IDLE_SHARE * limits)
        per_call = lanes.num_replicas / lanes.together
        return cls(tables, lanes, per_call, offered, np.ceil(per_call * tables.last[lanes.which]))

    def states(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Shape (lanes, states): lots in flight and weights; then mass and lots of the tail."""
        lots = np.arange(_HEAD + 1, dtype=np.float64)
        cells = self._cells(lots[None, 1:] / self.per_call[:, None])
        logs = np.zeros((len(self.offered), _HEAD + 1))
        np.cumsum(np.log(self.offered[:, None]) - np.log(cells.rate), axis=1, out=logs[:, 1:])
        first, last, has_tail = self._range()
        first, last = self._narrowed(first, last)
        number = np.minimum(last - first, _GRID)  # of steps
        step = (last - first) / np.maximum(number, 1.0)
        place = np.arange(_GRID + 1)[None, :]
        body = first[:, None] + step[:, None] * np.minimum(place, number[:, None])
        body_logs = logs[:, -1:] + self._logs_beyond_head(body)
        # What each stands for, so that sums over steps are sums over states (Euler-Maclaurin).
        counts = np.where(place < number[:, None], step[:, None], 0.0)
        is_end = (place == 0) | (place == number[:, None])
        counts = np.where(is_end, 0.5 * step[:, None] + 0.5, counts)
        counts[:, 0] -= first == _HEAD  # the head has it already
        counts[number < 1] = 0.0
        every = np.concatenate([logs, body_logs], axis=1)
        peak = every.max(axis=1, keepdims=True)
        every = np.exp(every - peak)
        ratio = self.offered / self.tables.limit_rps[self.lanes.which]
        end_weight = np.where(self.end <= _HEAD, every[:, _HEAD], every[:, -1])
        mass = np.where(has_tail, end_weight * ratio / (1.0 - ratio), 0.0)
        every[:, _HEAD + 1 :] *= counts
        found = np.concatenate([np.broadcast_to(lots, logs.shape), body], axis=1)
        end = np.maximum(self.end, _HEAD)
        return found, every, mass, mass * (end + 1.0 / (1.0 - ratio))

    def rates(self, calls: Floats) -> Floats:
        """Calls per second of a replica at so many calls in flight each, shape (lanes, any)."""
        return self._cells(calls).rate

    def _cells(self, calls: Floats) -> _Cells:
        """The pieces of the smoothed X that so many calls lie in, shape (lanes, any)."""
        which, uneven = self.lanes.which[:, None], self.lanes.uneven[:, None]
        cell = np.minimum(calls.astype(np.int64), len(self.tables.rates) - 2)
        ends = [
            self.tables.rates[at, which] + uneven * self.tables.bend[at, which]
            for at in (cell, cell + 1)
        ]
        part = np.minimum(calls - cell, 1.0)
        return _Cells(cell, part, calls - cell - part, ends[0], ends[1] - ends[0])

    def _logs_beyond_head(self, lots: Floats) -> Floats:
        """Log weight of states over that of the last of the head."""
        scale, start = self.per_call[:, None], float(_HEAD)
        here, there = lots / scale, np.broadcast_to(start / scale, (len(scale), 1))
        cells, head = self._cells(here), self._cells(there)
        found = (lots - start) * np.log(self.offered)[:, None]
        found -= scale * (self._integral(cells) - self._integral(head))
        found -= 0.5 * (np.log(cells.rate) - np.log(head.rate))
        found -= (cells.slope / cells.rate - head.slope / head.rate) / (12.0 * scale)
        return np.asarray(found)

    def _integral(self, cells: _Cells) -> Floats:
        """Integral of the log of the smoothed X from 0."""
        which, uneven = self.lanes.which[:, None], self.lanes.uneven[:, None]
        t = self.tables
        before = t.log[cells.cell, which] + uneven * (
            t.first[cells.cell, which] - 0.5 * uneven * t.second[cells.cell, which]
        )
        low, rate, part = cells.low, cells.rate, cells.part
        # The log of a line: closed form where it rises enough, else its middle.
        steep = np.abs(rate - low) > 1e-3 * rate
        slope = np.where(steep, cells.slope, 1.0)
        of_low = np.where(low > 0.0, low * np.log(np.where(low > 0.0, low, 1.0)), 0.0)
        line = (rate * np.log(rate) - of_low) / slope - part
        piece = np.where(steep, line, part * np.log(0.5 * (low + rate)))
        return np.asarray(before + piece + cells.beyond * np.log(rate))

    def _narrowed(self, first: Floats, last: Floats) -> tuple[Floats, Floats]:
        """The range on a finer scale than whole calls of each of a thousand replicas."""
        wide = np.flatnonzero(last - first > 2 * _GRID)
        some = _Chains(
            self.tables,
            self.lanes.keep(wide),
            *(x[wide] for x in (self.per_call, self.offered, self.end)),
        )
        step = (last - first)[wide, None] / _COARSE
        logs = some._logs_beyond_head(first[wide, None] + step * np.arange(_COARSE + 1))
        matters = logs > logs.max(axis=1, keepdims=True) - _CUT
        low = np.maximum(matters.argmax(axis=1) - 1, 0)
        high = np.minimum(_COARSE + 1 - matters[:, ::-1].argmax(axis=1), _COARSE)
        first, last = first.copy(), last.copy()
        start = first[wide]
        first[wide] = np.floor(start + step[:, 0] * low)
        last[wide] = np.where(high == _COARSE, last[wide], np.ceil(start + step[:, 0] * high))
        return first, last

    def _range(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """First and last lots beyond the head that matter, and whether the tail after X does."""
        t, which, lanes = self.tables, self.lanes.which, np.arange(len(self.offered))
        above = np.empty(len(lanes), dtype=np.int64)
        below = np.empty(len(lanes), dtype=np.int64)
        for server in np.unique(which):
            mine = which == server
            # The last and the first place where X crosses the load.
            above[mine] = np.searchsorted(t.floor[:, server], self.offered[mine], side="right")
            below[mine] = np.searchsorted(t.ceiling[:, server], self.offered[mine], side="left")
        above, below = np.minimum(above, t.last[which]), np.maximum(below - 1, 0)

        def height(n: Ints) -> Floats:
            return np.asarray(self.per_call * (n * np.log(self.offered) - t.log[n, which]))

        peak = np.maximum(height(above), height(np.maximum(above - 1, 0)))
        high = _bisect(lambda n: height(n) < peak - _CUT, above, t.last[which])
        ends = height(t.last[which]) < peak - _CUT
        peak = height(below)
        low = below - _bisect(lambda n: height(below - n) < peak - _CUT, 0 * below, below)
        first = np.maximum(np.floor(self.per_call * low), float(_HEAD))
        last = np.where(ends, np.minimum(np.ceil(self.per_call * high), self.end), self.end)
        return first, np.maximum(last, first), ~ends | (self.end <= _HEAD)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Pieces of X between whole numbers: which, how far in, X at its start, its slope.

    ``beyond``: calls beyond the last piece, where X is flat.
    """

    cell: Ints
    part: Floats
    beyond: Floats
    low: Floats
    slope: Floats

    @property
    def rate(self) -> Floats:
        """X there."""
        return np.asarray(self.low + self.part * self.slope)


def _bisect(holds: Callable[[Ints], NDArray[np.bool_]], low: Ints, high: Ints) -> Ints:
    """First whole number in (low, high] where ``holds``, which stays true; high where none."""
    low, high = low.copy(), high.copy()
    while np.any(high - low > 1):
        middle = (low + high) // 2
        true = holds(middle)
        high, low = np.where(true, middle, high), np.where(true, low, middle)
    return high
