"""The load-dependent server of one replica: what its points say between and beyond them."""

from __future__ import annotations

import pytest

from scepsy_hpc.planning.curves.queueing import Server


def test_latency_is_flat_below_the_first_point() -> None:
    """With a first point at 8 calls, fewer calls in flight take as long as 8 do."""
    server = Server((8.0, 16.0), (4.0, 6.0))
    assert server.closed(1.0) == pytest.approx((0.5, 2.0))
    assert server.closed(8.0) == pytest.approx((4.0, 2.0))
    assert server.closed(12.0) == pytest.approx((5.0, 12.0 / 5.0))
    assert server.closed(32.0) == pytest.approx((6.0, 32.0 / 6.0))


def test_falling_curve_is_limited_by_its_end() -> None:
    """Capacity is the largest throughput, but arrivals above the last one pile up."""
    server = Server((1.0, 8.0, 32.0), (1.0, 5.0, 4.0))
    assert (server.capacity_rps, server.limit_rps) == (5.0, 4.0)


@pytest.mark.parametrize(
    ("concurrency", "throughput"),
    [((), ()), ((1.0,), (0.0,)), ((2.0, 1.0), (1.0, 2.0)), ((1.0, 1.0), (1.0, 2.0))],
)
def test_bad_points_are_refused(
    concurrency: tuple[float, ...], throughput: tuple[float, ...]
) -> None:
    """No points, zero throughput, and concurrencies that do not ascend are refused by value."""
    with pytest.raises(ValueError, match=r"server|above 0|ascend"):
        Server(concurrency, throughput)
