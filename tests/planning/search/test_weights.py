"""Weights of shares: no mix that fits a GPU exceeds one, and no better ones are missed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search.pools import Pool, pools_of
from scepsy_hpc.planning.search.weights import broken, first_weights, patterns_of, slices

SHARES = [(30, 40, 60, 100), (20, 30, 45, 100), (25, 35, 40), (15, 55, 70)]


def pool_of(shares: tuple[int, ...], num_gpus: int) -> Pool:
    """One node of so many GPUs and one-GPU kinds of these shares."""
    domain = Domain(gpus=tuple(range(num_gpus)), link="nvlink")
    node = Node(name="n", gpu_type="a", gpu_memory_gib=80, domains=(domain,))
    (pool,) = pools_of(Topology((node,)), [Parallelism("a", None, 1, s) for s in shares])
    return pool


def mixes(shares: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Every multiset of shares within 100%, counted by share."""
    counts = itertools.product(*(range(100 // share + 1) for share in shares))
    return {c for c in counts if sum(n * s for n, s in zip(c, shares, strict=True)) <= 100}


@pytest.mark.parametrize("shares", SHARES)
def test_patterns_hold_every_mix(shares: tuple[int, ...]) -> None:
    """Patterns fit, and each mix is within one of them."""
    patterns = patterns_of(tuple(sorted(shares, reverse=True)))
    assert patterns is not None
    found = [tuple(reversed(p)) for p in patterns.tolist()]
    assert set(found) <= mixes(shares)
    for mix in mixes(shares):
        assert any(all(n <= m for n, m in zip(mix, p, strict=True)) for p in found)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(10))
def test_weights_refuse_nothing_that_fits(shares: tuple[int, ...], seed: int) -> None:
    """Whatever is wanted, the weights found stay at or below one on every mix."""
    rng = np.random.default_rng(seed)
    pool = pool_of(shares, 4)
    wanted = dict(zip(shares, rng.uniform(0, 8, size=len(shares)).tolist(), strict=True))
    found = [*first_weights(pool), *([w] if (w := broken(pool, wanted)) else [])]
    for weights in found:
        for mix in mixes(shares):
            took = sum(n * weights[s] for n, s in zip(mix, shares, strict=True))
            assert took <= 1 + 1e-9


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(10))
def test_what_mixes_hold_breaks_nothing(shares: tuple[int, ...], seed: int) -> None:
    """Four GPUs of any mixes fit four GPUs; half a GPU more of the fullest does not."""
    rng = np.random.default_rng(seed)
    pool, known = pool_of(shares, 4), sorted(mixes(shares))
    carried = [known[i] for i in rng.integers(len(known), size=4)]
    total = np.sum(carried, axis=0).tolist()
    assert broken(pool, dict(zip(shares, map(float, total), strict=True))) is None
    only = {share: 4.5 * (100 // share) * (share == shares[0]) for share in shares}
    assert broken(pool, only) is not None


def test_slices_of_a_group_lie_on_each_of_its_gpus() -> None:
    """Two groups of two halves are four slices."""
    assert slices([Parallelism("a", "nvlink", 2, 50), Parallelism("a", None, 1, 50)], [2, 1]) == {
        50: 5.0
    }
