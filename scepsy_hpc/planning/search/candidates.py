"""A problem's options as numpy columns, one set of columns per LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search.pools import Pool, pools_of
from scepsy_hpc.planning.search.problem import Option, OptionTable, SearchProblem


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Options of one LLM that fit somewhere: where they stand, what they take, cost and yield.

    ``table`` and ``row`` point into the problem's tables; ``kind`` and ``pool`` into the space's.
    """

    table: Ints
    row: Ints
    kind: Ints
    pool: Ints
    units: Ints
    replicas: Ints
    cost: Floats
    throughput: Floats

    def __len__(self) -> int:
        return len(self.row)

    def keep(self, which: NDArray[np.bool_] | Ints) -> Candidates:
        """The rows of a mask or of indices."""
        return Candidates(*(getattr(self, name)[which] for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Everything the search chooses from; ``groups`` has one entry per LLM, in ``llms`` order."""

    tables: tuple[OptionTable, ...]
    llms: tuple[str, ...]
    kinds: tuple[Parallelism, ...]
    pools: tuple[Pool, ...]
    groups: tuple[Candidates, ...]
    max_gpus: int

    def option(self, group: Candidates, row: int) -> Option:
        """The option behind one row of a group."""
        return self.tables[int(group.table[row])].option(int(group.row[row]))

    @property
    def decides(self) -> bool:
        """Whether units alone decide what fits."""
        return all(pool.decides and not pool.rows for pool in self.pools)


def space_of(problem: SearchProblem) -> Space:
    """Columns of all options that fit the free GPUs when they have them for themselves."""
    kinds = tuple(dict.fromkeys(table.kind for table in problem.tables))
    pools = pools_of(problem.topology, kinds)
    free = sum(pool.num_gpus for pool in pools)
    limit = free if problem.max_gpus is None else min(free, problem.max_gpus)
    parts: dict[str, list[Candidates]] = {llm: [] for llm in problem.llms}
    for number, table in enumerate(problem.tables):
        for at, pool in enumerate(pools):
            if table.kind in pool.kinds:
                part = _columns(table, number, kinds.index(table.kind), at, pool, limit)
                parts[table.llm].append(part)
    groups = tuple(_join(group) for group in parts.values())
    return Space(problem.tables, problem.llms, kinds, pools, groups, limit)


def _columns(
    table: OptionTable, number: int, kind: int, at: int, pool: Pool, max_gpus: int
) -> Candidates:
    units = table.num_replicas * pool.units[table.kind]
    ok = (
        (table.num_replicas >= 1)
        & (table.num_replicas <= pool.most_replicas(table.kind))
        & (units <= min(pool.num_gpus, max_gpus) * pool.units_per_gpu)
        & (table.throughput_rps > 0)
        & ~np.isnan(table.cost_s)
    )
    row = np.flatnonzero(ok)
    same = np.full(len(row), 1, dtype=np.int64)
    return Candidates(
        same * number,
        row,
        same * kind,
        same * at,
        units[row],
        table.num_replicas[row],
        table.cost_s[row],
        table.throughput_rps[row],
    )


def _join(parts: Sequence[Candidates]) -> Candidates:
    if not parts:
        none, empty = np.zeros(0, dtype=np.int64), np.zeros(0)
        return Candidates(none, none, none, none, none, none, empty, empty)
    names = Candidates.__slots__
    return Candidates(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def smallest(group: Candidates) -> Candidates:
    """The option of fewest replicas of each kind and pool, at no cost."""
    order = np.lexsort((group.replicas, group.kind, group.pool))
    kind, pool = group.kind[order], group.pool[order]
    first = order[np.r_[True, (np.diff(kind) != 0) | (np.diff(pool) != 0)]]
    return replace(group.keep(first), cost=np.zeros(len(first)))
