"""Fragmented GPUs of two types and shares that do not divide each other, near the highest rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest
from search_checks import check_placed

from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search import cp_sat, work
from scepsy_hpc.planning.search.problem import OptionTable, SearchProblem, Solution
from scepsy_hpc.planning.search.search import solve

NUM_LLMS = 10
GPU_TYPES = ("a", "b")


def problem_of(shares: tuple[int, ...], tps: tuple[int, ...], seed: int) -> SearchProblem:
    """Ten LLMs on what is free of 24 nodes; larger replicas gain less than they take."""
    rng = np.random.default_rng([seed, *shares, *tps])
    nodes = tuple(
        Node(
            name=f"n{i}",
            gpu_type=GPU_TYPES[i % 2],
            gpu_memory_gib=80,
            domains=(Domain(gpus=tuple(range(8)), link="nvlink"),),
            free_gpus=tuple(sorted(rng.choice(8, size=rng.integers(1, 9), replace=False).tolist())),
        )
        for i in range(24)
    )
    topology = Topology(nodes)
    tables = tuple(tables_of(rng, shares, tps, topology.num_gpus))
    return SearchProblem(tables, topology, min_throughput_rps=1.0)


def tables_of(
    rng: np.random.Generator, shares: tuple[int, ...], tps: tuple[int, ...], num_gpus: int
) -> Iterator[OptionTable]:
    """Waiting grows with utilisation; 60% of all capacity is asked for."""
    for llm in range(NUM_LLMS):
        load, latency_s = rng.uniform(0.2, 1.0) * num_gpus / NUM_LLMS, rng.uniform(1, 10)
        for number, gpu_type in enumerate(GPU_TYPES):
            for tp in tps:
                for share in shares:
                    if tp > 1 and share not in (50, 100):
                        continue
                    size = tp**0.8 * (share / 100) ** 0.75 * 0.6**number
                    speed, capacity = size * rng.uniform(0.9, 1.1, size=2)
                    replicas = np.arange(1, num_gpus * 100 // (tp * share) + 1)
                    busy = load / (capacity * replicas)
                    cost = latency_s / speed * (1 + busy**2 / (1 - np.minimum(busy, 0.999)))
                    yield OptionTable(
                        f"m{llm}",
                        gpu_type,
                        "nvlink" if tp > 1 else None,
                        tp,
                        share,
                        replicas,
                        np.where(busy <= 0.95, cost, np.inf),
                        0.95 * capacity * replicas / load,
                    )


def highest(problem: SearchProblem) -> Solution:
    """The largest throughput."""
    return solve(replace(problem, objective="max_throughput", min_throughput_rps=0.0))


@pytest.mark.parametrize(
    ("shares", "tps", "seed"),
    [
        ((30, 45, 100), (1, 2, 4, 8), 0),
        ((30, 45, 100), (1, 2, 4, 8), 1),
        ((20, 30, 45, 100), (1, 2, 4), 0),
        ((30, 50, 100), (1, 2), 1),
    ],
)
def test_gaps_are_small_near_the_highest_rate(
    shares: tuple[int, ...], tps: tuple[int, ...], seed: int
) -> None:
    """Under 5% up to 90% of the highest rate; that one itself is found; none is above its bound."""
    problem = problem_of(shares, tps, seed)
    most = highest(problem)
    assert most.gap < 0.05
    check_placed(most, problem)
    for part, most_gap in ((0.7, 0.05), (0.9, 0.05), (1.0, math.inf)):
        asked = replace(problem, min_throughput_rps=part * most.throughput_rps, work_limit=2.0)
        solution = solve(asked)
        assert solution.gap < most_gap
        assert solution.throughput_rps >= asked.min_throughput_rps
        check_placed(solution, asked)
    beyond = solve(replace(problem, min_throughput_rps=1.01 * most.bound))
    assert beyond.proved_infeasible


@pytest.mark.parametrize("seed", range(2))
def test_shares_that_are_counted_are_proved(seed: int) -> None:
    """30 and 45 count as a third and a half: the best is proved."""
    problem = problem_of((30, 45, 100), (1, 2, 4, 8), seed)
    assert solve(problem).proved
    assert highest(problem).proved


@pytest.mark.parametrize("units", [0.5, 0.01])
def test_no_clock_decides(units: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time limit the clock is not read, and the answer is the same to the last bit."""

    def read() -> NoReturn:
        raise AssertionError("the clock was read")

    monkeypatch.setattr(work.time, "monotonic", read)
    monkeypatch.setattr(cp_sat, "LEAST", 1e-4)
    problem = replace(problem_of((30, 40, 60, 100), (1, 2, 4), 0), work_limit=units)
    for asked in (problem, replace(problem, objective="max_throughput", min_throughput_rps=0.0)):
        assert repr(solve(asked)) == repr(solve(asked))
