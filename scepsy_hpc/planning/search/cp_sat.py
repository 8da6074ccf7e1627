"""Which option for each LLM and how its replicas are packed, as one constraint model (OR-tools).

Used where counting does not decide: shares that do not divide a GPU, tensor parallelism on shared
GPUs, odd group sizes, or holes that the cheapest choice does not fit.

Replicas are packed in *cells*. A cell is one hole; where all groups on several GPUs are whole and
their sizes divide each other, it is a whole pool with the pool's counting conditions. In a cell a
GPU is whole, or carries a *mix* of shares. k groups of t GPUs need t·k slices on GPUs of which none
holds more than k: dealt out in turn, each group then gets t different GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search.pools import Hole, Pool, is_whole
from scepsy_hpc.planning.search.work import LEAST, Work

MOST_MIXES = 3000
_WORK_PER_VARIABLE = 2e-5  # what building the model takes, in units of work
_COST_STEPS = 2**31


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Options of one LLM as columns: index into the kinds, replicas, cost."""

    kind: Ints
    num_replicas: Ints
    cost: Floats


@dataclass(frozen=True, slots=True)
class Cell:
    """GPUs that are packed together; ``pool`` is set when the cell is a whole pool.

    ``complete``: all mixes are there. Where there are too many, the model proves nothing.
    """

    holes: tuple[Hole, ...]
    whole: tuple[Parallelism, ...]
    shared: tuple[Parallelism, ...]
    mixes: tuple[tuple[Parallelism, ...], ...]
    pool: Pool | None
    complete: bool = True

    @property
    def num_gpus(self) -> int:
        """GPUs of the cell."""
        return sum(len(hole.gpus) for hole in self.holes)


@dataclass(frozen=True, slots=True)
class CellPacking:
    """What one cell holds: replicas of each kind, and how many GPUs carry each mix."""

    cell: Cell
    num_replicas: Mapping[Parallelism, int]
    num_mixes: Mapping[tuple[Parallelism, ...], int]


@dataclass(frozen=True, slots=True)
class Result:
    """``rows`` (one per LLM) and ``packing`` are empty unless a choice was found.

    ``bound``: no choice costs less; ``infeasible``: proved that there is none.
    """

    rows: tuple[int, ...]
    packing: tuple[CellPacking, ...]
    bound: float
    infeasible: bool


def cells_of(pools: Sequence[Pool]) -> list[Cell]:
    """The cells of all pools."""
    found = []
    for pool in pools:
        wide_whole = all(is_whole(k, pool.kinds) for k in pool.kinds if k.tp_degree > 1)
        sizes = sorted({1, *(k.tp_degree for k in pool.kinds)})
        chain = all(b % a == 0 for a, b in pairwise(sizes))
        if wide_whole and chain and not pool.mixed:
            found.append(_cell(pool.holes, pool.kinds, pool))
        else:
            found += [_cell((hole,), pool.kinds, None) for hole in pool.holes]
    return found


def _cell(holes: tuple[Hole, ...], kinds: Sequence[Parallelism], pool: Pool | None) -> Cell:
    fitting = [k for k in kinds if any(hole.takes(k) for hole in holes)]
    whole = tuple(k for k in fitting if is_whole(k, fitting))
    shared = tuple(k for k in fitting if k not in whole)
    if pool is not None and pool.countable:
        return Cell(holes, whole, shared, (), pool)
    mixes = tuple(_mixes(shared))
    return Cell(holes, whole, shared, mixes, pool, complete=len(mixes) < MOST_MIXES)


def _mixes(kinds: Sequence[Parallelism]) -> list[tuple[Parallelism, ...]]:
    """Multisets of kinds that one GPU can carry, without those a larger one makes needless.

    Only slices of one-GPU replicas may be left unused, so only they make a mix larger.
    """
    ordered = sorted(kinds, key=lambda k: (-k.gpu_share_pct, k.tp_degree, str(k.link)))
    single = [k for k in ordered if k.tp_degree == 1]
    smallest = min((k.gpu_share_pct for k in single), default=101)
    found: list[tuple[Parallelism, ...]] = []

    def extend(mix: tuple[Parallelism, ...], left: int, start: int) -> None:
        if len(found) >= MOST_MIXES:
            return
        if mix and left < smallest:
            found.append(mix)
        for i in range(start, len(ordered)):
            if ordered[i].gpu_share_pct <= left:
                extend((*mix, ordered[i]), left - ordered[i].gpu_share_pct, i)

    extend((), 100, 0)
    return found


