"""Least cost where units do not decide: Lagrangian bounds shorten the lists, the model decides.

What every choice must keep is written as rows (units of each pool, wide groups of each link, GPUs
in all). With prices on the rows each option has a reduced cost, and the bound plus that reduced
cost bounds every choice with that option. So options above the best choice known cannot be in the
best one. The prices come from the linear relaxation (GLOP); the bound is recomputed from them, so
it holds whatever the solver's tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search import cp_sat
from scepsy_hpc.planning.search.candidates import Candidates, Space
from scepsy_hpc.planning.search.pools import Pool
from scepsy_hpc.planning.search.work import Work

FIRST_SLACK = 0.003  # of the bound; enough in most cases, and it grows by itself
MOST_OPTIONS = 6000  # that the model gets; more would be slow to build
COLUMNS_PER_KIND = 12
PRICING_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Packed:
    """``rows`` (one per LLM; empty: none found) and a bound on the cost of every choice."""

    rows: tuple[int, ...]
    packing: tuple[cp_sat.CellPacking, ...]
    bound: float
    infeasible: bool


def cheapest(space: Space, groups: Sequence[Candidates], max_gpus: int, work: Work) -> Packed:
    """The choice of least cost that can be packed on at most ``max_gpus`` GPUs.

    The lists grow until no option left out could be part of a cheaper choice, or the work ends.
    """
    floor, reduced = bounds(space, groups, max_gpus)
    best, best_cost = Packed((), (), floor, infeasible=False), math.inf
    slack = FIRST_SLACK * abs(floor)
    while True:
        kept, left_out = _kept(reduced, slack)
        found = _model(space, groups, kept, max_gpus, best.rows, work)
        if found.rows:
            cost = math.fsum(g.cost[r] for g, r in zip(groups, found.rows, strict=True))
            if cost < best_cost:
                best, best_cost = found, cost
        # A choice is within the lists, or holds an option that was left out.
        proved = max(floor, min(found.bound, floor + left_out, best_cost))
        infeasible = found.infeasible and math.isinf(left_out)
        best = Packed(best.rows, best.packing, proved, infeasible)
        full = all(
            len(k) >= min(len(r), _most(reduced)) for k, r in zip(kept, reduced, strict=True)
        )
        if full or best_cost <= floor + left_out or work.has_ended:
            return best
        slack = best_cost - floor if best.rows else 8 * slack + 1e-9


def _most(reduced: Sequence[Floats]) -> int:
    return MOST_OPTIONS // len(reduced)


def _kept(reduced: Sequence[Floats], slack: float) -> tuple[list[Ints], float]:
    """Options within the slack, the most promising where they are too many; the least left out."""
    kept, left_out = [], math.inf
    for costs in reduced:
        order = np.argsort(costs, kind="stable")
        count = min(_most(reduced), int(np.searchsorted(costs[order], slack, side="right")))
        kept.append(np.sort(order[:count]))
        if count < len(order):
            left_out = min(left_out, float(costs[order[count]]))
    return kept, left_out


def _model(
    space: Space,
    groups: Sequence[Candidates],
    kept: Sequence[Ints],
    max_gpus: int,
    hint: Sequence[int],
    work: Work,
) -> Packed:
    """Solve over the kept options; rows are those of the groups."""
    choices = [
        cp_sat.Choices(g.kind[k], g.replicas[k], g.cost[k])
        for g, k in zip(groups, kept, strict=True)
    ]
    start = [int(np.searchsorted(k, row)) for k, row in zip(kept, hint, strict=False)]
    result = cp_sat.choose_and_pack(space.kinds, choices, space.pools, max_gpus, work, start)
    rows = tuple(int(k[row]) for k, row in zip(kept, result.rows, strict=False))
    bound = math.inf if result.infeasible else result.bound
    return Packed(rows, result.packing, bound, result.infeasible)


def bounds(space: Space, groups: Sequence[Candidates], max_gpus: int) -> tuple[float, list[Floats]]:
    """A bound on the cost of every choice, and the reduced cost of each LLM's options."""
    takes = [_takes(space, group) for group in groups]
    rooms = _rooms(space, max_gpus)
    prices = _prices(groups, takes, rooms)
    priced = [group.cost + take @ prices for group, take in zip(groups, takes, strict=True)]
    least = [float(p.min()) for p in priced]
    bound = math.fsum(least) - float(prices @ rooms)
    return bound, [p - low for p, low in zip(priced, least, strict=True)]


