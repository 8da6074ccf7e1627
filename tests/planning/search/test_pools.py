"""Pools of GPUs: what of them can be counted in units."""

from __future__ import annotations

import pytest

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search.pools import divisible_units, pools_of


@pytest.mark.parametrize(
    ("shares", "units"),
    [([25, 50, 100], 4), ([33, 100], 3), ([12, 25, 50], 8), ([60, 100], 1)],
)
def test_shares_that_divide_are_counted(shares: list[int], units: int) -> None:
    """A share is 1/n of a GPU where n of it fit, if no mix of them contradicts that."""
    counted = divisible_units([Parallelism("a", None, 1, share) for share in shares])
    assert counted is not None
    assert counted[0] == units


@pytest.mark.parametrize("shares", [[30, 40], [60, 40], [20, 40], [33, 50]])
def test_shares_that_do_not_divide_are_not_counted(shares: list[int]) -> None:
    """Mixes such as 30 + 30 + 40 make counting wrong, so it is not used."""
    assert divisible_units([Parallelism("a", None, 1, share) for share in shares]) is None


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
