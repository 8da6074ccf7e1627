"""Least cost where units do not decide: Lagrangian bounds shorten the lists, the model decides.

The bound of ``prices`` plus the reduced cost of an option bounds every choice with that option. So
options above the best choice known cannot be in the best one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search import cp_sat
from scepsy_hpc.planning.search.candidates import Candidates, Space
from scepsy_hpc.planning.search.prices import Known, price
from scepsy_hpc.planning.search.work import Work

FIRST_SLACK = 0.003  # of the bound; enough in most cases, and it grows by itself
MOST_OPTIONS = 6000  # that the model gets; more would be slow to build


@dataclass(frozen=True, slots=True)
class Packed:
    """``rows`` (one per LLM; empty: none found) and a bound on the cost of every choice."""

    rows: tuple[int, ...]
    packing: tuple[cp_sat.CellPacking, ...]
    bound: float
    infeasible: bool


def cheapest(
    space: Space,
    groups: Sequence[Candidates],
    max_gpus: int,
    work: Work,
    known: Known,
    start: Sequence[int] = (),
) -> Packed:
    """The choice of least cost that can be packed on at most ``max_gpus`` GPUs.

    The lists grow until no option left out could be part of a cheaper choice, or the work ends.
    ``start``: rows of a choice that fits; they come back, without packing, if none is cheaper.
    """
    priced = price(space, groups, max_gpus, known)
    floor, reduced = priced.bound, priced.reduced
    if math.isinf(floor):
        return Packed((), (), floor, infeasible=True)
    best, best_cost = Packed(tuple(start), (), floor, infeasible=False), math.inf
    if start:
        best_cost = math.fsum(g.cost[r] for g, r in zip(groups, start, strict=True))
    slack = FIRST_SLACK * abs(floor)
    while True:
        kept, left_out = _kept(reduced, slack)
        if best.rows:
            kept = [np.union1d(k, r) for k, r in zip(kept, best.rows, strict=True)]
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
