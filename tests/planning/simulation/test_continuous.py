"""Engine steps as the simulated engine takes them, one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence as Many

import pytest
from simulation_cases import MODEL

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.engines.simulated.batching import RunningBatch, Sequence
from scepsy_hpc.planning.simulation.continuous import ContinuousBatching, Engine
from scepsy_hpc.planning.simulation.prefix_cache import Stretch, paths_of
from scepsy_hpc.planning.simulation.replicas import Size

Jobs = list[tuple[float, int, int]]
Paths = Many[tuple[Stretch, ...]]


def drawn(rng: random.Random, number: int, repeats: float = 0.0) -> tuple[Jobs, Paths]:
    """Calls (arrival, input, output tokens); some go on from an earlier one."""
    now_s, jobs, prefixes = 0.0, Jobs(), []
    for index in range(number):
        now_s += rng.choice([0.0, rng.expovariate(2.0), rng.expovariate(20.0)])
        inputs, prefix = rng.randint(1, 1500), None
        if index and rng.random() < repeats:
            before = rng.randrange(max(0, index - 12), index)
            whole = jobs[before][1] + jobs[before][2]
            shared = rng.choice([whole, rng.randint(0, whole)])
            if shared < 1300:
                inputs, prefix = shared + rng.randint(1, 200), (before, shared)
        prefixes.append(prefix)
        jobs.append((now_s, inputs, rng.choice([1, rng.randint(1, 200)])))
    return jobs, paths_of(prefixes, [inputs + outputs for _, inputs, outputs in jobs])


def test_steps_equal_those_of_the_engine() -> None:
    """Jumping over steps gives each call the end that the simulated engine's own steps give it.

    Small caches preempt, and both preempt as often.
    """
    rng, preempted = random.Random(1), 0
    for _ in range(40):
        budget, seats = rng.choice([256, 2048]), rng.choice([4, 64])
        growth_s, cache = rng.choice([0.0, 3e-7]), rng.choice([None, 2000.0, 5000.0])
        model = EngineModel(0.01, 5e-5, 2e-4, growth_s, budget, seats, cache)
        jobs, _ = drawn(rng, 40)
        replica, batch = ContinuousBatching(Engine(model)), in_engine(model)
        assert ends_of(replica, jobs) == pytest.approx(ends_in_engine(batch, jobs)[0], abs=1e-9)
        assert replica.num_preempted == batch.num_preemptions
        preempted += replica.num_preempted
    assert preempted > 20


def test_hits_are_those_of_the_engine_block_by_block() -> None:
    """The engine names every block and forgets the least recently used; here stretches are counted.

    Where two calls compute the same tokens at once the two count their copies differently: totals
    agree within half a percent, nearly all cases exactly.
    """
    rng, same, hits, wanted = random.Random(2), 0, 0, 0
    for _ in range(60):
        cache = rng.choice([None, 3000.0, 5000.0, 20_000.0])
        model = EngineModel(0.01, 5e-5, 2e-4, 3e-7, rng.choice([256, 2048]), 16, cache)
        jobs, paths = drawn(rng, 60, repeats=0.7)
        replica, batch = ContinuousBatching(Engine(model)), in_engine(model)
        ends, (in_engine_ends, found) = (
            ends_of(replica, jobs, paths),
            ends_in_engine(batch, jobs, paths),
        )
        same += ends == pytest.approx(in_engine_ends, abs=1e-6) and replica.cached_tokens == found
        hits, wanted = hits + replica.cached_tokens, wanted + found
        assert ends == pytest.approx(in_engine_ends, rel=0.02)
    assert same >= 50
    assert hits == pytest.approx(wanted, rel=0.005)
    assert hits > 100_000


def ends_of(replica: ContinuousBatching, jobs: Jobs, paths: Paths = ()) -> list[float]:
    """When each call ends in a replica."""
    found = [0.0] * len(jobs)

    def pop() -> None:
        end_s = replica.end_s
        for ended in replica.pop():
            found[ended] = end_s

    for index, (now_s, inputs, outputs) in enumerate(jobs):
        while replica.end_s <= now_s:
            pop()
        path = paths[index] if paths else ()
        replica.add(index, Size(1.0, inputs, inputs, outputs), now_s, 0, path)
    while replica.end_s < math.inf:
        pop()
    assert replica.in_flight == 0
    return found


def in_engine(model: EngineModel) -> RunningBatch:
    """The simulated engine's batch."""
    window_s = Engine(model).join_window_s
    return RunningBatch(model, max_num_seqs=model.max_num_seqs or 256, join_window_s=window_s)


def ends_in_engine(batch: RunningBatch, jobs: Jobs, paths: Paths = ()) -> tuple[list[float], int]:
    """When each call ends there, and the tokens that all of them found in its cache."""
    sequences = []
    for index, (now_s, inputs, outputs) in enumerate(jobs):
        batch.advance(now_s)
        path = paths[index] if paths else ()
        chain = tuple((part.owner, n) for part in path for n in range(part.first, part.last))
        sequences.append(Sequence(inputs, outputs, chain))
        batch.add(sequences[-1], now_s)
    while batch.step_end_s is not None:
        batch.advance(batch.step_end_s)
    ends = [sequence.finished_s or math.nan for sequence in sequences]
    return ends, sum(sequence.cached_tokens or 0 for sequence in sequences)


def test_lone_call_takes_its_steps() -> None:
    """A call alone takes its prefill step and a decode step per further token, exactly."""
    (end_s,) = ends_of(ContinuousBatching(Engine(MODEL)), [(1.0, 300, 4)])
    prefill_s = 0.01 + 300 * 5e-5
    decodes_s = sum(0.01 + 2e-4 + 3e-7 * context for context in (301, 302, 303))
    assert end_s == pytest.approx(1.0 + prefill_s + decodes_s)


def test_a_call_beyond_the_cache_is_let_run_alone() -> None:
    """An engine would refuse it at once; here it takes as long as with room, and ends."""
    small = EngineModel(0.01, 5e-5, 2e-4, 3e-7, 512, 16, 160.0)
    large = EngineModel(0.01, 5e-5, 2e-4, 3e-7, 512, 16, None)
    jobs = [(0.0, 300, 50), (0.0, 200, 20)]
    ends = ends_of(ContinuousBatching(Engine(small)), jobs)
    assert ends[0] == ends_of(ContinuousBatching(Engine(large)), jobs[:1])[0]
    assert ends[1] > ends[0]


def test_what_all_runs_share_is_found_even_in_an_empty_cache() -> None:
    """200 of 300 tokens need no prefill, whether or not the call has a path; context is in full."""
    size = Size(1.0, 100, 300, 1)
    for path in ((), (Stretch(0, 0, 18),)):
        replica = ContinuousBatching(Engine(MODEL))
        replica.add(0, size, 0.0, 0, path)
        assert replica.end_s == pytest.approx(0.01 + 100 * 5e-5)
