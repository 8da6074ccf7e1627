"""Least cost with a placement: the relaxation's choice where it fits, else the constraint model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scepsy_hpc.formats.plan import Instance
from scepsy_hpc.planning.search.candidates import Candidates, Space, smallest
from scepsy_hpc.planning.search.placement import num_gpus, place
from scepsy_hpc.planning.search.prices import Known
from scepsy_hpc.planning.search.problem import Method, Option, SearchProblem
from scepsy_hpc.planning.search.relaxation import Relaxation, relax
from scepsy_hpc.planning.search.work import Work

MOST_TRIES = 8  # placements tried at fewer GPUs when the model found nothing


@dataclass(frozen=True, slots=True)
class Found:
    """A choice that is placed (no options: none), and a bound on the cost of every choice."""

    options: tuple[Option, ...]
    instances: tuple[Instance, ...]
    bound: float
    method: Method
    infeasible: bool = False

    @property
    def cost_s(self) -> float:
        """Sum of costs."""
        return math.fsum(option.cost_s for option in self.options)

    @property
    def throughput_rps(self) -> float:
        """Smallest throughput over the LLMs."""
        return min(option.throughput_rps for option in self.options)

    @property
    def num_gpus(self) -> int:
        """GPUs touched."""
        return num_gpus(self.instances)


@dataclass(frozen=True, slots=True, eq=False)
class Fitter:
    """One problem's space, and how much may still be done about it."""

    problem: SearchProblem
    space: Space
    work: Work
    known: Known = field(default_factory=dict)

    def hasty(self, fraction: float) -> Fitter:
        """The same with a fraction of the work that is left."""
        return replace(self, work=self.work.part(fraction))

    def reaching(self, target_rps: float) -> tuple[Candidates, ...] | None:
        """Candidates of finite cost that reach a throughput; None if an LLM has none."""
        kept = tuple(
            g.keep((g.throughput >= target_rps) & np.isfinite(g.cost)) for g in self.space.groups
        )
        return kept if all(len(g) for g in kept) else None

    def relax(self, groups: Sequence[Candidates]) -> Relaxation:
        """The relaxation at every number of GPUs up to the limit."""
        return relax(groups, self.space.pools, self.space.max_gpus)

    def least(
        self, groups: Sequence[Candidates], table: Relaxation, gpus: int, start: Found | None = None
    ) -> Found:
        """Least cost on at most so many GPUs; ``start``: a choice that fits, where one is known."""
        bound = float(table.values[gpus])
        if math.isinf(bound):
            return Found((), (), bound, "dp", infeasible=True)
        fits = self.fits(groups, table, gpus)
        placed = self.placed(groups, table.choice(gpus), gpus) if fits is not False else None
        if placed is not None:
            return replace(placed, bound=bound)
        found = self._by_model(groups, gpus, bound, start)
        if found.options or found.infeasible:
            return found
        tried = self._on_fewer(groups, table, gpus) or self._smallest(groups, gpus)
        return replace(tried, bound=found.bound) if tried is not None else found

    def fits(self, groups: Sequence[Candidates], table: Relaxation, gpus: int) -> bool | None:
        """Whether the relaxation's choice fits by counting; None where counting cannot say."""
        counts = [dict.fromkeys(pool.kinds, 0) for pool in self.space.pools]
        for group, row in zip(groups, table.choice(gpus), strict=True):
            kind = self.space.kinds[group.kind[row]]
            counts[group.pool[row]][kind] += int(group.replicas[row])
        pairs = list(zip(self.space.pools, counts, strict=True))
        if not all(pool.fits(mine) for pool, mine in pairs):
            return False
        return True if all(pool.decides for pool in self.space.pools) else None

    def placed(self, groups: Sequence[Candidates], rows: Sequence[int], gpus: int) -> Found | None:
        """The choice on GPUs, or None."""
        options = tuple(self.space.option(g, r) for g, r in zip(groups, rows, strict=True))
        instances = place(options, self.problem.topology, gpus, self.work.part(0.25))
        return None if instances is None else Found(options, instances, -math.inf, "dp")

    def _by_model(
        self, groups: Sequence[Candidates], gpus: int, bound: float, start: Found | None = None
    ) -> Found:
        from scepsy_hpc.planning.search import lagrangian

        rows = () if start is None else self._rows(groups, start)
        work = self.work.part(0.8)
        result = lagrangian.cheapest(self.space, groups, gpus, work, self.known, rows)
        bound = max(bound, result.bound)
        if start is not None and result.rows == rows:
            return replace(start, bound=bound)
        if not result.rows:
            return Found((), (), bound, "cp_sat", infeasible=result.infeasible)
        options = tuple(self.space.option(g, r) for g, r in zip(groups, result.rows, strict=True))
        instances = place(options, self.problem.topology, gpus, self.work.part(0.5), result.packing)
        assert instances is not None
        return Found(options, instances, bound, "cp_sat")

    def _rows(self, groups: Sequence[Candidates], found: Found) -> tuple[int, ...]:
        """Where the options of a choice stand in the groups."""
        rows = []
        for group, option in zip(groups, found.options, strict=True):
            kind = self.space.kinds.index(option.kind)
            same = (group.kind == kind) & (group.replicas == option.num_replicas)
            rows.append(int(np.flatnonzero(same)[0]))
        return tuple(rows)

    def _smallest(self, groups: Sequence[Candidates], gpus: int) -> Found | None:
        """Any choice that fits, whatever it costs."""
        small = tuple(smallest(group) for group in groups)
        if all(len(s) == len(g) for s, g in zip(small, groups, strict=True)):
            return None
        found = self._by_model(small, gpus, -math.inf)
        return found if found.options else None

    def _on_fewer(self, groups: Sequence[Candidates], table: Relaxation, gpus: int) -> Found | None:
        """The relaxation's choice on fewer GPUs, or the smallest choice: something that fits."""
        for g in self._fewer(table, gpus):
            placed = self.placed(groups, table.choice(g), gpus)
            if placed is not None:
                return placed
        return None

    def _fewer(self, table: Relaxation, gpus: int) -> Iterator[int]:
        finite = np.flatnonzero(np.isfinite(table.values[:gpus]))
        if len(finite):
            spaced = np.linspace(len(finite) - 1, 0, MOST_TRIES).astype(np.int64)
            yield from dict.fromkeys(finite[spaced].tolist())