def _rooms(space: Space, max_gpus: int) -> Floats:
    """Right-hand sides, in GPUs: the rows of each pool, and GPUs in all."""
    rooms: list[int] = []
    for pool in space.pools:
        gpus = min(pool.num_gpus, max_gpus)
        rooms += [gpus] * (1 + len(_roundings(pool)))
        rooms += [row.num_gpus for row in pool.rows]
    return np.array([*rooms, max_gpus], dtype=np.float64)


def _takes(space: Space, group: Candidates) -> Floats:
    """What each option takes of each row, in GPUs; shape (options, rows)."""
    columns: list[Floats] = []
    total = np.zeros(len(group))
    for number, pool in enumerate(space.pools):
        inside = np.where(group.pool == number, group.replicas, 0)
        known = [kind if kind in pool.units else None for kind in space.kinds]

        def column(per_kind: list[float], inside: Ints = inside) -> Floats:
            return np.asarray(inside * np.array(per_kind)[group.kind], dtype=np.float64)

        gpus = column([pool.units[k] / pool.units_per_gpu if k else 0.0 for k in known])
        total += gpus
        columns.append(gpus)
        for parts in _roundings(pool):
            columns.append(column([_rounded(k, parts) if k else 0.0 for k in known]))
        for row in pool.rows:
            columns.append(column([k.tp_degree if k and row.covers(k) else 0.0 for k in known]))
    return np.stack([*columns, total], axis=1)


def _roundings(pool: Pool) -> tuple[int, ...]:
    """Which roundings of shares are worth a row: none where units count exactly."""
    return () if pool.countable else (1, 2, 3)


def _rounded(kind: Parallelism, parts: int) -> float:
    """GPUs that a replica takes when its share is rounded to parts of a GPU.

    The dual feasible function of Fekete and Schepers (2001): whatever shares fit one GPU, their
    rounded values do, too. A share above a half becomes a whole GPU at one part.
    """
    scaled = kind.gpu_share_pct * (parts + 1)
    share = scaled / 100 / (parts + 1) if scaled % 100 == 0 else scaled // 100 / parts
    return kind.tp_degree * share


def _prices(groups: Sequence[Candidates], takes: Sequence[Floats], rooms: Floats) -> Floats:
    """Prices of the rows from the linear relaxation, by column generation."""
    relaxed = _Linear(groups, takes, rooms)
    columns = [_sample(group) for group in groups]
    prices = np.zeros(len(rooms))
    for _ in range(PRICING_ROUNDS):
        relaxed.add(columns)
        prices = relaxed.prices()
        columns = [
            _cheapest_of_kind(group, group.cost + take @ prices)
            for group, take in zip(groups, takes, strict=True)
        ]
        if relaxed.has(columns):
            break
    return prices


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
    """The linear relaxation, whose columns are added as they are needed."""

    def __init__(
        self, groups: Sequence[Candidates], takes: Sequence[Floats], rooms: Floats
    ) -> None:
        from ortools.linear_solver import pywraplp

        self.optimal = pywraplp.Solver.OPTIMAL
        self.solver: Any = pywraplp.Solver.CreateSolver("GLOP")
        self.infinity = self.solver.infinity()
        self.limits = [self.solver.Constraint(-self.infinity, float(room)) for room in rooms]
        self.ones = [self.solver.Constraint(1.0, 1.0) for _ in groups]
        self.goal = self.solver.Objective()
        self.goal.SetMinimization()
        self.groups, self.takes = groups, takes
        self.known: list[set[int]] = [set() for _ in groups]

    def has(self, columns: Sequence[Ints]) -> bool:
        """Whether all columns (rows of the groups) are in."""
        return all(set(c.tolist()) <= k for c, k in zip(columns, self.known, strict=True))

    def add(self, columns: Sequence[Ints]) -> None:
        """Add columns that are not in yet."""
        for number, rows in enumerate(columns):
            for row in set(rows.tolist()) - self.known[number]:
                self._add(number, row)

    def _add(self, number: int, row: int) -> None:
        x = self.solver.NumVar(0.0, self.infinity, "")
        self.ones[number].SetCoefficient(x, 1.0)
        self.goal.SetCoefficient(x, float(self.groups[number].cost[row]))
        take = self.takes[number][row]
        for at in np.flatnonzero(take).tolist():
            self.limits[at].SetCoefficient(x, float(take[at]))
        self.known[number].add(row)

    def prices(self) -> Floats:
        """Dual values of the rows, at least zero; all zero when the relaxation has no solution."""
        if self.solver.Solve() != self.optimal:
            return np.zeros(len(self.limits))
        return np.array([max(-limit.dual_value(), 0.0) for limit in self.limits])