class _Model:
    """The model under construction; OR-tools is imported only here."""

    def __init__(self, kinds: Sequence[Parallelism], pools: Sequence[Pool]) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model: Any = cp_model.CpModel()
        self.kinds = kinds
        self.cells = cells_of(pools)
        self.groups: list[dict[Parallelism, Any]] = []
        self.mixes: list[dict[tuple[Parallelism, ...], Any]] = []
        self.picks: list[list[Any]] = []
        gpus = [self._pack(number, cell) for number, cell in enumerate(self.cells)]
        self.num_gpus = sum(gpus)

    def _pack(self, number: int, cell: Cell) -> Any:
        """Variables and constraints of one cell; returns its number of GPUs used."""
        size = cell.num_gpus
        groups = {
            kind: self.model.new_int_var(0, _most(cell, kind), f"n{number}_{i}")
            for i, kind in enumerate((*cell.whole, *cell.shared))
        }
        mixes = {
            mix: self.model.new_int_var(0, size, f"z{number}_{i}")
            for i, mix in enumerate(cell.mixes)
        }
        if cell.pool is not None and cell.pool.countable:
            used = self._count(cell.pool, cell, groups)
        else:
            used = self._mix(cell, groups, mixes)
        self.model.add(used <= size)
        for row in cell.pool.rows if cell.pool else ():
            wide = [k.tp_degree * groups[k] for k in cell.whole if row.covers(k)]
            self.model.add(sum(wide) <= row.num_gpus)
        self.groups.append(groups)
        self.mixes.append(mixes)
        return used

    def _count(self, pool: Pool, cell: Cell, groups: Mapping[Parallelism, Any]) -> Any:
        """GPUs used where units count exactly; the placement needs no mixes."""
        used = sum(k.tp_degree * groups[k] for k in cell.whole)
        if not cell.shared:
            return used
        sharing = self.model.new_int_var(0, cell.num_gpus, "")
        units = sum(pool.units[k] * groups[k] for k in cell.shared)
        self.model.add(units <= pool.units_per_gpu * sharing)
        return used + sharing

    def _mix(
        self, cell: Cell, groups: dict[Parallelism, Any], mixes: dict[tuple[Parallelism, ...], Any]
    ) -> Any:
        """GPUs used where it matters which shares meet on a GPU."""
        for kind in cell.shared:
            slices = sum(mix.count(kind) * z for mix, z in mixes.items() if kind in mix)
            self.model.add(slices >= kind.tp_degree * groups[kind])
        for mix, z in mixes.items():
            self._no_group_twice(mix, z, groups)
        return sum(mixes.values()) + sum(k.tp_degree * groups[k] for k in cell.whole)

    def _no_group_twice(
        self, mix: tuple[Parallelism, ...], z: Any, groups: dict[Parallelism, Any]
    ) -> None:
        wide = {k: mix.count(k) for k in mix if k.tp_degree > 1 and mix.count(k) > 1}
        if not wide:
            return
        used = self.model.new_bool_var("")
        self.model.add(z == 0).only_enforce_if(~used)
        for kind, slices in wide.items():
            self.model.add(groups[kind] >= slices).only_enforce_if(used)

    def demand(self, kind: Parallelism, replicas: Any) -> None:
        """The cells hold that many replicas of a kind."""
        self.model.add(sum(g[kind] for g in self.groups if kind in g) == replicas)

    def choose(self, choices: Sequence[Choices]) -> None:
        """One option per LLM; what the options take must be packed."""
        needed: dict[int, list[Any]] = {i: [] for i in range(len(self.kinds))}
        for choice in choices:
            picks = [self.model.new_bool_var("") for _ in choice.kind]
            self.model.add_exactly_one(picks)
            for x, kind, n in zip(
                picks, choice.kind.tolist(), choice.num_replicas.tolist(), strict=True
            ):
                needed[kind].append(n * x)
            self.picks.append(picks)
        for i, kind in enumerate(self.kinds):
            self.demand(kind, sum(needed[i]))

    def packing(self, solver: Any) -> tuple[CellPacking, ...]:
        """What the solver put into each cell."""
        return tuple(
            CellPacking(
                cell,
                {k: solver.value(v) for k, v in groups.items() if solver.value(v)},
                {m: solver.value(v) for m, v in mixes.items() if solver.value(v)},
            )
            for cell, groups, mixes in zip(self.cells, self.groups, self.mixes, strict=True)
        )

    @property
    def complete(self) -> bool:
        """Whether what the model excludes is impossible."""
        return all(cell.complete for cell in self.cells)

    def run(self, work: Work, num_workers: int = 1) -> tuple[Any, Any]:
        """Solve with a fixed seed and book the work; returns the solver and its status."""
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = num_workers
        solver.parameters.random_seed = 1
        if num_workers == 1:
            solver.parameters.linearization_level = 2
        solver.parameters.max_deterministic_time = max(work.left, LEAST)
        solver.parameters.max_time_in_seconds = work.left_s
        status = solver.solve(self.model)
        variables = len(self.model.proto.variables)
        work.book(float(solver.deterministic_time) + variables * _WORK_PER_VARIABLE)
        return solver, status


