"""Pools of GPUs: what of them can be counted in units."""

from __future__ import annotations

import itertools
from functools import cache

import pytest

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search.pools import countable_units, pools_of


@pytest.mark.parametrize(
    ("shares", "units"),
    [
        ([25, 50, 100], 4),
        ([33, 100], 3),
        ([12, 25, 50], 8),
        ([60, 100], 1),
        ([33, 50], 6),
        ([30, 45, 100], 6),
    ],
)
def test_shares_are_counted_where_that_is_exact(shares: list[int], units: int) -> None:
    """A share is 1/n of a GPU where n of it fit, if no mix of them contradicts that."""
    counted = countable_units([Parallelism("a", None, 1, share) for share in shares])
    assert counted is not None
    assert counted[0] == units


@pytest.mark.parametrize("shares", [[30, 40], [60, 40], [20, 40]])
def test_shares_whose_mixes_break_the_count_are_not_counted(shares: list[int]) -> None:
    """Mixes such as 30 + 30 + 40 make counting wrong, so it is not used."""
    assert countable_units([Parallelism("a", None, 1, share) for share in shares]) is None


@pytest.mark.parametrize("shares", [[25, 50], [30, 45], [33, 50], [25, 30], [30, 33, 50]])
def test_counted_shares_fit_exactly_when_their_units_do(shares: list[int]) -> None:
    """The fewest GPUs for any few replicas, by trying every GPU for each, are their units."""
    counted = countable_units([Parallelism("a", None, 1, share) for share in shares])
    assert counted is not None
    per_gpu, units = counted
    for counts in itertools.product(range(4), repeat=len(shares)):
        wanted = [s for s, n in zip(shares, counts, strict=True) for _ in range(n)]
        total = sum(units[Parallelism("a", None, 1, share)] for share in wanted)
        assert fewest_bins(tuple(wanted), ()) == -(-total // per_gpu)


@cache
def fewest_bins(shares: tuple[int, ...], room: tuple[int, ...]) -> int:
    """Fewest GPUs for the shares, where some GPUs have room left."""
    if not shares:
        return len(room)
    first, rest = shares[0], shares[1:]
    best = fewest_bins(rest, tuple(sorted((*room, 100 - first))))
    for i, left in enumerate(room):
        if left >= first:
            after = sorted((*room[:i], left - first, *room[i + 1 :]))
            best = min(best, fewest_bins(rest, tuple(after)))
    return best


def test_links_of_one_type_are_pools_of_their_own() -> None:
    """Groups bound to a link see only its holes; a link nobody uses is no pool."""
    nodes = tuple(
        Node(name=name, gpu_type="a", gpu_memory_gib=80, domains=(Domain(gpus=(0, 1), link=link),))
        for name, link in (("n", "nvlink"), ("p", "pcie"))
    )
    pools = pools_of(
        Topology(nodes), [Parallelism("a", "nvlink", 2, 100), Parallelism("a", "nvlink", 1, 100)]
    )
    assert [pool.num_gpus for pool in pools] == [2]
