"""How far the predictor is off on measured curves: ``python bench/predictor.py``.

``held_out.py`` says what is compared. ``--markdown`` writes ``docs/accuracy.md``.
"""

from __future__ import annotations

import argparse
import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from held_out import Miss, measure, measured_bundles

from scepsy_hpc.files import write_text
from scepsy_hpc.report.tables import console, table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
COMMAND = "python bench/predictor.py --markdown"
NUM_WORST, NUM_NAMED = 6, 5
SPREAD = ("points", "latency", "90%", "worst", "throughput", "TTFT")
PREDICTORS = {
    "curve": "the plan's curve",
    "engine": "engine model alone",
    "line": "latency linear in calls in flight (comparison)",
}

Table = tuple[list[str], list[list[str]]]


class Case(NamedTuple):
    """One line of the comparison with the goals."""

    what: str
    held_out: str
    by: str
    goal: float
    places: tuple[str, ...] = ()


CASES = (
    Case("concurrency between two others", "concurrency", "curve", 0.05, ("between",)),
    Case("concurrency between two others", "concurrency", "line", 0.05, ("between",)),
    Case("lowest concurrency", "concurrency", "curve", 0.05, ("below",)),
    Case("highest concurrency", "concurrency", "curve", 0.05, ("above",)),
    Case("any concurrency", "concurrency", "engine", 0.05),
    Case("token shape", "shape", "curve", 0.15),
    Case("token shape", "shape", "engine", 0.15),
)

INTRODUCTION = """# How accurate predictions are

The predictor against measured closed-loop curves of vLLM, TensorRT-LLM and SGLang on H100 SXM: the
measured bundles of [profiles](../profiles/README.md).

**Measured** are the TTFT and TPOT of each point. Its end-to-end latency and throughput follow from
them: latency = TTFT + TPOT x (output tokens - 1), throughput = calls in flight / latency.
**Modelled** are all predictions: points are left out of the bundle, and what the planner says
without them is compared with what was measured. Bundles that are themselves modelled take no part.
Each point was measured once, so what a repetition would differ by is part of these errors.

An error is (predicted - measured) / measured of a mean over calls, without its sign unless one is
shown. *latency*, *throughput* and *TTFT* are medians over points; *90%* and *worst* are of latency,
end to end. Throughput errs as latency does, by Little's law, the other way round."""

NOTES = {
    "Against the goals": """The goals are a median of 5% at a held-out concurrency and of 15% at a
held-out token shape. *bias*: the median with its sign; + says too long. Between and below points
a plan's curve follows the engine model fitted to the bundle, corrected so that it goes through the
points. After the last point throughput is held, by rule: it is the largest that was measured, and
a plan flags it as a lower bound. So the highest concurrency, held out, is where the goal is missed.
Latency linear between two points is no part of a plan; it is shown for comparison.""",
    "Held-out concurrency": """All points at one number of calls in flight are left out. Up to
*TTFT*: points between two others of their curve. Most curves double the concurrency from point to
point, so a held-out one lies in a gap of a factor of four, where a plan has gaps of two. The last
two columns are latency at the lowest and highest point, where a plan extrapolates and says so.
Qwen3-32B on sglang was measured at three concurrencies: without one of them no fit passes its own
hold-out, and throughput stays linear in calls in flight.""",
    "Held-out token shape": """All points of one pair of input and output lengths are left out, at
every TP degree. *refused*: points for which a plan gives no figure, since what is left is too
little for a fit, or contradicts itself.""",
    "The fitted engine model alone": """The engine model without the measured points that a plan's
curve is held to. Fits that a plan would refuse are included.""",
    "Worst cases": """The largest errors of the plan's curve; + says too long. Part of them is the
measurement: gpt-oss-120b at TP 4 with 1024 input and output tokens took 16.5 s at 32 calls in
flight and 10.0 s at 64.""",
}

