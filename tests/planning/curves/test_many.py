"""Latencies of every number of replicas against the chain of each."""

from __future__ import annotations

import numpy as np
import pytest

from scepsy_hpc.planning.curves.bursts import Bursts
from scepsy_hpc.planning.curves.group import group_latencies_s
from scepsy_hpc.planning.curves.many import lanes_of, many_latencies_s
from scepsy_hpc.planning.curves.queueing import Server

_KNOWN = np.unique(np.round(np.geomspace(1, 1024, 40)))
SMOOTH = Server(tuple(_KNOWN.tolist()), tuple((_KNOWN / (1 + _KNOWN / 40)).tolist()))
FLAT = Server((1.0,), (1.0,))
SERVERS = [SMOOTH, FLAT]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("bursts", [Bursts(), Bursts(8.0), Bursts(8.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("needed", [0.5, 10.0, 300.0])
def test_all_numbers_of_replicas(index: int, bursts: Bursts, needed: float) -> None:
    """From the fewest that keep up to a thousand: within 0.4% of each number's own chain."""
    replicas = np.arange(1.0, 1025.0)
    which = np.full(len(replicas), index)
    loads = np.full(len(replicas), needed * SERVERS[index].limit_rps)
    both = [Bursts(3.0), Bursts(3.0)]
    both[index] = bursts
    found = many_latencies_s(SERVERS, which, replicas, loads, both)
    expected = group_latencies_s(SERVERS, lanes_of(SERVERS, which, replicas, loads, both))
    assert np.array_equal(np.isinf(found), replicas <= needed)
    keeps_up = np.isfinite(found)
    np.testing.assert_allclose(found[keeps_up], expected[keeps_up], rtol=4e-3)


def test_one_group_has_the_figure_of_the_table() -> None:
    """Asked for alone a number of replicas takes what it takes among all others."""
    replicas = np.arange(1.0, 1025.0)
    zero = np.zeros(len(replicas), dtype=np.int64)
    loads = np.full(len(replicas), 150.0)
    every = many_latencies_s([SMOOTH], zero, replicas, loads, [Bursts(4.0)])
    for number in (5, 24, 25, 100, 777, 1024):
        row = slice(number - 1, number)
        alone = many_latencies_s([SMOOTH], zero[row], replicas[row], loads[row], [Bursts(4.0)])
        assert alone[0] == pytest.approx(every[number - 1], rel=1e-12)
