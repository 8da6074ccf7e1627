"""What a share takes of a GPU: weights under which no mix of shares that fits takes more than one.

Any such weights bound what fits a pool: the weights of all replicas together are at most its GPUs.
Counted in plain percent, 45 and 45 leave room that no third replica can use; as halves they do
not. The weights of the linear relaxation over all mixes (Gilmore and Gomory 1961) are the best
there are, and are found where a fractional choice breaks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search.pools import Pool

MOST_PATTERNS = 3000
_VIOLATED = 1e-6  # GPUs

Weights = Mapping[int, float]
"""GPUs, by share in percent; a replica takes so much on each GPU of its group."""


def first_weights(pool: Pool) -> list[Weights]:
    """Roundings of the shares; none where units count exactly.

    The dual feasible functions of Fekete and Schepers (2001): whatever shares fit one GPU, their
    rounded values do, too. A share above a half becomes a whole GPU at one part.
    """
    shares = shares_of(pool)
    if pool.countable or not shares:
        return []
    return [{share: _rounded(share, parts) for share in shares} for parts in (1, 2, 3)]


def shares_of(pool: Pool) -> tuple[int, ...]:
    """The shares of a pool's kinds, largest first."""
    return tuple(sorted({kind.gpu_share_pct for kind in pool.kinds}, reverse=True))


def _rounded(share: int, parts: int) -> float:
    scaled = share * (parts + 1)
    return scaled / 100 / (parts + 1) if scaled % 100 == 0 else scaled // 100 / parts


def broken(pool: Pool, used: Mapping[int, float]) -> Weights | None:
    """The weights that a fractional choice breaks most; None where the mixes could hold it.

    ``used``: slices of each share, summed over replicas and the GPUs of their groups.
    """
    shares = shares_of(pool)
    patterns = None if pool.countable else patterns_of(shares)
    if patterns is None:
        return None
    wanted = np.array([used.get(share, 0.0) for share in shares])
    found = _heaviest(wanted, patterns)
    found /= max(1.0, float((patterns @ found).max()))
    if float(found @ wanted) <= pool.num_gpus + _VIOLATED:
        return None
    return dict(zip(shares, found.tolist(), strict=True))


@cache
def patterns_of(shares: tuple[int, ...]) -> Ints | None:
    """How many of each share one GPU can carry, shape (patterns, shares); None: too many."""
    found: list[tuple[int, ...]] = []
    stack: list[tuple[tuple[int, ...], int]] = [((), 100)]
    while stack:
        counts, left = stack.pop()
        if len(counts) == len(shares):
            found.append(counts)
        else:
            most = left // shares[len(counts)]
            # The last share fills what is left: fewer of it would be no more than that.
            least = most if len(counts) == len(shares) - 1 else 0
            stack += [
                ((*counts, n), left - n * shares[len(counts)]) for n in range(least, most + 1)
            ]
        if len(found) + len(stack) > MOST_PATTERNS:
            return None
    return np.array(found, dtype=np.int64)


def _heaviest(wanted: Floats, patterns: Ints) -> Floats:
    """Weights of the largest sum over what is wanted, at most one on each pattern."""
    from ortools.linear_solver import pywraplp

    solver: Any = pywraplp.Solver.CreateSolver("GLOP")
    weights = [solver.NumVar(0.0, 1.0, "") for _ in wanted]
    for pattern in patterns.tolist():
        solver.Add(sum(n * w for n, w in zip(pattern, weights, strict=True) if n) <= 1.0)
    solver.Maximize(sum(float(n) * w for n, w in zip(wanted, weights, strict=True)))
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return np.zeros(len(wanted))
    return np.array([max(w.solution_value(), 0.0) for w in weights])


def weight_of(weights: Weights, kind: Parallelism) -> float:
    """GPUs that a replica of a kind takes."""
    return kind.tp_degree * weights[kind.gpu_share_pct]


def slices(kinds: Sequence[Parallelism], replicas: Sequence[float]) -> dict[int, float]:
    """Slices of each share that so many replicas of the kinds take."""
    used: dict[int, float] = {}
    for kind, n in zip(kinds, replicas, strict=True):
        used[kind.gpu_share_pct] = used.get(kind.gpu_share_pct, 0.0) + kind.tp_degree * n
    return used
