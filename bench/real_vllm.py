"""Predicted beside measured on real vLLM, on CPU slices of this machine: five runs of one plan.

    python bench/real_vllm.py [--in-flight 4,4,4,4,4] [--also 2,8,16] [-o bench/real_vllm.json]

The whole pipeline on a real Slurm of two nodes (``tests/vllm/cpu_slice_lab.py``): topology, trace,
profile, plan, then a batch for each number of runs in flight. What is predicted of a batch comes
from trace and profile alone, for that batch's load. Needs root, Slurm and vLLM
(``tests/slurm/install.sh``, ``tests/vllm/install.sh``), and a machine that does nothing else: both
cores are part of what is measured. Goals: the mean within 10% in every run of ``--in-flight``, the
95th percentile within 15% in all but one of five. What ``--also`` adds is shown, and no part of
the goals: from some load on engines and agents take all of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE / "tests" / "vllm")]

from cpu_slice_lab import Lab, make_plan, open_lab, run_batch  # noqa: E402

from scepsy_hpc.cluster.cpu_slices import SLICE_CORES  # noqa: E402

NUM_TASKS = 96
NUM_TRACED = 24  # every kind of task twice
REQUESTS_PER_POINT = 96
"""So many that the mean lengths of a curve's points differ by less than 5%."""
TARGET = ("--rate", "2", "--within", "0%")
"""Within what is measured: beyond it slices of a core are no GPUs, whose batches cost little."""
CPUS_PER_GPU = 1
"""What the plan may count on: two nodes of two slices share this machine's cores."""
MEAN_GOAL, P95_GOAL = 0.10, 0.15


def main() -> int:
    """Measure, print the table, write the file; 1 where a goal is missed."""
    options = _options()
    counts, others = _numbers(options.in_flight), _numbers(options.also)
    before = os.getloadavg()[0]
    with open_lab(options.tasks, options.requests_per_point) as lab:
        make_plan(lab, min(NUM_TRACED, options.tasks), runs_in_flight=1, target=TARGET)
        _count_real_cores(lab)
        every = enumerate([*counts, *others], start=1)
        runs = [_one_run(lab, number, count) for number, count in every]
        demand = _demand(lab, "spans.jsonl")
    goals = _goals(runs[: len(counts)])
    found = {
        "commit": _commit(),
        "machine": _machine() | {"load_average_before": before},
        "slice_cores": SLICE_CORES,
        "num_tasks": options.tasks,
        "demand": demand,
        "runs": runs[: len(counts)],
        "also": runs[len(counts) :],
        "goals": goals,
    }
    _show(runs, goals)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {options.out}")
    return 0 if all(goal["met"] for goal in goals) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--in-flight", default="4,4,4,4,4", help="runs in flight, a batch for each")
    parser.add_argument("--also", default="2,8,16", help="the same, outside the goals")
    parser.add_argument("--tasks", type=int, default=NUM_TASKS, help="of each batch")
    parser.add_argument("--requests-per-point", type=int, default=REQUESTS_PER_POINT)
    parser.add_argument("-o", "--out", type=Path, help="JSON with every figure")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def _count_real_cores(lab: Lab) -> None:
    """The mini cluster's nodes pretend to 16 CPUs each; the plan is told what there is."""
    path = lab.folder / "plan.yaml"
    plan = yaml.safe_load(path.read_text())
    for component in plan["allocation"]["components"]:
        component["cpus_per_gpu"] = CPUS_PER_GPU
    path.write_text(yaml.safe_dump(plan, sort_keys=False))


def _one_run(lab: Lab, number: int, in_flight: int) -> dict[str, Any]:
    """One batch: each metric as measured, predicted by the pipeline and by simulation."""
    out = f"results-{number}"
    run_batch(lab, out, "--runs-in-flight", str(in_flight))
    report = json.loads(lab.scepsy("report", out, "--json"))
    metrics = ("throughput", "mean latency", "p95 latency", "makespan")
    kept = ("measured", "pipeline", "simulation", "pipeline_error", "simulation_error", "interval")
    rows = {
        row["metric"]: {key: row[key] for key in kept if row.get(key) is not None}
        for row in report["rows"]
        if row["metric"] in metrics
    }
    return {
        "in_flight": in_flight,
        "load_average": os.getloadavg()[0],
        "demand": _demand(lab, f"{out}/spans.jsonl"),
        **rows,
        "llms": report["llms"],
        "flags": report["flags"],
    }


def _demand(lab: Lab, spans: str) -> dict[str, Any]:
    """What the spans say: tool time and CPU seconds show what more runs in flight add."""
    words = ("--workflow", "panel/workflow.yaml", "--spans", spans, "--json")
    found: dict[str, Any] = json.loads(lab.scepsy("demand", *words))
    return found


def _goals(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal: how many runs keep it, and how many have to."""
    most = len(runs)
    found = []
    for metric, limit, needed, sources in (
        ("mean latency", MEAN_GOAL, most, ("pipeline", "simulation")),
        ("p95 latency", P95_GOAL, most - most // 5, ("simulation",)),
    ):
        for source in sources:
            errors = [run[metric][f"{source}_error"] for run in runs]
            kept = sum(abs(error) <= limit for error in errors)
            found.append(
                {
                    "metric": metric,
                    "by": source,
                    "limit": limit,
                    "errors": errors,
                    "kept": kept,
                    "needed": needed,
                    "met": kept >= needed,
                }
            )
    return found


def _show(runs: list[dict[str, Any]], goals: list[dict[str, Any]]) -> None:
    heads = ("in flight", "mean", "pipeline", "simulated", "p95", "simulated", "tools", "CPU")
    print("\n" + " ".join(f"{head:>9}" for head in heads))
    for run in runs:
        mean, p95 = run["mean latency"], run["p95 latency"]
        print(
            f"{run['in_flight']:>9} {mean['measured']:>8.2f}s {mean['pipeline_error']:>+9.1%} "
            f"{mean['simulation_error']:>+9.1%} {p95['measured']:>8.2f}s "
            f"{p95['simulation_error']:>+9.1%} {run['demand']['tool_time_s']:>8.3f}s "
            f"{run['demand']['cpu_s']:>8.3f}s"
        )
    for goal in goals:
        verdict = "met" if goal["met"] else "MISSED"
        print(
            f"{goal['metric']} by {goal['by']}: within {goal['limit']:.0%} in {goal['kept']} of "
            f"{len(goal['errors'])} runs, {goal['needed']} needed: {verdict}"
        )


def _commit() -> str:
    """Of this checkout, with `-dirty` where it was changed since."""
    line = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine() -> dict[str, Any]:
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
