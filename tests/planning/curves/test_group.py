"""Groups of replicas: against closed forms of queueing theory and chains summed state by state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.curves.group import Lanes, group_latencies_s, group_states
from scepsy_hpc.planning.curves.queueing import Server

BENT = Server((1.0, 4.0, 16.0, 64.0), (1.0, 3.0, 8.0, 13.0))
LONG = Server((1.0, 8.0, 64.0, 1024.0), (1.0, 5.0, 20.0, 40.0))
FALLING = Server((1.0, 8.0, 32.0), (1.0, 5.0, 4.0))
LATE = Server((8.0, 16.0), (4.0, 6.0))
SERVERS = (Server((1.0,), (1.0,)), Server((1.0, 60.0), (2.0, 120.0)), BENT, LONG, FALLING, LATE)


def _mm_c(num_servers: int, service_s: float) -> Server:
    """c equal servers: X(k) = min(k, c) / service."""
    if num_servers == 1:
        return Server((1.0,), (1.0 / service_s,))
    return Server((1.0, float(num_servers)), (1.0 / service_s, num_servers / service_s))


def lane(replicas: float, load_rps: float, together: float = 1.0, uneven: float = 0.0) -> Lanes:
    """One group on the first server."""
    return Lanes(
        np.zeros(1, dtype=np.int64),
        *(np.array([float(x)]) for x in (replicas, load_rps, together, uneven)),
    )


def latency_s(
    server: Server, load_rps: float, replicas: int = 1, together: float = 1.0, uneven: float = 0.0
) -> float:
    """Mean latency of one group."""
    return float(group_latencies_s([server], lane(replicas, load_rps, together, uneven))[0])


def _erlang_c_latency_s(num_servers: int, service_s: float, load: float) -> float:
    offered = load * service_s
    tail = offered**num_servers / math.factorial(num_servers) / (1 - offered / num_servers)
    head = sum(offered**k / math.factorial(k) for k in range(num_servers))
    return service_s + tail / (head + tail) * service_s / (num_servers - offered)


def summed_s(server: Server, replicas: int, load: float, together: float, uneven: float) -> float:
    """The chain's mean latency, its states summed one by one until X is flat, then in closed form.

    X is that of balanced replicas, of which the part ``uneven`` has one call less, as many more.
    """
    last = math.ceil(server.concurrency[-1])
    whole = server.rate_rps(np.arange(last + 4, dtype=np.float64))
    for n in range(1, last + 3):
        left, middle, right = server.rate_rps(np.array([n - 1.0, n, n + 1.0]))
        whole[n] += uneven * (left - 2 * middle + right)
    states = np.arange(1, math.ceil((last + 1) * replicas / together) + 2)
    calls = states * together / replicas
    rates: Floats = replicas * np.interp(calls, np.arange(len(whole)), whole)
    logs = np.concatenate([[0.0], np.cumsum(np.log(load) - np.log(rates))])
    weights = np.exp(logs - logs.max())
    ratio = load / (replicas * server.limit_rps)
    mass = weights[-1] * ratio / (1 - ratio)
    lots = (np.arange(len(weights)) * weights).sum() + mass * (len(states) + 1 / (1 - ratio))
    return float(together * lots / (weights.sum() + mass) / load)


@pytest.mark.parametrize("utilisation", [0.01, 0.5, 0.9, 0.95, 0.999])
def test_one_server_is_mm1(utilisation: float) -> None:
    """A flat curve is M/M/1: latency 1 / (mu - lambda), up to the edge of its capacity."""
    load = utilisation * 4.0
    assert latency_s(_mm_c(1, 0.25), load) == pytest.approx(1.0 / (4.0 - load), rel=1e-9)


@pytest.mark.parametrize("num_servers", [2, 5, 16, 60])
@pytest.mark.parametrize("utilisation", [0.1, 0.7, 0.95])
def test_linear_curve_is_mmc(num_servers: int, utilisation: float) -> None:
    """A curve that rises in proportion up to c calls is M/M/c (Erlang C)."""
    load = utilisation * num_servers / 0.5
    expected = _erlang_c_latency_s(num_servers, 0.5, load)
    assert latency_s(_mm_c(num_servers, 0.5), load) == pytest.approx(expected, rel=1e-9)
    # As balanced replicas of one slot each: the same server.
    group = latency_s(_mm_c(1, 0.5), load, replicas=num_servers)
    assert group == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("replicas", [1, 7, 300])
def test_without_limit_a_call_takes_as_long_as_alone(replicas: int) -> None:
    """M/M/inf: thousands of slots, far from full; nothing overflows, whatever comes together."""
    wide = Server((1.0, 2048.0), (0.1, 204.8))
    for together in (1.0, 16.0):
        found = latency_s(wide, 0.4 * replicas * 204.8, replicas, together)
        assert found == pytest.approx(10.0, rel=1e-5)


@pytest.mark.parametrize("burst", [2, 3, 7, 40])
@pytest.mark.parametrize("utilisation", [0.05, 0.5, 0.9])
def test_exponential_bursts_on_a_flat_curve(burst: int, utilisation: float) -> None:
    """Lots of (b + 1) / 2 are M^[b]/M/1: latency (b + 1) / 2 / (mu - lambda)."""
    found = latency_s(_mm_c(1, 1.0), utilisation, together=(burst + 1) / 2)
    assert found == pytest.approx((burst + 1) / 2 / (1 - utilisation), rel=1e-9)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("replicas", [1, 3, 40])
@pytest.mark.parametrize("together", [1.0, 1.7, 9.0])
@pytest.mark.parametrize("uneven", [0.0, 0.05])
def test_few_states_stand_for_all(
    server: Server, replicas: int, together: float, uneven: float
) -> None:
    """What the grid leaves out does not matter: the same as the sum over every state."""
    for utilisation in (1e-6, 0.3, 0.7, 0.9, 0.95, 0.999):
        load = utilisation * replicas * server.limit_rps
        found = latency_s(server, load, replicas, together, uneven)
        expected = summed_s(server, replicas, load, together, uneven)
        assert found == pytest.approx(expected, rel=3e-4)


def test_many_groups_at_once() -> None:
    """Lanes of different servers, loads and replicas do not disturb each other."""
    rng = np.random.default_rng(3)
    number = 5000
    which = rng.integers(0, len(SERVERS), number)
    replicas = rng.integers(1, 1000, number).astype(np.float64)
    limits = np.array([s.limit_rps for s in SERVERS])[which]
    loads = replicas * limits * rng.uniform(0.0, 1.05, number)
    lanes = Lanes(which, replicas, loads, rng.uniform(1, 9, number), rng.uniform(0, 0.1, number))
    together = group_latencies_s(SERVERS, lanes)
    for i in (*range(0, number, 251), number - 1):
        one = Lanes(
            np.zeros(1, dtype=np.int64),
            *(
                a[i : i + 1]
                for a in (lanes.num_replicas, lanes.loads_rps, lanes.together, lanes.uneven)
            ),
        )
        alone = group_latencies_s([SERVERS[which[i]]], one)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-9)
    assert np.all(np.isinf(together) == (loads >= replicas * limits * (1 - 1e-9)))


def test_many_replicas_tend_to_the_fluid_limit() -> None:
    """At the same load each, ever more replicas take what balanced ones without chance would."""
    in_flight = 10.0  # between points: X(10) = 5.5 calls a second
    load = float(BENT.rate_rps(in_flight))
    errors = [abs(latency_s(BENT, r * load, r) * load / in_flight - 1) for r in (1, 4, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < 1e-3 < errors[0]


def test_no_load_and_too_much() -> None:
    """An idle group has the latency of one call, or of its own lot; an overloaded one none."""
    server = Server((1.0, 4.0), (2.0, 4.0))
    assert latency_s(server, 0.0) == pytest.approx(0.5, rel=1e-6)
    assert latency_s(server, 0.0, together=4.0) == pytest.approx(1.0, rel=1e-6)
    assert latency_s(server, 0.0, 4, together=4.0) == pytest.approx(0.5, rel=1e-6)
    assert latency_s(LATE, 0.0) == pytest.approx(2.0, rel=1e-6)
    assert math.isinf(latency_s(server, 4.0))
    assert math.isinf(latency_s(server, 8.0, 2))
    assert math.isinf(latency_s(FALLING, 4.5))


@pytest.mark.parametrize("server", [BENT, LONG, SERVERS[0]])
@pytest.mark.parametrize("replicas", [1, 5, 400])
@pytest.mark.parametrize("utilisation", [0.1, 0.9])
def test_states_have_the_mean_latency(server: Server, replicas: int, utilisation: float) -> None:
    """The distribution over states averages to the mean latency, and is one."""
    load = utilisation * replicas * server.limit_rps
    calls, parts, rates = group_states(server, lane(replicas, load, 2.0))
    assert parts.sum() == pytest.approx(1.0)
    mean_s = float((parts * calls / rates).sum())
    assert mean_s == pytest.approx(latency_s(server, load, replicas, 2.0), rel=2e-3)


def test_an_overloaded_group_has_no_states() -> None:
    """States of a group that cannot keep up are refused by value."""
    with pytest.raises(ValueError, match=r"arrivals_rps \(2\) must be below the limit \(2\)"):
        group_states(SERVERS[0], lane(2, 2.0))
