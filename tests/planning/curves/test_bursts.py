"""What goes together in a group: theory where there is one, else the slow simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from queueing_cases import SIZES, Case, hosted, predicted, reference

from scepsy_hpc.planning.curves.bursts import Bursts, gap_of, mixed

EQUAL = Bursts(8.0, 0.0, 0.0, 0.0)


def together(bursts: Bursts, replicas: float, utilisation: float) -> float:
    """Of one group."""
    return float(bursts.together(np.array([replicas]), np.array([utilisation]))[0])


@pytest.mark.parametrize("replicas", [1.0, 3.0, 500.0])
@pytest.mark.parametrize("utilisation", [0.0, 0.5, 0.99])
def test_equal_calls_go_together(replicas: float, utilisation: float) -> None:
    """A fan-out of equal calls begins and ends as one, wherever; a call alone is alone."""
    assert together(EQUAL, replicas, utilisation) == pytest.approx(8.0)
    assert together(Bursts(8.0, 0.0, 0.0, 0.0, 5.0), replicas, utilisation) == pytest.approx(8.0)
    assert together(Bursts(), replicas, utilisation) == 1.0


def test_exponential_calls_on_one_replica() -> None:
    """(b + 1) / 2 at every load, as M^[b]/M/1 has it."""
    for busy in (0.0, 0.4, 1.0):
        assert together(Bursts(8.0), 1.0, busy) == pytest.approx(4.5)
    # On many replicas more of them, less so the fuller they are.
    spread = [together(Bursts(8.0), 8.0, busy) for busy in (0.1, 0.5, 0.9, 1.0)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] == pytest.approx(4.5)


def test_heavy_traffic() -> None:
    """In a full replica work left over decides: 1 + (b - 1) / (1 + c^2) for iid calls.

    Runs of n fan-outs of exponential calls: (1 + n b) / (2 + (n - 1) H(b)), H(4) = 25 / 12.
    """
    wide = Bursts(4.0, 1.5, 1.5, 0.557)
    assert together(wide, 1.0, 1.0) == pytest.approx(1.0 + 3.0 / 3.25)
    assert together(wide, 1.0, 0.0) == pytest.approx(1.0 + 3.0 * 0.443)
    runs = Bursts(4.0, rounds=4.0)
    assert together(runs, 1.0, 1.0) == pytest.approx(17.0 / (2.0 + 3.0 * 25 / 12), rel=1e-4)
    # Calls of one fan-out alike, of different ones not: they still end together.
    assert together(Bursts(4.0, 1.5, 0.0, 0.0), 1.0, 0.7) == pytest.approx(4.0)


def test_replicas_out_of_balance() -> None:
    """One replica never is; equal calls hardly; between the rows of the table nothing jumps."""
    some = np.geomspace(1.0, 4096.0, 200)
    busy = np.full(200, 0.9)
    uneven = Bursts().uneven(some, busy)
    assert uneven[0] == 0.0
    assert np.all((uneven >= 0.0) & (uneven < 0.2))
    assert np.abs(np.diff(uneven)).max() < 0.02
    assert np.all(EQUAL.uneven(some, busy) <= 0.21 * uneven)
    assert Bursts().uneven(np.array([8.0]), np.array([0.0]))[0] == 0.0


def test_mixed_bursts() -> None:
    """One call in four comes in fives of twice the work, equal; the rest alone, as exponential.

    Works 1.6 and 0.8: E[w^2] = 0.25 x 1.6^2 + 0.75 x 0.8^2 x 2 = 1.6, so the cv is sqrt(0.6).
    """
    found = mixed([(0.25, 1.6, Bursts(5.0, 0.0, 0.0, 0.0)), (0.75, 0.8, Bursts())])
    assert found.size == 2.0
    assert found.work_cv == pytest.approx(math.sqrt(0.6))
    assert (found.pair_cv, found.pair_gap) == (0.0, 0.0)
    alone = mixed([(1.0, 1.0, Bursts(1.0, 0.5, 0.5, 0.25))])
    assert alone == Bursts(1.0, pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.25))


def test_gap_of_a_cv() -> None:
    """None for equal calls, a half for exponential ones."""
    assert (gap_of(0.0), gap_of(1.0)) == (0.0, 0.5)


def test_demand_says_how_calls_come() -> None:
    """Spans of four rounds of four exponential calls: sizes, spread and rounds of their bursts."""
    pipeline, host = hosted(Case("prefill", 2, 4, 4, "exponential", 0.5))
    found = host.load(pipeline.rates_rps).bursts
    assert (found.size, found.rounds) == (pytest.approx(4.0), pytest.approx(4.0))
    assert found.work_cv == pytest.approx(1.0, abs=0.05)
    assert found.pair_gap == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("curve", "replicas", "fan_out", "rounds"),
    [("prefill", 1, 4, 1), ("prefill", 4, 4, 1), ("decode", 2, 8, 1), ("prefill", 1, 4, 4)],
)
@pytest.mark.parametrize("utilisation", [0.4, 0.7])
def test_calls_take_what_the_slow_simulation_says(
    curve: str, replicas: int, fan_out: int, rounds: int, sizes: str, utilisation: float
) -> None:
    """Within 5% of a simulation that shares no code, beyond its own interval."""
    case = Case(curve, replicas, fan_out, rounds, sizes, utilisation)
    truth = reference(case, 12_000 if rounds == 1 else 40_000)
    off_s = abs(predicted(case).call_s - truth.call_s) - truth.call_half_s
    assert off_s <= 0.05 * truth.call_s
