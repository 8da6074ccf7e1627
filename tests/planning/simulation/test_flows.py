"""Which traced runs come."""

from __future__ import annotations

import numpy as np

from scepsy_hpc.planning.simulation.flows import sampled


def test_which_runs_are_run() -> None:
    """In file order while they last; beyond that every traced run equally often, but for one."""
    chance = np.random.default_rng(0)
    assert sampled(5, 3, chance) == [0, 1, 2]
    drawn = sampled(5, 23, chance)
    counts = np.bincount(drawn, minlength=5)
    assert sorted(counts.tolist()) == [4, 4, 5, 5, 5]
    assert drawn != sorted(drawn)