LIMITS = """## What this does not show

Poisson and bursty arrivals (these curves are closed-loop), percentiles, shared GPUs, other links
and GPU types, cached prefixes, calls of mixed lengths, and whole workflows. For those,
`measured.json` of a run says how far its own plan was off."""


def pct(values: Iterable[float | None], quantile: float = 50.0) -> str:
    """A quantile of absolute errors in percent; a dash without any."""
    known = [abs(v) for v in values if v is not None]
    return f"{100 * np.percentile(known, quantile):.1f}" if known else "-"


def select(misses: Iterable[Miss], held_out: str, by: str, *places: str) -> list[Miss]:
    """Those of one experiment and predictor that were not refused, at some places only."""
    return [
        m
        for m in misses
        if (m.held_out, m.by) == (held_out, by)
        and (m.place in places or not places)
        and m.latency is not None
    ]


def latencies(misses: Iterable[Miss]) -> list[float]:
    """Their errors of end-to-end latency."""
    return [m.latency for m in misses if m.latency is not None]


def typical(misses: Iterable[Miss]) -> float:
    """The median error of latency, unsigned."""
    return float(np.median(np.abs(latencies(misses))))


def spread(misses: Sequence[Miss]) -> list[str]:
    """Number; latency's median, 90% and worst; medians of throughput and TTFT."""
    return [
        str(len(misses)),
        *(pct(latencies(misses), q) for q in (50, 90, 100)),
        pct(m.throughput for m in misses),
        pct(m.ttft for m in misses),
    ]


def groups_of(misses: Sequence[Miss]) -> list[tuple[str, str, list[Miss]]]:
    """By bundle and TP degree."""
    found: dict[tuple[str, int], list[Miss]] = defaultdict(list)
    for miss in misses:
        found[miss.bundle, miss.tp_degree].append(miss)
    return [(bundle, str(tp), members) for (bundle, tp), members in sorted(found.items())]


def by_group(
    misses: Sequence[Miss], columns: Sequence[str], cells: Callable[[list[Miss]], list[str]]
) -> Table:
    """A row for each bundle and TP degree, and one for all; rows without a figure are left out."""
    groups = [*groups_of(misses), ("all", "", list(misses))]
    rows = [[name, tp, *cells(members)] for name, tp, members in groups]
    kept = [row for row in rows if set(row[2:]) - {"-", "0"}]
    return ["bundle", "TP", *columns], kept


def concurrency_table(misses: Sequence[Miss]) -> Table:
    """A plan's figures at held-out concurrencies."""

    def cells(members: list[Miss]) -> list[str]:
        ends = [latencies(select(members, "concurrency", "curve", p)) for p in ("below", "above")]
        return [*spread(select(members, "concurrency", "curve", "between")), *map(pct, ends)]

    return by_group(misses, [*SPREAD, "lowest point", "highest point"], cells)


def shape_table(misses: Sequence[Miss]) -> Table:
    """A plan's figures at held-out token shapes."""

    def cells(members: list[Miss]) -> list[str]:
        refused = sum(m.latency is None for m in members if m.held_out == "shape")
        return [*spread(select(members, "shape", "curve")), str(refused)]

    return by_group(misses, [*SPREAD, "refused"], cells)


def engine_table(misses: Sequence[Miss]) -> Table:
    """The fitted engine model alone."""
    rows = []
    for held_out in ("concurrency", "shape"):
        chosen = select(misses, held_out, "engine")
        _, made = by_group(chosen, SPREAD, spread)
        rows += [[held_out, *row] for row in made]
    return ["held out", "bundle", "TP", *SPREAD], rows


def goal_table(misses: Sequence[Miss]) -> Table:
    """Medians of latency against the goals."""
    columns = ["held out", "predictor", "goal", "points", "median", "90%", "worst", "bias"]
    rows = []
    for case in CASES:
        errors = latencies(select(misses, case.held_out, case.by, *case.places))
        if errors:
            figures = [pct(errors, q) for q in (50, 90, 100)]
            bias = f"{100 * float(np.median(errors)):+.1f}"
            met = "met" if np.median(np.abs(errors)) <= case.goal else "missed"
            goal = f"{100 * case.goal:.0f}: {met}"
            rows.append([case.what, PREDICTORS[case.by], goal, str(len(errors)), *figures, bias])
    return columns, rows


