"""Exact search: which GPU type, link, TP degree, share and replica count each LLM gets.

GPU units are counted by a multiple-choice knapsack (``relaxation``), which gives the best value at
every number of GPUs at once. Its choice is proved best as soon as it can be placed; where it cannot,
the constraint model (``cp_sat``) decides choice and packing together, and the solution says how far
from the bound it may be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.planning.candidates import Candidates, Space, space_of
from scepsy_hpc.planning.certificate import relative_gap
from scepsy_hpc.planning.options import (
    Floats,
    FrontierPoint,
    Goal,
    Method,
    Option,
    OptionTable,
    Problem,
    Solution,
    tables_of,
)
from scepsy_hpc.planning.placement import num_gpus, place
from scepsy_hpc.planning.plan import Instance
from scepsy_hpc.planning.relaxation import Relaxation, gpus_needed, relax, throughputs

__all__ = [
    "FrontierPoint",
    "Option",
    "OptionTable",
    "Problem",
    "Solution",
    "solve",
    "tables_of",
]

MOST_CHECKS = 32  # frontier points whose placement is tried where units alone do not decide


def solve(problem: Problem) -> Solution:
    """The best choice and placement, a bound on it, and the frontier over the number of GPUs.

    Where nothing meets the target, ``refused`` says why and ``nearest_*`` what would be feasible.
    """
    search = _Search(problem, space_of(problem))
    for llm, group in zip(search.space.llms, search.space.groups, strict=True):
        if not len(group):
            return _nothing(f"{llm}: none of its options fits the free GPUs", proved=True)
    if problem.objective == "min_cost":
        return search.cheapest()
    return search.fastest()


@dataclass(frozen=True, slots=True)
class _Found:
    """A choice that is placed (``options`` empty: none), and what is proved about its goal."""

    options: tuple[Option, ...]
    instances: tuple[Instance, ...]
    bound: float
    method: Method
    infeasible: bool = False

    @property
    def cost_s(self) -> float:
        return math.fsum(o.cost_s for o in self.options)

    @property
    def throughput_rps(self) -> float:
        return min(o.throughput_rps for o in self.options)


class _Search:
    """One problem on its way to a solution; only the clock is state."""

    def __init__(self, problem: Problem, space: Space) -> None:
        self.problem = problem
        self.space = space
        self.ends_s = time.monotonic() + problem.time_limit_s

    # ---- least cost -------------------------------------------------------------------------

    def cheapest(self) -> Solution:
        """Least cost among options that reach the target."""
        target = self.problem.min_throughput_rps
        groups = self.reaching(target)
        if groups is None:
            return self._too_fast(target)
        table = relax(groups, self.space.pools, self.space.max_gpus)
        found = self.least(groups, table, self.space.max_gpus)
        if not found.options:
            return self._too_fast(target) if found.infeasible else _nothing(_OUT_OF_TIME)
        limit = self.problem.max_cost_s
        if limit is not None and found.cost_s > limit:
            return replace(
                _nothing(
                    f"the least cost is {found.cost_s:.6g} s, above the limit of {limit:.6g} s",
                    proved=found.bound > limit,
                ),
                nearest_cost_s=found.cost_s,
            )
        bound = found.bound
        frontier = self._cost_frontier(groups, table, found)
        if self.problem.within_pct is not None:
            ceiling = found.cost_s * (1 + self.problem.within_pct / 100)
            ceiling = min(ceiling, math.inf if limit is None else limit)
            found = self.fewest(groups, table, ceiling, found)
        return self._solution(found, found.cost_s, bound, frontier)

    def reaching(self, target: float) -> tuple[Candidates, ...] | None:
        """Candidates of finite cost that reach a throughput; None if an LLM has none."""
        kept = tuple(
            g.keep((g.throughput >= target) & np.isfinite(g.cost)) for g in self.space.groups
        )
        return kept if all(len(g) for g in kept) else None

    def least(self, groups: Sequence[Candidates], table: Relaxation, gpus: int) -> _Found:
        """Least cost on at most so many GPUs."""
        bound = float(table.values[gpus])
        if math.isinf(bound):
            return _Found((), (), bound, "dp", infeasible=True)
        placed = self._placed(groups, table, gpus)
        if placed is not None:
            return replace(placed, bound=bound)
        return self._by_model(groups, "cost", bound, max_gpus=gpus)

    def _placed(self, groups: Sequence[Candidates], table: Relaxation, gpus: int) -> _Found | None:
        rows = table.choice(gpus)
        options = tuple(self.space.option(g, r) for g, r in zip(groups, rows, strict=True))
        instances = place(options, self.problem.topology, gpus, self._left() / 4)
        return None if instances is None else _Found(options, instances, -math.inf, "dp")

    def _left(self) -> float:
        return max(self.ends_s - time.monotonic(), 0.05)

    def fewest(
        self, groups: Sequence[Candidates], table: Relaxation, ceiling: float, best: _Found
    ) -> _Found:
        """Fewest GPUs whose cost stays under a ceiling, then least cost on them."""
        start = table.fewest_gpus(ceiling)
        assert start is not None
        placed = self._placed(groups, table, start)
        if placed is not None:
            return placed
        tight = self._by_model(groups, "gpus", 0.0, max_gpus=self.space.max_gpus, max_cost=ceiling)
        if not tight.options:
            return best
        gpus = num_gpus(tight.instances)
        again = self._by_model(groups, "cost", -math.inf, max_gpus=gpus)
        return again if again.options and again.cost_s <= ceiling else tight

    def _cost_frontier(
        self, groups: Sequence[Candidates], table: Relaxation, found: _Found
    ) -> tuple[FrontierPoint, ...]:
        """One point wherever another GPU lowers the bound."""
        values = table.values
        steps = np.flatnonzero(np.r_[True, values[1:] < values[:-1]] & np.isfinite(values))
        if self.space.decides:
            return tuple(FrontierPoint(int(g), float(values[g]), float(values[g])) for g in steps)
        tried = set(steps[np.unique(np.linspace(0, len(steps) - 1, MOST_CHECKS).astype(int))])
        used = num_gpus(found.instances)
        best: float | None = None
        points = []
        for g in sorted({*steps.tolist(), used}):
            if g in tried and g != used and self._fits(groups, table, g):
                best = float(values[g])
            if g >= used:
                best = min(found.cost_s, math.inf if best is None else best)
            points.append(FrontierPoint(g, best, float(values[g])))
        return tuple(points)

    def _fits(self, groups: Sequence[Candidates], table: Relaxation, gpus: int) -> bool:
        """Whether the choice at so many GPUs can be placed, without the constraint model."""
        if not all(pool.decides for pool in self.space.pools):
            return False
        rows = table.choice(gpus)
        for number, pool in enumerate(self.space.pools):
            counts = dict.fromkeys(pool.kinds, 0)
            for group, row in zip(groups, rows, strict=True):
                if group.pool[row] == number:
                    counts[self.space.kinds[group.kind[row]]] += int(group.replicas[row])
            if not pool.fits(counts):
                return False
        return True

    # ---- largest throughput -----------------------------------------------------------------

    def fastest(self) -> Solution:
        """Largest smallest throughput, then least cost."""
        found, bound = self._fastest(self.space.max_gpus)
        if not found.options:
            return self._too_dear() if found.infeasible else _nothing(_OUT_OF_TIME)
        frontier = self._rate_frontier(found)
        if self.problem.within_pct is not None:
            found = self._fast_on_few(found)
        target = self.problem.min_throughput_rps
        if found.throughput_rps < target:
            return self._too_fast(target)
        return self._solution(found, found.throughput_rps, bound, frontier)

    def _fastest(self, gpus: int) -> tuple[_Found, float]:
        levels = self.levels()
        level = self._highest(levels, gpus)
        if level is None:
            return _Found((), (), math.inf, "dp", infeasible=True), math.inf
        groups = self.reaching(levels[level])
        assert groups is not None
        table = relax(groups, self.space.pools, gpus)
        placed = self._placed(groups, table, gpus)
        if placed is not None:
            return placed, float(levels[level])
        return self._fastest_by_model(levels[: level + 1], gpus)

    def levels(self) -> Floats:
        """Distinct throughputs of options of finite cost."""
        groups = self.reaching(0.0)
        return np.zeros(0) if groups is None else throughputs(groups)

    def _highest(self, levels: Floats, gpus: int) -> int | None:
        """Index of the largest level that the relaxation does not rule out."""
        groups = self.reaching(0.0)
        if groups is None or not len(levels):
            return None
        allowed = np.flatnonzero(gpus_needed(groups, self.space.pools, levels) <= gpus)
        if not len(allowed):
            return None
        low, high = -1, int(allowed[-1])
        if self.problem.max_cost_s is None and len(self.space.pools) == 1:
            return high
        while low < high:
            middle = high if low < 0 and high - low == 1 else (low + high + 1) // 2
            low, high = (middle, high) if self._allows(levels[middle], gpus) else (low, middle - 1)
        return low if low >= 0 else None

    def _allows(self, level: float, gpus: int) -> bool:
        groups = self.reaching(level)
        if groups is None:
            return False
        limit = self.problem.max_cost_s
        if limit is None:
            groups = tuple(_smallest(g) for g in groups)
        values = relax(groups, self.space.pools, gpus).values
        return bool(values[-1] <= (math.inf if limit is None else limit)) and math.isfinite(
            values[-1]
        )

    def _fastest_by_model(self, levels: Floats, gpus: int) -> tuple[_Found, float]:
        groups = self.reaching(0.0)
        assert groups is not None
        limit = self.problem.max_cost_s
        first = self._by_model(
            groups, "rank", len(levels) - 1.0, max_gpus=gpus, max_cost=limit, levels=levels
        )
        if not first.options:
            return first, float(levels[-1])
        bound = float(levels[round(first.bound)])
        again = self.reaching(first.throughput_rps)
        assert again is not None
        table = relax(again, self.space.pools, gpus)
        second = self.least(again, table, gpus)
        return second if second.options and second.cost_s <= first.cost_s else first, bound

    def _fast_on_few(self, best: _Found) -> _Found:
        assert self.problem.within_pct is not None
        floor = best.throughput_rps * (1 - self.problem.within_pct / 100)
        groups = self.reaching(floor)
        assert groups is not None
        ceiling = math.inf if self.problem.max_cost_s is None else self.problem.max_cost_s
        table = relax(groups, self.space.pools, self.space.max_gpus)
        few = self.fewest(groups, table, min(ceiling, np.finfo(float).max), best)
        gpus = num_gpus(few.instances)
        found, _ = self._fastest(gpus)
        return found if found.options and found.throughput_rps >= few.throughput_rps else few

    def _rate_frontier(self, found: _Found) -> tuple[FrontierPoint, ...]:
        levels = self.levels()
        groups = self.reaching(0.0)
        assert groups is not None
        needed = gpus_needed(groups, self.space.pools, levels)
        sure = self.space.decides and len(self.space.pools) == 1
        sure = sure and self.problem.max_cost_s is None
        used = num_gpus(found.instances)
        points = []
        for g in sorted({*np.unique(needed[needed <= self.space.max_gpus]).tolist(), used}):
            top = float(levels[np.flatnonzero(needed <= g)[-1]])
            known = top if sure else found.throughput_rps if g >= used else None
            points.append(FrontierPoint(int(g), known, top))
        return tuple(points)

    # ---- the constraint model ---------------------------------------------------------------

    def _by_model(
        self,
        groups: Sequence[Candidates],
        goal: Goal,
        bound: float,
        *,
        max_gpus: int,
        max_cost: float | None = None,
        levels: Floats | None = None,
    ) -> _Found:
        from scepsy_hpc.planning import cp_sat

        short = [_shortlist(g) for g in groups]
        choices = [
            cp_sat.Choices(
                g.kind,
                g.replicas,
                g.cost,
                np.zeros(len(g), dtype=np.int64)
                if levels is None
                else np.searchsorted(levels, g.throughput, side="right") - 1,
            )
            for g in short
        ]
        limits = cp_sat.Limits(max_gpus, max_cost, None)
        result = cp_sat.choose(
            self.space.kinds, choices, self.space.pools, goal, limits, self._left()
        )
        better = min if goal == "rank" else max
        bound = better(bound, result.bound) if math.isfinite(result.bound) else bound
        if not result.rows:
            return _Found((), (), bound, "cp_sat", infeasible=result.infeasible)
        options = tuple(self.space.option(g, r) for g, r in zip(short, result.rows, strict=True))
        instances = place(options, self.problem.topology, max_gpus, self._left())
        if instances is None:
            return _Found((), (), bound, "cp_sat")
        return _Found(options, instances, bound, "cp_sat")

    # ---- answers ----------------------------------------------------------------------------

    def _solution(
        self, found: _Found, value: float, bound: float, frontier: tuple[FrontierPoint, ...]
    ) -> Solution:
        return Solution(
            chosen={o.llm: o for o in found.options},
            instances=found.instances,
            value=value,
            bound=bound,
            gap=relative_gap(value, bound),
            cost_s=found.cost_s,
            throughput_rps=found.throughput_rps,
            num_gpus=num_gpus(found.instances),
            method=found.method,
            frontier=frontier,
        )

    def _too_fast(self, target: float) -> Solution:
        """Nothing reaches the target: say what could be reached, and on how many GPUs."""
        free = replace(
            self.problem, objective="max_throughput", min_throughput_rps=0.0, within_pct=None
        )
        best = solve(free)
        nearest = best.throughput_rps if best.is_feasible else None
        said = f"at most {nearest:.6g} runs/s are feasible" if nearest else "nothing is feasible"
        return replace(
            _nothing(f"{target:.6g} runs/s are out of reach: {said}", proved=True),
            nearest_throughput_rps=nearest,
        )

    def _too_dear(self) -> Solution:
        return _nothing("no choice fits the free GPUs within the limits", proved=True)


_OUT_OF_TIME = "nothing was found within the time limit"


def _nothing(why: str, proved: bool = False) -> Solution:
    nan = math.nan
    return Solution({}, (), nan, nan, nan, nan, nan, 0, "dp", refused=why, proved_infeasible=proved)


def _smallest(group: Candidates) -> Candidates:
    """The option of fewest units in each pool."""
    order = np.lexsort((group.units, group.pool))
    first = np.r_[True, np.diff(group.pool[order]) > 0]
    return group.keep(order[first])


def _shortlist(group: Candidates) -> Candidates:
    """Options that no other of the same kind beats with fewer replicas at no more cost."""
    order = np.lexsort((group.cost, group.replicas, group.kind))
    kept = group.keep(order)
    good = np.ones(len(kept), dtype=bool)
    for kind in np.unique(kept.kind):
        rows = np.flatnonzero(kept.kind == kind)
        cost = kept.cost[rows]
        good[rows[1:]] = cost[1:] < np.minimum.accumulate(cost)[:-1]
    return kept.keep(good)
