"""Multiple-choice knapsack over integer GPU units: Pareto staircases and min-plus convolution.

One item is chosen per group; the answer is the smallest sum of costs for every budget at once.
The budget is one number, or a vector with one entry per pool.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scepsy_hpc.metrics import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Items of one group: each takes ``units`` of one entry of the budget. Arrays of one length."""

    pool: Ints
    units: Ints
    cost: Floats

    def __len__(self) -> int:
        return len(self.units)


def staircase(items: Items) -> Ints:
    """Rows that no other item of the same pool beats in both units and cost, cheapest last."""
    order = np.lexsort((items.cost, items.units, items.pool))
    pool, cost = items.pool[order], items.cost[order]
    keep = np.ones(len(order), dtype=bool)
    for start, stop in _runs(pool):
        part = cost[start:stop]
        keep[start + 1 : stop] = part[1:] < np.minimum.accumulate(part)[:-1]
    return order[keep]


def _runs(values: Ints) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return [(a, b) for a, b in pairwise(bounds) if a < b]


# Cost of the best completion, tie-break, groups left, cost so far, budget left, rows so far.
_State = tuple[float, int, int, float, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class KnapsackTable:
    """``best[i][u]``: smallest cost of the first i groups within budget u (inf: none)."""

    groups: tuple[Items, ...]
    rows: tuple[Ints, ...]
    best: tuple[Floats, ...]

    @property
    def value(self) -> Floats:
        """Smallest cost of all groups, by budget."""
        return self.best[-1]

    def choice(self, budget: tuple[int, ...]) -> list[int]:
        """Row chosen in each group at a budget whose value is finite."""
        chosen = []
        for group, rows, before, after in zip(
            reversed(self.groups),
            reversed(self.rows),
            reversed(self.best[:-1]),
            reversed(self.best[1:]),
            strict=True,
        ):
            row = _row_used(group, rows, before, float(after[budget]), budget)
            left = list(budget)
            left[group.pool[row]] -= int(group.units[row])
            budget = tuple(left)
            chosen.append(row)
        return chosen[::-1]

    def cheapest(self, budget: tuple[int, ...]) -> Iterator[list[int]]:
        """Rows of all choices within a budget, cheapest first (a best-first search).

        Only staircase rows are considered. The table is the exact cost to go, so each choice takes
        one step per group.
        """
        start = float(self.value[budget])
        count = itertools.count()
        heap: list[_State] = [(start, next(count), len(self.groups), 0.0, budget, ())]
        while heap and math.isfinite(heap[0][0]):
            _, _, at, spent, left, rows = heapq.heappop(heap)
            if at == 0:
                yield list(rows)
                continue
            for cost, row, after in self._steps(at - 1, left):
                total = spent + float(self.groups[at - 1].cost[row])
                heapq.heappush(
                    heap, (cost + total, next(count), at - 1, total, after, (row, *rows))
                )

    def _steps(
        self, number: int, budget: tuple[int, ...]
    ) -> Iterator[tuple[float, int, tuple[int, ...]]]:
        """Each row of a group that fits: cost of the groups before it, row, budget left."""
        group, before = self.groups[number], self.best[number]
        for row in self.rows[number].tolist():
            left = list(budget)
            left[group.pool[row]] -= int(group.units[row])
            if min(left) >= 0 and math.isfinite(cost := float(before[tuple(left)])):
                yield cost, row, tuple(left)


def _row_used(
    group: Items, rows: Ints, before: Floats, value: float, budget: tuple[int, ...]
) -> int:
    for row in rows[np.argsort(group.units[rows], kind="stable")]:
        left = list(budget)
        left[group.pool[row]] -= int(group.units[row])
        if min(left) >= 0 and before[tuple(left)] + group.cost[row] == value:
            return int(row)
    raise AssertionError("the table holds a value that no item gives")


def fill(groups: tuple[Items, ...], budget: tuple[int, ...]) -> KnapsackTable:
    """The table of all budgets up to ``budget``. Takes ``work(...)`` additions and comparisons."""
    rows = useful_rows(groups, budget)
    best = [np.zeros(tuple(b + 1 for b in budget))]
    for group, use in zip(groups, rows, strict=True):
        best.append(_min_plus(best[-1], group, use))
    return KnapsackTable(groups, rows, tuple(best))


def work(groups: tuple[Items, ...], budget: tuple[int, ...]) -> float:
    """How many cells ``fill`` touches: what decides whether a table is affordable."""
    cells = float(np.prod([b + 1.0 for b in budget]))
    return cells * sum(len(rows) for rows in useful_rows(groups, budget))


def useful_rows(groups: tuple[Items, ...], budget: tuple[int, ...]) -> tuple[Ints, ...]:
    """Staircase rows of each group that fit beside the smallest items of the others."""
    return tuple(_useful(groups, i, budget) for i in range(len(groups)))


def _useful(groups: tuple[Items, ...], number: int, budget: tuple[int, ...]) -> Ints:
    group = groups[number]
    rows = staircase(group)
    room = np.array(budget, dtype=np.int64)
    if len(budget) == 1:
        others = (g.units.min() for i, g in enumerate(groups) if i != number and len(g))
        room = room - sum(others)
    return rows[group.units[rows] <= room[group.pool[rows]]]


def _min_plus(before: Floats, group: Items, rows: Ints) -> Floats:
    after = np.full_like(before, np.inf)
    scratch = np.empty_like(before)
    for pool, units, cost in zip(
        group.pool[rows].tolist(),
        group.units[rows].tolist(),
        group.cost[rows].tolist(),
        strict=True,
    ):
        axis = (slice(None),) * pool
        size = before.shape[pool] - units
        part = scratch[(*axis, slice(0, size))]
        np.add(before[(*axis, slice(0, size))], cost, out=part)
        target = after[(*axis, slice(units, None))]
        np.minimum(target, part, out=target)
    return after
