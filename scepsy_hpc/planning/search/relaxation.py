"""The knapsack over GPU units: a bound at every number of GPUs, and the choice that reaches it.

It is a relaxation: units are counted, shapes are not. Where several pools would make the table too
large they are merged into one budget, which weakens the bound and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search import knapsack
from scepsy_hpc.planning.search.candidates import Candidates
from scepsy_hpc.planning.search.knapsack import Items, KnapsackTable
from scepsy_hpc.planning.search.pools import Pool

MOST_WORK = 2e8  # cells a table may touch: about half a second
MOST_CELLS = 2e7  # cells it may hold: 160 MB


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """``values[g]``: no choice on at most g GPUs costs less (inf: there is none)."""

    table: KnapsackTable
    values: Floats
    budgets: Ints

    def choice(self, num_gpus: int) -> list[int]:
        """Row of each group that reaches ``values[num_gpus]``."""
        return self.table.choice(tuple(int(b) for b in self.budgets[num_gpus]))

    def cheapest(self, num_gpus: int) -> Iterator[list[int]]:
        """Choices of rising cost within the budget that is best at so many GPUs."""
        return self.table.cheapest(tuple(int(b) for b in self.budgets[num_gpus]))

    def fewest_gpus(self, value: float) -> int | None:
        """Fewest GPUs whose value is at most ``value``."""
        good = np.flatnonzero(self.values <= value)
        return int(good[0]) if len(good) else None


def relax(groups: Sequence[Candidates], pools: Sequence[Pool], max_gpus: int) -> Relaxation:
    """Fill the table for one budget per pool, or for all GPUs together if that is too large."""
    items = tuple(Items(g.pool, g.units, g.cost) for g in groups)
    per_gpu = [pool.units_per_gpu for pool in pools]
    gpus = [min(pool.num_gpus, max_gpus) for pool in pools]
    budget = tuple(u * n for u, n in zip(per_gpu, gpus, strict=True))
    if len(pools) > 1 and _too_large(items, budget):
        unit = math.lcm(*per_gpu)
        scale = np.array([unit // u for u in per_gpu], dtype=np.int64)
        items = tuple(Items(np.zeros_like(i.pool), i.units * scale[i.pool], i.cost) for i in items)
        per_gpu, budget = [unit], (unit * min(sum(gpus), max_gpus),)
    table = knapsack.fill(items, budget)
    return _by_gpus(table, per_gpu, min(sum(gpus), max_gpus))


def _by_gpus(table: KnapsackTable, per_gpu: Sequence[int], max_gpus: int) -> Relaxation:
    """The best budget vector for every number of GPUs."""
    values = table.value[tuple(slice(None, None, u) for u in per_gpu)]
    vectors = np.stack([axis.ravel() for axis in np.indices(values.shape)], axis=1)
    flat, total = values.ravel(), vectors.sum(axis=1)
    order = np.lexsort((flat, total))
    first = order[np.r_[True, np.diff(total[order]) > 0]][: max_gpus + 1]
    best = np.minimum.accumulate(flat[first])
    # Where more GPUs gain nothing, keep the vector of fewer.
    at = first[np.searchsorted(-best, -best, side="left")]
    return Relaxation(table, best, vectors[at] * np.array(per_gpu, dtype=np.int64))


def room_for(groups: Sequence[Candidates], pools: Sequence[Pool], max_gpus: int) -> bool:
    """Whether units leave room for one option of each group, whatever it costs.

    The last pool needs no budget of its own: the table minimises the units taken from it.
    """
    last = len(pools) - 1
    items = tuple(
        Items(
            np.minimum(g.pool, max(last - 1, 0)),
            np.where(g.pool == last, 0, g.units),
            np.where(g.pool == last, g.units, 0).astype(np.float64),
        )
        for g in groups
    )
    per_gpu = [pool.units_per_gpu for pool in pools]
    gpus = [min(pool.num_gpus, max_gpus) for pool in pools]
    budget = tuple(u * n for u, n in zip(per_gpu[:-1], gpus[:-1], strict=True)) or (0,)
    if _too_large(items, budget):
        return True
    least = knapsack.fill(items, budget).value
    used = np.ceil(np.where(least <= per_gpu[-1] * gpus[-1], least, np.inf) / per_gpu[-1])
    for axis, (size, unit) in enumerate(zip(least.shape, per_gpu[:-1], strict=False)):
        shape = [1] * least.ndim
        shape[axis] = size
        used = used + -(-np.arange(size) // unit).reshape(shape)
    return bool(used.min() <= max_gpus)


def _too_large(items: tuple[Items, ...], budget: tuple[int, ...]) -> bool:
    cells = math.prod(b + 1 for b in budget) * (len(items) + 1)
    return cells > MOST_CELLS or knapsack.work(items, budget) > MOST_WORK


def throughputs(groups: Sequence[Candidates]) -> Floats:
    """Distinct values that the smallest throughput over the LLMs can take, rising."""
    top = min(float(g.throughput.max()) for g in groups)
    values = np.unique(np.concatenate([g.throughput for g in groups]))
    return values[values <= top]


def gpus_needed(groups: Sequence[Candidates], pools: Sequence[Pool], levels: Floats) -> Ints:
    """Fewest GPUs that offer the units each LLM needs to reach a throughput, for each level."""
    per_gpu = np.array([pool.units_per_gpu for pool in pools], dtype=np.float64)
    needed = np.zeros(len(levels))
    for group in groups:
        order = np.argsort(-group.throughput, kind="stable")
        gpus = group.units[order] / per_gpu[group.pool[order]]
        fewest = np.minimum.accumulate(gpus)
        reach = np.searchsorted(-group.throughput[order], -levels, side="right")
        needed += fewest[reach - 1]
    return np.ceil(needed - 1e-9).astype(np.int64)
