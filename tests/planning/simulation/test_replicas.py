"""One replica: shared processors by hand, engine steps as the simulated engine takes them."""

from __future__ import annotations

import math
import random

import pytest
from simulation_cases import MODEL

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.engines.simulated.batching import RunningBatch, Sequence
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.simulation.continuous import ContinuousBatching, Engine
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


def test_steps_equal_those_of_the_engine() -> None:
    """Jumping over steps gives each call the end that the simulated engine's own steps give it."""
    rng = random.Random(1)
    for _ in range(30):
        budget, seats = rng.choice([256, 2048]), rng.choice([4, 64])
        growth_s, cache = rng.choice([0.0, 3e-7]), rng.choice([None, 3000.0])
        model = EngineModel(0.01, 5e-5, 2e-4, growth_s, budget, seats, cache)
        now_s, jobs = 0.0, []
        for _ in range(40):
            now_s += rng.choice([0.0, rng.expovariate(2.0), rng.expovariate(20.0)])
            jobs.append((now_s, rng.randint(1, 1500), rng.choice([1, rng.randint(1, 200)])))
        assert ends_of(model, jobs) == pytest.approx(ends_in_engine(model, jobs), abs=1e-9)


Jobs = list[tuple[float, int, int]]


def ends_of(model: EngineModel, jobs: Jobs) -> list[float]:
    """When each call (arrival, input, output tokens) ends in a replica."""
    replica, found = ContinuousBatching(Engine(model)), [0.0] * len(jobs)

    def pop() -> None:
        end_s = replica.end_s
        for ended in replica.pop():
            found[ended] = end_s

    for index, (now_s, inputs, outputs) in enumerate(jobs):
        while replica.end_s <= now_s:
            pop()
        replica.add(index, Size(1.0, inputs, inputs, outputs), now_s)
    while replica.end_s < math.inf:
        pop()
    assert replica.in_flight == 0
    return found


def ends_in_engine(model: EngineModel, jobs: Jobs) -> list[float]:
    """The same in the simulated engine's batch."""
    window_s = Engine(model).join_window_s
    batch = RunningBatch(model, max_num_seqs=model.max_num_seqs or 256, join_window_s=window_s)
    sequences = []
    for now_s, inputs, outputs in jobs:
        batch.advance(now_s)
        sequences.append(Sequence(inputs, outputs))
        batch.add(sequences[-1], now_s)
    while batch.step_end_s is not None:
        batch.advance(batch.step_end_s)
    return [sequence.finished_s or math.nan for sequence in sequences]


def test_lone_call_takes_its_steps() -> None:
    """A call alone takes its prefill step and a decode step per further token, exactly."""
    (end_s,) = ends_of(MODEL, [(1.0, 300, 4)])
    prefill_s = 0.01 + 300 * 5e-5
    decodes_s = sum(0.01 + 2e-4 + 3e-7 * context for context in (301, 302, 303))
    assert end_s == pytest.approx(1.0 + prefill_s + decodes_s)
