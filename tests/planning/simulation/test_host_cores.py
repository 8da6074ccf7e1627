"""Cores that agents share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulation_cases import UNLIMITED, call, plan_of, run_span

from scepsy_hpc.planning.simulation.arrivals import Closed, Open
from scepsy_hpc.planning.simulation.events import simulate_timeline
from scepsy_hpc.planning.simulation.host_cores import HostCores


def test_jobs_share_the_cores_by_hand() -> None:
    """On two cores two jobs run at full pace; with a third, of two cores, all run at half."""
    cores = HostCores(2)
    cores.add("a", 4.0, 1.0, 0.0)
    cores.add("b", 6.0, 1.0, 0.0)
    assert cores.end_s == 4.0
    cores.add("c", 1.0, 2.0, 2.0)  # now 4 cores are asked for
    assert cores.end_s == 4.0
    assert cores.pop() == "c"
    assert cores.end_s == 5.0  # a had 1 s left
    assert cores.pop() == "a"
    assert cores.pop() == "b"
    assert (cores.end_s, cores.width) == (math.inf, 0.0)


def spans(cpu_s: float | None) -> list:
    """A run that thinks for 4 s, calls for 1 s and thinks for 1 s more."""
    root = replace(run_span("r", 0.0, 6.0), cpu_s=cpu_s)
    return [root, call("r", "s", 4.0, 5.0)]


@pytest.mark.parametrize(
    ("cpu_s", "cores", "length_s"),
    [
        (None, 1, 6.0),  # unknown: no waiting is added
        (5.0, None, 6.0),
        (5.0, 4, 6.0),  # enough cores: as it was
        (5.0, 1, 21.0),  # four runs think on one core: 4 x 5 s and the call
        (10.0, 4, 11.0),  # each on two cores: twice as long
        (2.5, 2, 6.0 + 2.5),  # half of the time is CPU, which comes last and takes twice as long
    ],
)
def test_only_waiting_is_added(cpu_s: float | None, cores: int | None, length_s: float) -> None:
    """Four runs in step: what lasts longer is the CPU part, once cores are short."""
    timeline = simulate_timeline(
        plan_of("a"), {"w": spans(cpu_s)}, {"a": UNLIMITED}, Closed(4, 4), cores=cores
    )
    assert timeline.run_end_s == pytest.approx([length_s] * 4)


def test_cores_are_a_queue_of_their_own() -> None:
    """Poisson runs of 1 s CPU on one core at 60%: 1 / (1 - 0.6), processor sharing."""
    root = replace(run_span("r", 0.0, 1.0), cpu_s=1.0)
    timeline = simulate_timeline(
        plan_of("a"), {"w": [root]}, {"a": UNLIMITED}, Open(30_000, 0.6), seed=1, cores=1
    )
    latency_s = np.subtract(timeline.run_end_s, timeline.run_start_s)
    assert latency_s.mean() == pytest.approx(2.5, rel=0.05)
