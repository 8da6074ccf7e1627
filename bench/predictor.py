"""How far the predictor is off on shipped curves: ``python bench/predictor.py``.

``held_out.py`` says what is compared. ``--markdown`` writes ``bench/predictor.json`` and, from it
alone, ``docs/accuracy.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from held_out import Miss, measure, shipped_bundles

from scepsy_hpc.files import write_text
from scepsy_hpc.report.tables import console, table

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURES = ROOT / "docs" / "accuracy.md", ROOT / "bench" / "predictor.json"
COMMAND = "python bench/predictor.py --markdown"
NUM_WORST = 6

Table = dict[str, Any]
"""``title``, ``note``, ``columns`` and ``rows``, all text."""


class Goal(NamedTuple):
    """What is held out, and how far off the median may be; of shapes also 90% and the refused."""

    place: str
    what: str
    median: float
    p90: float | None = None
    refused: float | None = None


GOALS = (
    Goal("middle", "concurrency between two others", 0.03),
    Goal("lowest", "lowest concurrency", 0.05),
    Goal("highest", "highest concurrency", 0.15),
    Goal("token shape", "token shape", 0.10, 0.30, 0.05),
    Goal("TP degree", "TP degree", 0.20),
)

INTRODUCTION = """# How accurate predictions are

A plan's curves against the closed-loop curves of the shipped [profiles](../profiles/README.md):
points are left out of a bundle, and what the planner says without them is compared with what the
bundle has there.

**Measured** bundles hold the TTFT and TPOT of vLLM, TensorRT-LLM and SGLang on H100 SXM. End-to-end
latency and throughput follow from them: latency = TTFT + TPOT x (output tokens - 1), throughput =
calls in flight / latency. Each point was measured once, so what a repetition would differ by is
part of these errors. **Modelled** bundles (H100 and A100) were made by another predictor: against
them it is shown only whether the planner's curves bend as that predictor's do. Nobody ran them.

An error is (predicted - measured) / measured of the mean latency of a call, end to end, without
its sign unless one is shown; throughput errs as much the other way round, by Little's law. *bias*:
the median with its sign; + says too long. *refused*: points for which a plan gives no figure.
*covered*: percent of the points that lie within the 95% interval that the curve states there."""

LIMITS = """## What this does not show

Poisson and bursty arrivals (these curves are closed-loop), percentiles, shared GPUs, other links
and GPU types, cached prefixes, calls of mixed lengths, and whole workflows. For those,
`measured.json` of a run says how far its own plan was off."""

NOTES = {
    "Against the goals": """By engine; dense models and mixtures apart. Goals are medians; of token
shapes also 30% for nine in ten, and at most 5% refused.""",
    "By bundle": """Medians in percent, of measured bundles; in brackets how many points a plan gave
no figure for.""",
    "First tokens": """Errors of the mean TTFT, measured bundles.""",
    "Worst cases": """The largest errors among measured bundles. Part of them is the measurement:
