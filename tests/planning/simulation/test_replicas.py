"""One replica: shared processors by hand."""

from __future__ import annotations

import math

import pytest

from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.simulation.replicas import ProcessorSharing, Size

ONE = Size(1.0, 10, 10, 10)


def test_processor_sharing_by_hand() -> None:
    """Two calls of size 1 at half a second's distance share one call per second: 1.5 s and 2 s."""
    replica = ProcessorSharing(Server((1.0,), (1.0,)))
    replica.add(1, ONE, 0.0)
    assert replica.end_s == 1.0
    replica.add(2, ONE, 0.5)
    assert replica.end_s == 1.5
    assert replica.pop() == [1]
    assert replica.end_s == 2.0
    assert replica.pop() == [2]
    assert (replica.end_s, replica.in_flight) == (math.inf, 0)


def test_processor_sharing_follows_the_curve() -> None:
    """k calls that start together end together after k / X(k), sizes stretch their own time."""
    server = Server((1.0, 4.0), (1.0, 2.5))
    for k in (1, 2, 3, 4, 9):
        replica = ProcessorSharing(server)
        for index in range(k):
            replica.add(index, ONE, 0.0)
        assert replica.end_s == pytest.approx(k / float(server.rate_rps(k)))
    replica = ProcessorSharing(Server((1.0, 64.0), (1.0, 64.0)))
    replica.add(1, Size(2.5, 10, 10, 10), 0.0)
    assert replica.end_s == 2.5
