"""Prices of what every choice must keep, and the bound on cost that they give.

What must be kept is written as rows: units of each pool, weights of shares (``weights``), wide
groups of each link, GPUs in all. With prices on the rows each option has a reduced cost, and the
bound plus that reduced cost bounds every choice with that option. The prices come from the linear
relaxation (GLOP); the bound is recomputed from them, so it holds whatever the solver's tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search.candidates import Candidates, Space, smallest
from scepsy_hpc.planning.search.weights import (
    Weights,
    broken,
    first_weights,
    slices,
    weight_of,
)

COLUMNS_PER_KIND = 12
PRICING_ROUNDS = 5
CUT_ROUNDS = 12
_IMPOSSIBLE = 1e-6  # GPUs; what is missing beyond it is no rounding


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """``bound`` on the cost of every choice (inf: there is none), reduced costs of the options."""

    bound: float
    reduced: tuple[Floats, ...]


Known = dict[int, tuple[Weights, ...]]
"""Weights found so far, by number of the pool: they hold whatever is chosen."""


def price(space: Space, groups: Sequence[Candidates], max_gpus: int, known: Known) -> Priced:
    """The bound and the reduced cost of each LLM's options, by the prices of the rows."""
    spread = math.fsum(float(g.cost.max() - g.cost.min()) for g in groups)
    rows, relaxed = _relaxed(space, groups, max_gpus, spread + 1.0, known)
    priced = rows.priced(groups, relaxed.prices)
    # Where the relaxation does not fit, perhaps nothing does.
    if relaxed.missing > _IMPOSSIBLE and not may_fit(space, groups, max_gpus, known):
        return replace(priced, bound=math.inf)
    return priced


