"""The load-dependent server against closed forms of queueing theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.curves.queueing import Server, mean_latencies_s


def _mm_c(num_servers: int, service_s: float) -> Server:
    """c equal servers: X(k) = min(k, c) / service."""
    if num_servers == 1:
        return Server((1.0,), (1.0 / service_s,))
    return Server((1.0, float(num_servers)), (1.0 / service_s, num_servers / service_s))


def latency_s(server: Server, loads_rps: float | Floats, burst: int = 1) -> Floats:
    """Mean latencies of one server at these loads."""
    loads = np.asarray(loads_rps, dtype=np.float64)
    which, bursts = np.zeros(loads.size, dtype=np.int64), np.full(loads.size, burst)
    return mean_latencies_s([server], which, loads.ravel(), bursts).reshape(loads.shape)


def _erlang_c_latency_s(num_servers: int, service_s: float, load: float) -> float:
    offered = load * service_s
    tail = offered**num_servers / math.factorial(num_servers) / (1 - offered / num_servers)
    head = sum(offered**k / math.factorial(k) for k in range(num_servers))
    return service_s + tail / (head + tail) * service_s / (num_servers - offered)


@pytest.mark.parametrize("utilisation", [0.01, 0.5, 0.9, 0.95, 0.999])
def test_one_server_is_mm1(utilisation: float) -> None:
    """A flat curve is M/M/1: latency 1 / (mu - lambda), up to the edge of its capacity."""
    server = _mm_c(1, 0.25)
    load = utilisation * 4.0
    assert float(latency_s(server, load)) == pytest.approx(1.0 / (4.0 - load), rel=1e-9)


@pytest.mark.parametrize("num_servers", [2, 5, 16, 60])
@pytest.mark.parametrize("utilisation", [0.1, 0.7, 0.95])
def test_linear_curve_is_mmc(num_servers: int, utilisation: float) -> None:
    """A curve that rises in proportion up to c calls is M/M/c (Erlang C)."""
    load = utilisation * num_servers / 0.5
    got = float(latency_s(_mm_c(num_servers, 0.5), load))
    assert got == pytest.approx(_erlang_c_latency_s(num_servers, 0.5, load), rel=1e-9)


@pytest.mark.parametrize("burst", [2, 3, 7, 40])
@pytest.mark.parametrize("utilisation", [0.05, 0.5, 0.9])
def test_bursts_on_one_server(burst: int, utilisation: float) -> None:
    """Batches of b calls on one server are M^[b]/M/1: latency (b + 1) / 2 / (mu - lambda)."""
    got = float(latency_s(_mm_c(1, 1.0), utilisation, burst))
    assert got == pytest.approx((burst + 1) / 2 / (1 - utilisation), rel=1e-9)


def test_bursts_agree_with_a_long_chain() -> None:
    """On a curve with several slopes, bursts give what the chain cut at 4,000 states gives."""
    server = Server((1.0, 4.0, 10.0, 12.5), (1.0, 3.0, 4.0, 4.2))
    load, burst, size = 3.6, 5, 4000
    weights = np.zeros(size)
    weights[0] = 1.0
    for k in range(1, size):
        rate = float(np.interp(k, (0, 1, 4, 10, 12.5), (0, 1, 3, 4, 4.2)))
        weights[k] = load / burst * weights[max(k - burst, 0) : k].sum() / rate
    expected = (np.arange(size) * weights).sum() / weights.sum() / load
    assert float(latency_s(server, load, burst)) == pytest.approx(expected, rel=1e-9)


def test_deterministic_service_is_bounded() -> None:
    """The exponential server is no better than M/D/1 and no worse than twice its waiting."""
    load, service_s = 0.8, 1.0
    md1_wait_s = load * service_s**2 / (2 * (1 - load))
    wait_s = float(latency_s(_mm_c(1, service_s), load)) - service_s
    assert md1_wait_s <= wait_s <= 2 * md1_wait_s + 1e-9


def test_vector_equals_scalar_and_grows_with_load_and_burst() -> None:
    """Many loads at once give what one at a time gives; more load or larger bursts never help."""
    server = Server((1.0, 8.0, 64.0), (1.0, 5.0, 20.0))
    loads = np.linspace(0.0, 19.5, 40)
    for burst in (1, 3, 9):
        together = latency_s(server, loads, burst)
        alone = [float(latency_s(server, load, burst)) for load in loads]
        np.testing.assert_allclose(together, alone, rtol=1e-12)
        assert np.all(np.diff(together) >= -1e-9)
    assert np.all(latency_s(server, loads, 9) >= latency_s(server, loads, 3) - 1e-12)


def test_many_servers_at_once() -> None:
    """Lanes of different servers, loads and bursts do not disturb each other."""
    servers = [_mm_c(1, 1.0), _mm_c(7, 0.5), Server((2.0, 300.0), (1.0, 20.0))]
    which = np.array([0, 1, 2, 2, 0, 1])
    loads = np.array([0.5, 13.0, 19.0, 0.1, 2.0, 4.0])
    bursts = np.array([1, 4, 4, 1, 1, 2])
    together = mean_latencies_s(servers, which, loads, bursts)
    alone = [
        float(latency_s(servers[w], load, int(b)))
        for w, load, b in zip(which, loads, bursts, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_no_load_and_too_much() -> None:
    """An idle replica has the latency of one call, or of its own burst; an overloaded one none."""
    server = Server((1.0, 4.0), (2.0, 4.0))
    assert float(latency_s(server, 0.0)) == pytest.approx(0.5, rel=1e-6)
    assert float(latency_s(server, 0.0, 2)) > 0.5
    assert math.isinf(float(latency_s(server, 4.0)))
    assert math.isinf(float(latency_s(server, 5.0)))


def test_latency_is_flat_below_the_first_point() -> None:
    """With a first point at 8 calls, fewer calls in flight take as long as 8 do."""
    server = Server((8.0, 16.0), (4.0, 6.0))
    assert server.closed(1.0) == pytest.approx((0.5, 2.0))
    assert server.closed(8.0) == pytest.approx((4.0, 2.0))
    assert server.closed(12.0) == pytest.approx((5.0, 12.0 / 5.0))
    assert server.closed(32.0) == pytest.approx((6.0, 32.0 / 6.0))
    assert float(latency_s(server, 0.0)) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("slots", [256, 2048])
@pytest.mark.parametrize("burst", [1, 16])
def test_wide_servers_do_not_overflow(slots: int, burst: int) -> None:
    """Thousands of slots keep finite weights: far from saturation the latency is the service."""
    server = Server((1.0, float(slots)), (0.1, 0.1 * slots))
    assert float(latency_s(server, 0.04 * slots, burst)) == pytest.approx(10.0, rel=1e-5)


@pytest.mark.parametrize("burst", [1, 4])
@pytest.mark.parametrize("load", [0.5, 3.9])
def test_call_states_have_the_mean_latency(burst: int, load: float) -> None:
    """The distribution over states averages to the mean latency, and is one."""
    server = Server((1.0, 4.0, 10.0), (1.0, 3.0, 4.0))
    states, weights = server.call_states(load, burst)
    assert weights.sum() == pytest.approx(1.0)
    mean_s = float((weights * states / server.rate_rps(states)).sum())
    assert mean_s == pytest.approx(float(latency_s(server, load, burst)), rel=1e-3)


def test_falling_curve_is_limited_by_its_end() -> None:
    """Capacity is the largest throughput, but arrivals above the last one pile up."""
    server = Server((1.0, 8.0, 32.0), (1.0, 5.0, 4.0))
    assert (server.capacity_rps, server.limit_rps) == (5.0, 4.0)
    assert math.isinf(float(latency_s(server, 4.5)))


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


def test_an_overloaded_replica_has_no_states() -> None:
    """States of a replica that cannot keep up are refused by value."""
    with pytest.raises(ValueError, match=r"arrivals_rps \(1\) must be below the limit \(1\)"):
        Server((1.0,), (1.0,)).call_states(1.0)