gpt-oss-120b at TP 4 with 1024 input and output tokens took 16.5 s at 32 calls in flight and 10.0 s
at 64; of 512 calls in flight most waited, up to 462 s for their first token.""",
}


def pct(values: Iterable[float | None], quantile: float = 50.0) -> str:
    """A quantile of absolute errors in percent; a dash without any."""
    known = [abs(v) for v in values if v is not None]
    return f"{100 * np.percentile(known, quantile):.1f}" if known else "-"


def latencies(misses: Iterable[Miss]) -> list[float]:
    """Errors of latency of those that were not refused."""
    return [m.latency for m in misses if m.latency is not None]


def groups_of(misses: Sequence[Miss]) -> Iterator[tuple[str, str, list[Miss]]]:
    """(how, who, misses): by dense and MoE, and by engine within those; measured ones first."""
    for how in ("measured", "modelled"):
        for family in ("dense", "MoE"):
            mine = [m for m in misses if (m.how, m.family) == (how, family)]
            engines = sorted({m.engine for m in mine})
            if mine:
                yield how, family, mine
            if len(engines) > 1:
                for engine in engines:
                    yield how, f"{family}, {engine}", [m for m in mine if m.engine == engine]


def verdict(goal: Goal, misses: Sequence[Miss]) -> str:
    """`met`, or what is missed and by how many points."""
    errors = np.abs(latencies(misses))
    if not len(errors):
        return "no figures"
    judged = [
        ("median", float(np.median(errors)), goal.median),
        ("90%", float(np.percentile(errors, 90)), goal.p90),
        ("refused", sum(m.latency is None for m in misses) / len(misses), goal.refused),
    ]
    over = [
        f"{what} by {100 * (found - allowed):.1f}"
        for what, found, allowed in judged
        if allowed is not None and found > allowed
    ]
    return "missed: " + ", ".join(over) if over else "met"


def goal_table(misses: Sequence[Miss]) -> Table:
    """Medians of latency against the goals."""
    columns = [
        *("held out", "of", "models", "goal", "verdict", "points", "refused"),
        *("median", "90%", "worst", "bias", "covered"),
    ]
    rows = []
    for goal in GOALS:
        chosen = [m for m in misses if m.place == goal.place]
        for how, who, mine in groups_of(chosen):
            errors = latencies(mine)
            figures = [pct(errors, q) for q in (50, 90, 100)]
            bias = f"{100 * float(np.median(errors)):+.1f}" if errors else "-"
            known = [m for m in mine if m.latency is not None]
            covered = f"{100 * sum(m.covered for m in known) / len(known):.0f}" if known else "-"
            counts = [str(len(mine)), str(len(mine) - len(known))]
            stated = f"{100 * goal.median:.0f}"
            row = [goal.what, how, who, stated, verdict(goal, mine), *counts]
            rows.append([*row, *figures, bias, covered])
    return _table("Against the goals", columns, rows)


def bundle_table(misses: Sequence[Miss]) -> Table:
    """Medians by bundle and TP degree."""
    measured = [m for m in misses if m.how == "measured"]
    keys = sorted({(m.bundle, m.tp_degree) for m in measured})
    rows = []
    for bundle, tp_degree in keys:
        mine = [m for m in measured if (m.bundle, m.tp_degree) == (bundle, tp_degree)]
        rows.append([bundle, str(tp_degree), *(_cell(mine, goal.place) for goal in GOALS)])
    return _table("By bundle", ["bundle", "TP", *(goal.place for goal in GOALS)], rows)


def _cell(misses: Sequence[Miss], place: str) -> str:
    mine = [m for m in misses if m.place == place]
    refused = sum(m.latency is None for m in mine)
    return pct(latencies(mine)) + (f" ({refused})" if refused else "")


def ttft_table(misses: Sequence[Miss]) -> Table:
    """Errors of TTFT by what was held out."""
    rows = []
    for goal in GOALS:
        for how, who, mine in groups_of([m for m in misses if m.place == goal.place]):
            errors = [m.ttft for m in mine if m.ttft is not None]
            if how == "measured" and errors and "," not in who:
                spread = [pct(errors, q) for q in (50, 90)]
                rows.append([goal.what, who, str(len(errors)), *spread])
    return _table("First tokens", ["held out", "models", "points", "median", "90%"], rows)


def worst_table(misses: Sequence[Miss]) -> Table:
    """The largest errors of what a plan says; `+`: it says too long."""
    columns = ["held out", "bundle", "TP", "input", "output", "calls in flight", "latency"]
    rows = []
    for goal in GOALS:
        known = [m for m in misses if m.place == goal.place and m.how == "measured"]
        known = [m for m in known if m.latency is not None]
        for m in sorted(known, key=lambda m: -abs(m.latency or 0.0))[:NUM_WORST]:
            where = [f"{m.shape[0]:.0f}", f"{m.shape[1]:.0f}", f"{m.concurrency:.0f}"]
            error = f"{100 * (m.latency or 0.0):+.1f}"
            rows.append([goal.what, m.bundle, str(m.tp_degree), *where, error])
    return _table("Worst cases", columns, rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    return {"title": title, "note": NOTES[title], "columns": columns, "rows": rows}


TABLES: tuple[Callable[[Sequence[Miss]], Table], ...] = (
    goal_table,
    bundle_table,
    ttft_table,
    worst_table,
)


def figures_of(misses: Sequence[Miss], left_out: Sequence[str]) -> dict[str, Any]:
    """All that the page shows."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "command": COMMAND,
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
        "tables": [made(misses) for made in TABLES],
        "left_out": list(left_out),
    }


def page_of(figures: dict[str, Any]) -> str:
    """``docs/accuracy.md``, from the figures alone."""
    parts = [INTRODUCTION]
    made = f"Made by `{figures['command']}` on {figures['date']}, at commit {figures['commit']}"
    for one in figures["tables"]:
        lines = [one["columns"], ["---"] * len(one["columns"]), *one["rows"]]
        pipes = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts += [f"## {one['title']}", one["note"], f"{made}; errors in percent.", pipes]
    listed = "\n".join(f"- {line}" for line in figures["left_out"])
    return "\n\n".join([*parts, LIMITS, f"Left out:\n\n{listed}" if listed else ""]).strip() + "\n"


def main() -> None:
    """Print the tables, or write the figures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="bundles whose label contains this")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name} instead")
    given = parser.parse_args()
    if given.markdown and given.only:
        parser.error("--markdown takes all bundles: leave --only out")
    figures = figures_of(*measure(shipped_bundles(given.only)))
    if given.markdown:
        write_text(FIGURES, json.dumps(figures, indent=1) + "\n")
        write_text(PAGE, page_of(figures))
        print(f"wrote {FIGURES} and {PAGE}")
        return
    for one in figures["tables"]:
        console.print(table(f"{one['title']} (errors in %)", one["columns"], one["rows"]))
    for line in figures["left_out"]:
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