def may_fit(space: Space, groups: Sequence[Candidates], max_gpus: int, known: Known) -> bool:
    """False where it is proved that no choice fits, whatever it costs.

    The bound on the GPUs missing, by prices of at most one a GPU: a proof by Farkas' lemma.
    """
    small = tuple(smallest(group) for group in groups)
    rows, relaxed = _relaxed(space, small, max_gpus, 1.0, known)
    return rows.priced(small, relaxed.prices).bound <= _IMPOSSIBLE


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What each option takes of each row, in GPUs, and the room of the rows."""

    takes: tuple[Floats, ...]
    rooms: Floats

    def priced(self, groups: Sequence[Candidates], prices: Floats) -> Priced:
        """The bound that prices at or above zero give."""
        priced = [g.cost + take @ prices for g, take in zip(groups, self.takes, strict=True)]
        least = [float(p.min()) for p in priced]
        bound = math.fsum(least) - float(prices @ self.rooms)
        return Priced(bound, tuple(p - low for p, low in zip(priced, least, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class _Relaxed:
    """Prices of the rows, GPUs missing, and the fraction of each column that was taken."""

    prices: Floats
    missing: float
    columns: tuple[Ints, ...]
    taken: tuple[Floats, ...]


def _relaxed(
    space: Space,
    groups: Sequence[Candidates],
    max_gpus: int,
    penalty: float,
    known: Known,
) -> tuple[_Rows, _Relaxed]:
    """Solve the linear relaxation, adding weights that its choice breaks until there are none."""
    for number, pool in enumerate(space.pools):
        known.setdefault(number, tuple(first_weights(pool)))
    columns: tuple[Ints, ...] = tuple(_sample(group) for group in groups)
    for _ in range(CUT_ROUNDS):
        rows = _rows(space, groups, max_gpus, tuple(known[i] for i in range(len(space.pools))))
        relaxed = _by_columns(groups, rows, columns, penalty)
        columns = relaxed.columns
        new = [broken(pool, used) for pool, used in _used(space, groups, relaxed)]
        if not any(new):
            break
        known.update({i: (*known[i], n) for i, n in enumerate(new) if n})
    return rows, relaxed


def _used(space: Space, groups: Sequence[Candidates], relaxed: _Relaxed) -> list[tuple[Any, Any]]:
    """Each pool and the slices of each share that the relaxation takes of it."""
    found = []
    for number, pool in enumerate(space.pools):
        replicas = np.zeros(len(space.kinds))
        for group, columns, taken in zip(groups, relaxed.columns, relaxed.taken, strict=True):
            inside = group.pool[columns] == number
            np.add.at(replicas, group.kind[columns], taken * group.replicas[columns] * inside)
        found.append((pool, slices(space.kinds, replicas.tolist())))
    return found


def _rows(
    space: Space,
    groups: Sequence[Candidates],
    max_gpus: int,
    weights: tuple[tuple[Weights, ...], ...],
) -> _Rows:
    rooms: list[int] = []
    for pool, mine in zip(space.pools, weights, strict=True):
        rooms += [min(pool.num_gpus, max_gpus)] * (1 + len(mine))
        rooms += [row.num_gpus for row in pool.rows]
    takes = tuple(_takes(space, group, weights) for group in groups)
    return _Rows(takes, np.array([*rooms, max_gpus], dtype=np.float64))


def _takes(space: Space, group: Candidates, weights: tuple[tuple[Weights, ...], ...]) -> Floats:
    """What each option takes of each row, in GPUs; shape (options, rows)."""
    columns: list[Floats] = []
    total = np.zeros(len(group))
    for number, (pool, mine) in enumerate(zip(space.pools, weights, strict=True)):
        inside = np.where(group.pool == number, group.replicas, 0)
        known = [kind if kind in pool.units else None for kind in space.kinds]

        def column(per_kind: list[float], inside: Ints = inside) -> Floats:
            return np.asarray(inside * np.array(per_kind)[group.kind], dtype=np.float64)

        gpus = column([pool.units[k] / pool.units_per_gpu if k else 0.0 for k in known])
        total += gpus
        columns.append(gpus)
        columns += [column([weight_of(w, k) if k else 0.0 for k in known]) for w in mine]
        for row in pool.rows:
            columns.append(column([k.tp_degree if k and row.covers(k) else 0.0 for k in known]))
    return np.stack([*columns, total], axis=1)


def _by_columns(
    groups: Sequence[Candidates], rows: _Rows, columns: tuple[Ints, ...], penalty: float
) -> _Relaxed:
    """The linear relaxation by column generation."""
    linear = _Linear(groups, rows, penalty)
    for _ in range(PRICING_ROUNDS):
        linear.add(columns)
        relaxed = linear.solve()
        columns = tuple(
            _cheapest_of_kind(group, group.cost + take @ relaxed.prices)
            for group, take in zip(groups, rows.takes, strict=True)
        )
        if linear.has(columns):
            break
    return relaxed


def _sample(group: Candidates) -> Ints:
    """Some replica counts of each kind, closer together where they are few."""
    order = np.lexsort((group.replicas, group.kind))
    edges = np.flatnonzero(np.diff(group.kind[order])) + 1
    picked = []
    for rows in np.split(order, edges):
        steps = np.geomspace(1, len(rows), COLUMNS_PER_KIND).astype(np.int64) - 1
        picked.append(rows[np.unique(steps)])
    return np.unique(np.concatenate(picked))


def _cheapest_of_kind(group: Candidates, priced: Floats) -> Ints:
    order = np.lexsort((priced, group.kind))
    return order[np.r_[True, np.diff(group.kind[order]) > 0]]


class _Linear:
    """The linear relaxation, whose columns are added as they are needed.

    A row may be broken at ``penalty`` a GPU, so that there is always a solution.
    """

    def __init__(self, groups: Sequence[Candidates], rows: _Rows, penalty: float) -> None:
        from ortools.linear_solver import pywraplp

        self.optimal = pywraplp.Solver.OPTIMAL
        self.solver: Any = pywraplp.Solver.CreateSolver("GLOP")
        self.infinity = self.solver.infinity()
        self.limits = [self.solver.Constraint(-self.infinity, float(room)) for room in rows.rooms]
        self.ones = [self.solver.Constraint(1.0, 1.0) for _ in groups]
        self.goal = self.solver.Objective()
        self.goal.SetMinimization()
        self.groups, self.rows = groups, rows
        self.known: list[dict[int, Any]] = [{} for _ in groups]
        self.slack = []
        for limit in self.limits:
            x = self.solver.NumVar(0.0, self.infinity, "")
            limit.SetCoefficient(x, -1.0)
            self.goal.SetCoefficient(x, penalty)
            self.slack.append(x)

    def has(self, columns: Sequence[Ints]) -> bool:
        """Whether all columns (rows of the groups) are in."""
        return all(set(c.tolist()) <= k.keys() for c, k in zip(columns, self.known, strict=True))

    def add(self, columns: Sequence[Ints]) -> None:
        """Add columns that are not in yet."""
        for number, rows in enumerate(columns):
            for row in rows.tolist():
                if row not in self.known[number]:
                    self._add(number, row)

    def _add(self, number: int, row: int) -> None:
        x = self.solver.NumVar(0.0, self.infinity, "")
        self.ones[number].SetCoefficient(x, 1.0)
        self.goal.SetCoefficient(x, float(self.groups[number].cost[row]))
        take = self.rows.takes[number][row]
        for at in np.flatnonzero(take).tolist():
            self.limits[at].SetCoefficient(x, float(take[at]))
        self.known[number][row] = x

    def solve(self) -> _Relaxed:
        """Solve it; prices are all zero should the solver fail, which weakens the bound only."""
        columns = tuple(np.array(list(k), dtype=np.int64) for k in self.known)
        if self.solver.Solve() != self.optimal:
            nothing = tuple(np.zeros(len(c)) for c in columns)
            return _Relaxed(np.zeros(len(self.limits)), 0.0, columns, nothing)
        taken = tuple(np.array([x.solution_value() for x in k.values()]) for k in self.known)
        prices = np.array([max(-limit.dual_value(), 0.0) for limit in self.limits])
        return _Relaxed(prices, sum(x.solution_value() for x in self.slack), columns, taken)
