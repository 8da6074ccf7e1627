"""Times the search alone beside CP-SAT, and the whole command: ``python bench/planner.py``.

Synthetic, seeded option tables: each LLM has TP 1, 2, 4, 8 and shares of one GPU; a replica's
speed and capacity grow less than its GPUs do, with 10% noise, and waiting grows with utilisation.
CP-SAT gets every option that reaches the target and is not beaten by fewer replicas of its kind,
with the same packing constraints, and a time limit. Its costs include building the model.
``whole_command.py`` says what the command gets.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from whole_command import COMMANDS, timed_command

from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search import cp_sat
from scepsy_hpc.planning.search.candidates import Candidates, space_of
from scepsy_hpc.planning.search.problem import OptionTable, SearchProblem, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.search.work import Work


@dataclass(frozen=True)
class Case:
    """One instance: its name, size, and what makes it hard."""

    name: str
    num_llms: int
    num_nodes: int
    fragmented: bool = False
    gpu_types: tuple[str, ...] = ("h100_sxm",)
    shares_pct: tuple[int, ...] = (25, 50, 100)
    tp_degrees: tuple[int, ...] = (1, 2, 4, 8)
    shared_groups: bool = False
    seed: int = 0


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
    return SearchProblem(tables, topology, "min_cost", min_throughput_rps=1.0)


def timed(problem: SearchProblem) -> tuple[Solution, float]:
    """The solution and the seconds it took."""
    start = time.perf_counter()
    solution = solve(problem)
    return solution, time.perf_counter() - start


def undominated(group: Candidates) -> Candidates:
    """Options not beaten by fewer replicas of their kind."""
    order = np.lexsort((group.cost, group.replicas, group.kind))
    kept: list[int] = []
    for row in order.tolist():
        new = not kept or group.kind[kept[-1]] != group.kind[row]
        if new or group.cost[row] < group.cost[kept[-1]]:
            kept.append(row)
    return group.keep(np.array(kept))


def by_cp_sat(
    problem: SearchProblem, limit_s: float, num_workers: int
) -> tuple[float, float, float]:
    """Value, bound and seconds of CP-SAT alone on the instance (value inf: none found)."""
    space = space_of(problem)
    groups = [
        undominated(g.keep((g.throughput >= 1.0) & np.isfinite(g.cost))) for g in space.groups
    ]
    choices = [cp_sat.Choices(g.kind, g.replicas, g.cost) for g in groups]
    start = time.perf_counter()
    result = cp_sat.choose_and_pack(
        space.kinds,
        choices,
        space.pools,
        space.max_gpus,
        Work.within(0.0, limit_s),
        num_workers=num_workers,
    )
    took_s = time.perf_counter() - start
    if not result.rows:
        return math.inf, result.bound, took_s
    value = math.fsum(g.cost[row] for g, row in zip(groups, result.rows, strict=True))
    return value, result.bound, took_s


def measure(case: Case, cp_sat_limit_s: float, num_workers: int) -> dict[str, object]:
    """One row of the table."""
    problem = problem_of(case)
    solution, first_s = timed(problem)
    again_s = min(timed(problem)[1] for _ in range(3 if first_s < 1 else 1))
    fast, fast_s = timed(replace(problem, objective="max_throughput", min_throughput_rps=0.0))
    row: dict[str, object] = {
        "case": case.name,
        "num_gpus": problem.topology.num_gpus,
        "num_options": sum(len(t.cost_s) for t in problem.tables),
        "method": solution.method,
        "search_s": again_s,
        "first_s": first_s,
        "gap": solution.gap,
        "max_throughput_s": fast_s,
        "max_throughput_gap": fast.gap,
    }
    if cp_sat_limit_s > 0:
        value, bound, took_s = by_cp_sat(problem, cp_sat_limit_s, num_workers)
        row |= {
            "cp_sat_s": took_s,
            "cp_sat_gap": abs(value - bound) / abs(bound) if math.isfinite(value) else None,
            "cp_sat_value_over_ours": value / solution.value if math.isfinite(value) else None,
            "times_slower": took_s / again_s,
        }
    return row


def line(row: dict[str, object]) -> str:
    """One row as text; times in milliseconds."""

    def pct(key: str) -> str:
        value = row.get(key)
        return "-" if value is None else f"{float(str(value)):.4%}"

    def ms(key: str) -> str:
        return f"{1000 * float(str(row[key])):,.1f}" if key in row else "-"

    ratio = row.get("cp_sat_value_over_ours")
    cells = [
        f"{row['case']:<38}",
        f"{row['num_gpus']:>6}",
        f"{row['method']:>7}",
        f"{ms('search_s'):>10}",
        f"{pct('gap'):>9}",
        f"{ms('max_throughput_s'):>10}",
        f"{pct('max_throughput_gap'):>9}",
        f"{ms('cp_sat_s'):>10}",
        f"{pct('cp_sat_gap'):>9}",
        f"{'-' if ratio is None else format(float(str(ratio)), '.5f'):>8}",
    ]
    return " ".join(cells)


HEADER = " ".join(
    [
        f"{'case':<38}",
        f"{'GPUs':>6}",
        f"{'method':>7}",
        f"{'search ms':>10}",
        f"{'gap':>9}",
        f"{'max-thr ms':>10}",
        f"{'gap':>9}",
        f"{'CP-SAT ms':>10}",
        f"{'gap':>9}",
        f"{'its/ours':>8}",
    ]
)


def main() -> None:
    """Print the table, or with ``--json`` one object a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cp-sat-limit-s", type=float, default=20.0, help="0: leave CP-SAT out")
    parser.add_argument("--cp-sat-workers", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.json:
        print(
            "search: least cost; max-thr: largest throughput; CP-SAT: least cost; '-': none found"
        )
        print(HEADER)
    for case in CASES:
        if given.only in case.name:
            row = measure(case, given.cp_sat_limit_s, given.cp_sat_workers)
            print(json.dumps(row) if given.json else line(row), flush=True)
    for command in COMMANDS:
        if given.only in command.name:
            took_s = timed_command(command)
            made = {"case": command.name, "command_s": took_s}
            print(json.dumps(made) if given.json else f"{command.name}: {took_s:.2f} s", flush=True)


if __name__ == "__main__":
    main()
