"""Seeded search problems of many sizes, and what makes the hard ones hard.

Synthetic option tables: each LLM has TP 1, 2, 4, 8 and shares of one GPU; a replica's speed and
capacity grow less than its GPUs do, with 10% noise, and waiting grows with utilisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search.problem import OptionTable, SearchProblem
from scepsy_hpc.planning.search.search import solve


@dataclass(frozen=True)
class Case:
    """One instance: its name, size, and what makes it hard.

    ``num_gpus``: nodes are added until there are so many free GPUs, instead of ``num_nodes``.
    ``near_highest``: the rate asked for, over the highest found; None: 60% of all capacity.
    """

    name: str
    num_llms: int
    num_nodes: int
    fragmented: bool = False
    gpu_types: tuple[str, ...] = ("h100_sxm",)
    shares_pct: tuple[int, ...] = (25, 50, 100)
    tp_degrees: tuple[int, ...] = (1, 2, 4, 8)
    shared_groups: bool = False
    num_gpus: int | None = None
    near_highest: float | None = None
    seed: int = 0


TWO_TYPES = ("h100_sxm", "a100_sxm")
CASES = (
    Case("5 LLMs, 16 GPUs", 5, 2),
    Case("20 LLMs, 256 GPUs", 20, 32),
    Case("20 LLMs, 1,024 GPUs", 20, 128),
    Case("5 LLMs, 4 fragmented nodes", 5, 4, fragmented=True),
    Case("20 LLMs, 64 fragmented nodes", 20, 64, fragmented=True),
    Case("20 LLMs, 228 fragmented nodes", 20, 228, fragmented=True),
    Case("20 LLMs, 256 GPUs of two types", 20, 32, gpu_types=("h100_sxm", "a100_sxm")),
    Case("20 LLMs, 1,024 GPUs of two types", 20, 128, gpu_types=("h100_sxm", "a100_sxm")),
    Case("20 LLMs, 64 fragm. nodes, two types", 20, 64, True, ("h100_sxm", "a100_sxm")),
    Case("5 LLMs, 16 GPUs, shares 30/40/60", 5, 2, shares_pct=(30, 40, 60, 100)),
    Case("20 LLMs, 256 GPUs, shares 30/40/60", 20, 32, shares_pct=(30, 40, 60, 100)),
    Case("20 LLMs, 64 fragm. nodes, 30/40/60", 20, 64, True, shares_pct=(30, 40, 60, 100)),
    Case("20 LLMs, 64 fragm. nodes, TP 1/2/3/6", 20, 64, True, tp_degrees=(1, 2, 3, 6)),
    Case("10 LLMs, 8 fragm. nodes, TP on halves", 10, 8, True, shared_groups=True),
)


def _hard(shares_pct: tuple[int, ...], seed: int, near_highest: float | None = None) -> Case:
    said = "/".join(map(str, shares_pct))
    at = "" if near_highest is None else f" at {near_highest:.0%}"
    return Case(
        f"30 LLMs, {said}{at}, seed {seed}",
        30,
        496,
        True,
        TWO_TYPES,
        shares_pct,
        num_gpus=496,
        near_highest=near_highest,
        seed=seed,
    )


HARD_CASES = (
    *(_hard((30, 45, 100), seed) for seed in range(3)),
    *(_hard((30, 45, 100), seed, 0.98) for seed in range(3)),
    *(_hard((20, 30, 45, 100), seed, near) for seed in range(2) for near in (None, 0.98)),
    *(_hard((30, 40, 60, 100), seed, near) for seed in range(2) for near in (None, 0.98)),
    Case(
        "10 LLMs, 60 fragm. GPUs, TP on halves",
        10,
        60,
        True,
        TWO_TYPES,
        (30, 45, 50, 100),
        shared_groups=True,
        num_gpus=60,
        near_highest=0.98,
    ),
)
"""Fragmented GPUs of two types, shares that do not divide each other, rates near the highest."""


def topology_of(case: Case) -> Topology:
    """Nodes of 8 GPUs in one NVLink domain; fragmented ones have 1 to 8 of them free."""
    rng = np.random.default_rng(case.seed)
    nodes = []
    for i in range(case.num_nodes):
        free = sorted(rng.choice(8, size=rng.integers(1, 9), replace=False).tolist())
        node = Node(
            name=f"node{i:03}",
            gpu_type=case.gpu_types[i % len(case.gpu_types)],
            gpu_memory_gib=80,
            domains=(Domain(gpus=tuple(range(8)), link="nvlink"),),
            free_gpus=tuple(free) if case.fragmented else None,
        )
        nodes.append(node)
    made = Topology(tuple(nodes))
    return made if case.num_gpus is None else _trimmed(made, case.num_gpus)


def _trimmed(topology: Topology, num_gpus: int) -> Topology:
    """The first nodes that have so many free GPUs, the last one with as many as are needed."""
    nodes, left = [], num_gpus
    for node in topology.nodes:
        if left:
            nodes.append(replace(node, free_gpus=node.free[:left]))
            left -= len(nodes[-1].free)
    return Topology(tuple(nodes))


def tables_for(case: Case, num_gpus: int) -> Iterator[OptionTable]:
    """Option tables that need 60% of the GPUs' capacity at the target of one run a second."""
    rng = np.random.default_rng(case.seed + 1)
    for llm in range(case.num_llms):
        load = rng.uniform(0.2, 1.0) * num_gpus / case.num_llms
        latency_s = rng.uniform(1, 10)
        for number, gpu_type in enumerate(case.gpu_types):
            for tp in case.tp_degrees:
                for share in case.shares_pct:
                    if tp > 1 and share < 100 and not (case.shared_groups and share == 50):
                        continue
                    slower = 0.6**number
                    speed = tp**0.8 * (share / 100) ** 0.7 * slower * rng.uniform(0.9, 1.1)
                    capacity = tp**0.75 * (share / 100) ** 0.8 * slower * rng.uniform(0.9, 1.1)
                    replicas = np.arange(1, num_gpus * 100 // (tp * share) + 1)
                    busy = load / (capacity * replicas)
                    with np.errstate(divide="ignore"):
                        cost = latency_s / speed * (1 + busy**2 / (1 - np.minimum(busy, 0.999)))
                    yield OptionTable(
                        f"llm{llm}",
                        gpu_type,
                        "nvlink" if tp > 1 else None,
                        tp,
                        share,
                        replicas,
                        np.where(busy <= 0.95, cost, np.inf),
                        0.95 * capacity * replicas / load,
                    )


def problem_of(case: Case) -> SearchProblem:
    """The least-cost problem of a case."""
    topology = topology_of(case)
    tables = tuple(tables_for(case, topology.num_gpus))
    problem = SearchProblem(tables, topology, "min_cost", min_throughput_rps=1.0)
    if case.near_highest is None:
        return problem
    highest = solve(replace(problem, objective="max_throughput", min_throughput_rps=0.0))
    return replace(problem, min_throughput_rps=case.near_highest * highest.throughput_rps)