def _most(cell: Cell, kind: Parallelism) -> int:
    per_gpu = 100 // kind.gpu_share_pct
    return sum(len(h.gpus) * per_gpu // kind.tp_degree for h in cell.holes if h.takes(kind))


def pack(
    num_replicas: Mapping[Parallelism, int],
    pools: Sequence[Pool],
    max_gpus: int | None,
    work: Work,
) -> tuple[CellPacking, ...] | None:
    """A packing of fixed replicas on as few GPUs as the work allows; None when none was found."""
    model = _Model(tuple(num_replicas), pools)
    for kind, n in num_replicas.items():
        model.demand(kind, n)
    if max_gpus is not None:
        model.model.add(model.num_gpus <= max_gpus)
    model.model.minimize(model.num_gpus)
    solver, status = model.run(work)
    if status not in (model.cp.OPTIMAL, model.cp.FEASIBLE):
        return None
    return model.packing(solver)


def choose_and_pack(
    kinds: Sequence[Parallelism],
    choices: Sequence[Choices],
    pools: Sequence[Pool],
    max_gpus: int,
    work: Work,
    hint: Sequence[int] = (),
    num_workers: int = 1,
) -> Result:
    """The choice of least cost that can be packed, and its packing.

    One worker gives the same answer every time, unless a clock cuts it off.
    """
    model = _Model(kinds, pools)
    model.choose(choices)
    scale, floor, costs = _scaled(choices)
    model.model.add(model.num_gpus <= max_gpus)
    pairs = [
        (c, x)
        for row, xs in zip(costs, model.picks, strict=True)
        for c, x in zip(row, xs, strict=True)
        if c
    ]
    if pairs:
        model.model.minimize(sum(c * x for c, x in pairs))
    for picks, row in zip(model.picks, hint, strict=False):
        for i, x in enumerate(picks):
            model.model.add_hint(x, i == row)
    solver, status = model.run(work, num_workers)
    bound = floor
    if pairs and model.complete:
        bound += max(solver.best_objective_bound, 0.0) / scale
    if status not in (model.cp.OPTIMAL, model.cp.FEASIBLE):
        proved = model.complete and status == model.cp.INFEASIBLE
        return Result((), (), bound, infeasible=proved)
    rows = tuple(_true(solver, picks) for picks in model.picks)
    return Result(rows, model.packing(solver), bound, infeasible=False)


def _scaled(choices: Sequence[Choices]) -> tuple[float, float, list[list[int]]]:
    """Costs as integers, rounded down so that the model's bound is a bound; scale and offset."""
    floor = math.fsum(c.cost.min() for c in choices)
    spread = math.fsum(c.cost.max() - c.cost.min() for c in choices)
    scale = _COST_STEPS / spread if spread > 0 else 1.0
    steps = [np.floor((c.cost - c.cost.min()) * scale).astype(np.int64).tolist() for c in choices]
    return scale, floor, steps


def _true(solver: Any, picks: Sequence[Any]) -> int:
    return next(i for i, x in enumerate(picks) if solver.boolean_value(x))


def slots(packing: Sequence[CellPacking]) -> Iterator[tuple[Parallelism, Hole, tuple[int, ...]]]:
    """The packing spelled out: kind, hole and GPUs of every replica."""
    for part in packing:
        yield from _slots_of(part)


def _slots_of(part: CellPacking) -> Iterator[tuple[Parallelism, Hole, tuple[int, ...]]]:
    free = {hole: list(hole.gpus) for hole in part.cell.holes}
    for kind in sorted(part.cell.whole, key=lambda k: -k.tp_degree):
        for _ in range(part.num_replicas.get(kind, 0)):
            hole = next(h for h in free if h.takes(kind) and len(free[h]) >= kind.tp_degree)
            yield kind, hole, tuple(free[hole][: kind.tp_degree])
            del free[hole][: kind.tp_degree]
    left = [(hole, gpu) for hole in free for gpu in free[hole]]
    carried = [mix for mix, n in part.num_mixes.items() for _ in range(n)]
    for kind in part.cell.shared:
        yield from _deal(
            kind, part.num_replicas.get(kind, 0), list(zip(left, carried, strict=False))
        )


def _deal(
    kind: Parallelism, groups: int, gpus: Sequence[tuple[tuple[Hole, int], tuple[Parallelism, ...]]]
) -> Iterator[tuple[Parallelism, Hole, tuple[int, ...]]]:
    """Slices dealt to the groups in turn: no group gets two of one GPU."""
    slices = [place for place, mix in gpus for _ in range(min(mix.count(kind), groups))]
    for group in range(groups):
        mine = slices[: groups * kind.tp_degree][group::groups]
        yield kind, mine[0][0], tuple(sorted(gpu for _, gpu in mine))
