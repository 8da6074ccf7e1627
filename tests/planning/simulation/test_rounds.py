"""Calls that are sent together: exact latencies on a known state, tails as simulation has them."""

from __future__ import annotations

import numpy as np
import pytest
from queueing_cases import Case, predicted, reference
from simulation_cases import UNLIMITED, curve

from scepsy_hpc.planning.curves.bursts import Bursts
from scepsy_hpc.planning.pipeline.pipeline import GroupLoad
from scepsy_hpc.planning.simulation.rounds import Rounds, States

FLAT = curve((1.0,), (1.0,))


def _rounds(*works: tuple[float, ...]) -> Rounds:
    """One run a round."""
    flat = np.array([w for mine in works for w in mine])
    rounds = np.repeat(np.arange(len(works)), [len(mine) for mine in works])
    return Rounds.of(np.arange(len(flat)), flat, rounds, np.arange(len(works)))


def test_works_share_their_replica() -> None:
    """Works 1, 2 and 4 on an idle flat replica end after 3, 5 and 7; beside another after 4, 7, 11.

    Rounds do not touch each other; on three replicas each call is alone.
    """
    rounds = _rounds((4.0, 1.0, 2.0), (5.0,))
    order = np.argsort(rounds.nodes)
    none = np.zeros((4, 1))
    alone = rounds.latencies_s(GroupLoad(FLAT, 0.1), none)[order, 0]
    assert alone == pytest.approx([7.0, 3.0, 5.0, 5.0])
    beside = rounds.latencies_s(GroupLoad(FLAT, 0.1), none + 1.0)[order, 0]
    assert beside == pytest.approx([11.0, 4.0, 7.0, 10.0])
    apart = rounds.latencies_s(GroupLoad(FLAT, 0.1, 3), none)[order, 0]
    assert apart == pytest.approx([4.0, 1.0, 2.0, 5.0])


def test_the_mean_is_that_of_the_pipeline() -> None:
    """Whatever the works, drawn latencies average to the group's mean times the mean work."""
    rng = np.random.default_rng(1)
    rounds = _rounds(*(tuple(rng.exponential(size=4)) for _ in range(500)))
    load = GroupLoad(FLAT, 1.4, 2, Bursts(4.0))
    states = States.of(load)
    draws = rng.standard_normal((500, 200))[rounds.rounds]
    drawn = states.stretch(rounds) * rounds.latencies_s(load, states.found(rounds, draws))
    assert drawn.mean() == pytest.approx(load.latency_s * rounds.works.mean(), rel=0.03)


def test_where_load_changes_nothing_all_draws_are_one() -> None:
    """X(k) = k: a call takes its work, whatever it finds."""
    rounds = _rounds((1.0, 3.0))
    states = States.of(GroupLoad(UNLIMITED, 5.0))
    found = states.found(rounds, np.linspace(-4, 4, 9)[None, :].repeat(2, axis=0))
    latency_s = states.stretch(rounds) * rounds.latencies_s(states.load, found)
    assert latency_s == pytest.approx(np.array([[1.0] * 9, [3.0] * 9]), rel=1e-6)


def test_long_calls_see_the_mean() -> None:
    """A call that outlives what it finds hardly differs; a short one takes it as it is."""
    rounds = _rounds((1e-3,), (1e4,))
    states = States.of(GroupLoad(FLAT, 0.5))
    found = states.found(rounds, np.array([[-2.0, 2.0], [-2.0, 2.0]]))
    spread = found[:, 1] - found[:, 0]
    assert spread[0] > 2.0
    assert spread[1] < 0.05 * spread[0]


@pytest.mark.parametrize(
    "case",
    [
        Case("prefill", 1, 1, 4, "exponential", 0.7),
        Case("prefill", 4, 4, 1, "equal", 0.7),
        Case("decode", 4, 1, 4, "lognormal 1.5", 0.7),
        Case("decode", 1, 4, 4, "exponential", 0.4),
        Case("prefill", 8, 4, 1, "lognormal 1.5", 0.7),
    ],
)
def test_p95_of_runs_is_what_the_slow_simulation_says(case: Case) -> None:
    """Within 15% of a simulation that shares no code, beyond its own interval."""
    truth = reference(case, 25_000)
    off_s = abs(predicted(case).run_p95_s - truth.run_p95_s) - truth.run_p95_half_s
    assert off_s <= 0.15 * truth.run_p95_s