def verdicts(misses: Sequence[Miss]) -> Iterator[str]:
    """For each goal, by how much it is missed, and in which bundles and TP degrees."""
    for case in CASES:
        chosen = select(misses, case.held_out, case.by, *case.places)
        if not chosen:
            continue
        over = typical(chosen) - case.goal
        verdict = f"missed by {100 * over:.1f} points" if over > 0 else "met"
        groups_found = groups_of(chosen)
        medians = [(typical(members), f"{name} TP {tp}") for name, tp, members in groups_found]
        above = sorted((m for m in medians if m[0] > case.goal), reverse=True)
        named = "; ".join(f"{name} ({100 * m:.1f})" for m, name in above[:NUM_NAMED])
        more = f" and {len(above) - NUM_NAMED} more" if len(above) > NUM_NAMED else ""
        groups = f"above it per bundle and TP: {len(above)} of {len(medians)}"
        groups += f", {named}{more}" if above else ""
        yield f"{case.what}, {PREDICTORS[case.by]}: {verdict}; {groups}."


def worst_table(misses: Sequence[Miss]) -> Table:
    """The largest errors of what a plan says; `+`: it says too long."""
    columns = ["held out", "bundle", "TP", "input", "output", "calls in flight", "latency"]
    rows = []
    for case in CASES:
        chosen = select(misses, case.held_out, case.by, *case.places) if case.by == "curve" else []
        for m in sorted(chosen, key=lambda m: -abs(m.latency or 0.0))[:NUM_WORST]:
            where = [f"{m.shape[0]:.0f}", f"{m.shape[1]:.0f}", f"{m.concurrency:.0f}"]
            error = f"{100 * (m.latency or 0.0):+.1f}"
            rows.append([case.what, m.bundle, str(m.tp_degree), *where, error])
    return columns, rows


def tables_of(misses: Sequence[Miss]) -> dict[str, Table]:
    """All tables, by title."""
    return {
        "Against the goals": goal_table(misses),
        "Held-out concurrency": concurrency_table(misses),
        "Held-out token shape": shape_table(misses),
        "The fitted engine model alone": engine_table(misses),
        "Worst cases": worst_table(misses),
    }


def page(misses: Sequence[Miss], left_out: Sequence[str], day: datetime.date) -> str:
    """``docs/accuracy.md``."""
    parts = [INTRODUCTION]
    for title, (columns, rows) in tables_of(misses).items():
        made = f"Made by `{COMMAND}` on {day.isoformat()}; errors in percent."
        lines = [columns, ["---"] * len(columns), *rows]
        pipes = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts += [f"## {title}", NOTES[title], made, pipes]
        if title == "Against the goals":
            parts.append("\n".join(f"- {line}" for line in verdicts(misses)))
    listed = "\n".join(f"- {line}" for line in left_out)
    return "\n\n".join([*parts, LIMITS, f"Left out:\n\n{listed}" if listed else ""]).strip() + "\n"


def main() -> None:
    """Print the tables, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="bundles whose label contains this")
    parser.add_argument("--markdown", action="store_true", help="write docs/accuracy.md instead")
    given = parser.parse_args()
    if given.markdown and given.only:
        parser.error("--markdown takes all bundles: leave --only out")
    misses, left_out = measure(measured_bundles(given.only))
    if given.markdown:
        write_text(PAGE, page(misses, left_out, datetime.date.today()))
        print(f"wrote {PAGE}")
        return
    for title, (columns, rows) in tables_of(misses).items():
        console.print(table(f"{title} (errors in %)", columns, rows))
    for line in [*verdicts(misses), *(f"left out: {line}" for line in left_out)]:
        print(line)


if __name__ == "__main__":
    main()
