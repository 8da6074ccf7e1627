"""Groups of replicas: predictor, simulator and closed forms: ``python bench/queueing.py``.

The reference is a slow simulation of its own (tests/support/slow_group.py): fan-outs of 1, 4 and 8
calls and serial chains, of equal and dispersed sizes, prompts alone and outputs, on 1, 2, 4 and 8
replicas at 40, 70, 85 and 95% of capacity. An error is what is left beyond the reference's 95%
interval. Goals: 5% for the mean of a call up to 85% of capacity and 10% above, 15% for the p95 of
runs. ``queueing.json`` keeps every row, with seed and commit.

``--uneven`` makes the table of replicas out of balance anew (a million calls a cell).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import numpy as np  # noqa: E402
from queueing_cases import SIZES, Case, Figures, predicted, reference, simulated  # noqa: E402
from simulation_cases import curve  # noqa: E402
from slow_group import simulate  # noqa: E402

from scepsy_hpc.planning.curves.group import Lanes, group_latencies_s  # noqa: E402

NUM_CALLS = {0.4: 20_000, 0.7: 30_000, 0.85: 60_000, 0.95: 120_000}
RUN_GOAL = 0.15


def cases() -> Iterator[Case]:
    """Every case; serial chains on 1 and 4 replicas."""
    loads = tuple(NUM_CALLS)
    curves = ("prefill", "decode")
    for made in itertools.product(curves, (1, 2, 4, 8), (1, 4, 8), (1,), SIZES, loads):
        yield Case(*made)
    for made in itertools.product(curves, (1, 4), (1, 4), (4,), SIZES, loads):
        yield Case(*made)


def goal(case: Case) -> float:
    """Tolerance for the mean latency of a call."""
    return 0.05 if case.utilisation <= 0.85 else 0.10


def row_of(case: Case, seed: int, calls: float) -> dict[str, object]:
    """Figures and errors of one case."""
    found, number = predicted(case), round(NUM_CALLS[case.utilisation] * calls)
    truth = reference(case, number, seed)
    runs = max(number // (3 * case.fan_out * case.rounds), 200)
    return {
        "curve": case.curve,
        "replicas": case.replicas,
        "fan_out": case.fan_out,
        "rounds": case.rounds,
        "sizes": case.sizes,
        "utilisation": case.utilisation,
        "call_s": truth.call_s,
        "call_half_s": truth.call_half_s,
        "predicted_call_s": found.call_s,
        "simulated_call_s": simulated(case, runs, seed),
        "run_p95_s": truth.run_p95_s,
        "run_p95_half_s": truth.run_p95_half_s,
        "predicted_run_p95_s": found.run_p95_s,
        **errors(case, found, truth),
    }


def errors(case: Case, found: Figures, truth: Figures) -> dict[str, object]:
    """What is left of the errors beyond the reference's interval, and whether that will do."""
    call = _beyond(found.call_s, truth.call_s, truth.call_half_s)
    run = _beyond(found.run_p95_s, truth.run_p95_s, truth.run_p95_half_s)
    return {
        "call_error": call,
        "run_p95_error": run,
        "call_met": abs(call) <= goal(case),
        "run_p95_met": abs(run) <= RUN_GOAL,
    }


def _beyond(found: float, truth: float, half: float) -> float:
    gap = found - truth
    return math.copysign(max(abs(gap) - half, 0.0), gap) / truth


def closed_forms() -> float:
    """Largest relative error against M/M/1, M/M/c and M/M/inf."""
    worst = 0.0
    for load in (0.4, 0.7, 0.85, 0.95):
        worst = max(worst, abs(curve().latency_s(load) * (1.0 - load) - 1.0))
        for slots in (4, 16, 64):
            offered = load * slots
            # Erlang C by the sum over states, relative to the one in which all are just busy.
            head, term = 0.0, 1.0
            for k in range(slots, 0, -1):
                term *= k / offered
                head += term
            busy = 1.0 / (1.0 - load)
            wait = busy / (head + busy)
            expected = 1.0 + wait / (slots - offered)
            found = curve((1.0, float(slots)), (1.0, float(slots))).latency_s(offered)
            worst = max(worst, abs(found / expected - 1.0))
        wide = curve((1.0, 4096.0), (1.0, 4096.0)).latency_s(load * 100.0)
        worst = max(worst, abs(wide - 1.0))
    return worst


def uneven(replicas: int, load: float, num_calls: int, seed: int) -> float:
    """What makes the chain of flat replicas under single exponential calls agree: a cell of
    ``_UNEVEN`` in planning/curves/bursts.py."""
    chance = random.Random(seed)
    works = [[[chance.expovariate(1.0)]] for _ in range(50_000)]
    truth_s = statistics.fmean(
        simulate(lambda _: 1.0, replicas, works, load * replicas, num_calls, seed).calls_s
    )
    low, high = 0.0, 0.5
    for _ in range(30):
        middle = (low + high) / 2.0
        columns = (np.array([x]) for x in (float(replicas), load * replicas, 1.0, middle))
        lanes = Lanes(np.zeros(1, dtype=np.int64), *columns)
        is_low = group_latencies_s([curve().server], lanes)[0] < truth_s
        low, high = (middle, high) if is_low else (low, middle)
    return low


def summary(rows: list[dict[str, object]]) -> list[str]:
    """Goals by load: how many cases meet them, the median and the worst error."""
    lines = ["load   cases   call mean: met  median  worst    p95 of runs: met  median  worst"]
    for load in NUM_CALLS:
        mine = [row for row in rows if row["utilisation"] == load]
        parts = [f"{load:.0%}   {len(mine):5d}"]
        for key in ("call", "run_p95"):
            sizes = sorted(abs(float(str(row[f"{key}_error"]))) for row in mine)
            met = sum(bool(row[f"{key}_met"]) for row in mine)
            parts.append(f"{met:12d}  {sizes[len(sizes) // 2]:6.1%} {sizes[-1]:6.1%}")
        lines.append("      ".join(parts))
    missed = [row for row in rows if not (row["call_met"] and row["run_p95_met"])]
    lines.append(f"missed: {len(missed)} of {len(rows)}")
    for row in missed:
        load, call, run = (
            float(str(row[key])) for key in ("utilisation", "call_error", "run_p95_error")
        )
        lines.append(
            f"  {row['curve']}, {row['replicas']} replicas, fan-out {row['fan_out']}, "
            f"{row['rounds']} in a row, {row['sizes']}, {load:.0%}: call {call:+.1%}, "
            f"p95 {run:+.1%}"
        )
    return lines


def commit() -> str:
    """The commit of this checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=float, default=1.0, help="times as many calls a case")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "bench" / "queueing.json")
    parser.add_argument("--uneven", action="store_true", help="make the table of bursts.py anew")
    args = parser.parse_args()
    if args.uneven:
        for replicas in (2, 4, 8, 16, 64):
            cells = (uneven(replicas, x, round(1e6 * args.calls), args.seed) for x in NUM_CALLS)
            print(replicas, *(f"{cell:.3f}" for cell in cells), flush=True)
        return
    exact = closed_forms()
    print(f"closed forms (M/M/1, M/M/c, M/M/inf): largest error {exact:.1e}", flush=True)
    rows = []
    for case in cases():
        rows.append(row_of(case, args.seed + len(rows), args.calls))
        if sys.stderr.isatty():
            print(f"\r{len(rows)} cases", end="", file=sys.stderr)
    print("\n".join(summary(rows)))
    made = {"seed": args.seed, "commit": commit(), "closed_forms_error": exact, "rows": rows}
    args.output.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
