"""Times the search alone beside CP-SAT, and the whole command: ``python bench/planner.py``.

The instances stand in ``planner_cases.py``, the hard ones last; those are searched again while the
machine is busy, and must give the same bytes. CP-SAT gets every option that reaches the target and
is not beaten by fewer replicas of its kind, with the same packing constraints, and a time limit.
Its costs include building the model. ``whole_command.py`` says what the command gets. A whole run
writes ``planner.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from planner_cases import CASES, HARD_CASES, Case, problem_of
from whole_command import COMMANDS, timed_command

from scepsy_hpc.planning.search import cp_sat
from scepsy_hpc.planning.search.candidates import Candidates, space_of
from scepsy_hpc.planning.search.problem import SearchProblem, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.search.work import Work

NUM_BURNERS = 4
OUTPUT = Path(__file__).parent / "planner.json"


def timed(problem: SearchProblem) -> tuple[Solution, float]:
    """The solution and the seconds it took."""
    start = time.perf_counter()
    solution = solve(problem)
    return solution, time.perf_counter() - start


def digest(solution: Solution) -> str:
    """Of all that a search answers."""
    chosen = [(llm, *o.kind, o.num_replicas) for llm, o in solution.chosen.items()]
    said = (chosen, solution.instances, solution.value, solution.bound, solution.frontier)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def is_same_when_busy(problem: SearchProblem, wanted: str) -> bool:
    """Whether the search answers the same while four processes keep the machine busy."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NUM_BURNERS)
    ]
    try:
        return digest(solve(problem)) == wanted
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


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
        "seed": case.seed,
        "num_gpus": problem.topology.num_gpus,
        "num_options": sum(len(t.cost_s) for t in problem.tables),
        "method": solution.method,
        "search_s": again_s,
        "first_s": first_s,
        "gap": solution.gap,
        "proved": solution.proved,
        "work": solution.work,
        "max_throughput_s": fast_s,
        "max_throughput_gap": fast.gap,
        "max_throughput_proved": fast.proved,
        "max_throughput_work": fast.work,
    }
    if case in HARD_CASES:
        row["same_when_busy"] = is_same_when_busy(problem, digest(solution))
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

    def yes(key: str) -> str:
        return {True: "yes", False: "no", None: "-"}[row.get(key)]  # type: ignore[index]

    ratio = row.get("cp_sat_value_over_ours")
    cells = [
        f"{row['case']:<38}",
        f"{row['num_gpus']:>6}",
        f"{row['method']:>7}",
        f"{ms('search_s'):>10}",
        f"{pct('gap'):>9}",
        f"{yes('proved'):>6}",
        f"{float(str(row['work'])):>6.2f}",
        f"{ms('max_throughput_s'):>10}",
        f"{pct('max_throughput_gap'):>9}",
        f"{yes('max_throughput_proved'):>6}",
        f"{yes('same_when_busy'):>5}",
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
        f"{'proved':>6}",
        f"{'work':>6}",
        f"{'max-thr ms':>10}",
        f"{'gap':>9}",
        f"{'proved':>6}",
        f"{'busy':>5}",
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
            "search: least cost; max-thr: largest throughput; work: units (search/work.py); "
            "busy: same bytes on a busy machine; CP-SAT: least cost; '-': none found"
        )
        print(HEADER)
    rows: list[dict[str, object]] = []
    for case in (*CASES, *HARD_CASES):
        if given.only in case.name:
            limit_s = 0.0 if case in HARD_CASES else given.cp_sat_limit_s
            rows.append(measure(case, limit_s, given.cp_sat_workers))
            print(json.dumps(rows[-1]) if given.json else line(rows[-1]), flush=True)
    for command in COMMANDS:
        if given.only in command.name:
            rows.append({"case": command.name, "command_s": timed_command(command)})
            said = f"{command.name}: {rows[-1]['command_s']:.2f} s"
            print(json.dumps(rows[-1]) if given.json else said, flush=True)
    if not given.only:
        found = {"commit": commit(), "rows": rows}
        OUTPUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """The commit of this checkout."""
    asked = ["git", "-C", str(OUTPUT.parent), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
