"""What `scepsy plan` shows of a plan: what it is for, what it hosts, what it reaches and on what.

All of it is in the file; the flags of the file are all on the screen. Lines fold at 100 columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from rich.table import Table

from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.plan import Certificate, Deployment, Plan
from scepsy_hpc.planning.search.certificate import sentence
from scepsy_hpc.report.tables import number, pct, predicted_table, signed_pct, table

WIDTH = 100
_ROWS = (
    ("mean latency", "latency_mean_s"),
    ("p50 latency", "latency_p50_s"),
    ("p95 latency", "latency_p95_s"),
    ("makespan", "makespan_s"),
)


def plan_parts(plan: Plan) -> list[Any]:
    """Tables and lines that answer in turn: for what, with what, how well, why, how sure."""
    parts: list[Any] = [*_folded(headline(plan)), "", deployments_table(plan)]
    if plan.predicted is not None:
        parts += [figures_table(plan, plan.predicted), llm_table(plan.predicted, plan.simulated)]
    for line in plan.explanation:
        parts += _folded(line)
    for line in (*_certified(plan.certificate), *(f"flag: {flag}" for flag in every_flag(plan))):
        parts += _folded(line)
    return parts


def headline(plan: Plan) -> str:
    """For what, on how many GPUs."""
    gpus = len({(i.node, gpu) for i in plan.instances for gpu in i.gpus})
    flows = []
    for workflow in plan.workflows:
        rate = "a batch" if workflow.rate_rps is None else f"{workflow.rate_rps:.4g} runs/s"
        held = workflow.max_runs_in_flight
        flows.append(f"{workflow.name} {rate}" + (f", {held} runs in flight" if held else ""))
    said = f"{'; '.join(flows)}: {gpus} GPU{'' if gpus == 1 else 's'}"
    limits = {c.time_min for c in plan.allocation.components} if plan.allocation else set()
    most = max((limit for limit in limits if limit is not None), default=None)
    return said + ("" if most is None else f", time limit of the job {most} min")


def every_flag(plan: Plan) -> tuple[str, ...]:
    """Flags of both figures, each once; where the two differ stands first."""
    both = [f.flags for f in (plan.predicted, plan.simulated) if f is not None]
    every = dict.fromkeys(flag for flags in reversed(both) for flag in flags)
    return tuple(sorted(every, key=lambda flag: ": differs: " not in flag))


def deployments_table(plan: Plan) -> Table:
    """What each LLM got, and where."""
    rows = []
    for name, llm in plan.llms.items():
        places = sorted({i.node for i in plan.instances if i.llm == name})
        where = places[0] if places else "-"
        where += f" and {len(places) - 1} more" if len(places) > 1 else ""
        rows.append((name, llm.model, _engine(llm), _kind(llm), str(llm.num_replicas), where))
    heads = ("LLM", "model", "engine", "each replica", "replicas", "nodes")
    return table("Deployments", heads, rows)


def _engine(llm: Deployment) -> str:
    parts = (llm.engine, llm.engine_version, llm.precision)
    return " ".join(part for part in parts if part)


def _kind(llm: Deployment) -> str:
    over = f" over {llm.link}" if llm.tp_degree > 1 and llm.link else ""
    share = "" if llm.gpu_share_pct == 100 else f"{llm.gpu_share_pct}% of "
    return f"{share}{llm.tp_degree} x {llm.gpu_type}{over}"


def figures_table(plan: Plan, predicted: Figures) -> Table:
    """Predicted and simulated side by side, with the simulation's interval."""
    simulated, rates = plan.simulated, {w.name: w.rate_rps for w in plan.workflows}
    rows: list[tuple[str, ...]] = []
    for name, said in predicted.per_workflow.items():
        found = simulated.per_workflow.get(name) if simulated else None
        several = [name] if len(predicted.per_workflow) > 1 else []
        for cells in _figure_rows(said, found, rates.get(name)):
            rows.append((*several, *cells))
    heads: tuple[str, ...] = ("figure", "predicted", "simulated", "95% interval", "difference")
    if len(predicted.per_workflow) > 1:
        heads = ("workflow", *heads)
    title = "Predicted, not simulated: no spans"
    if simulated is not None:
        title = f"Predicted and simulated ({simulated.num_runs or 0:,} runs, seed {simulated.seed})"
    return table(title, heads, rows)


def _figure_rows(
    said: RunFigures, found: RunFigures | None, rate_rps: float | None
) -> Iterator[tuple[str, ...]]:
    if rate_rps is not None:
        yield _row("rate", rate_rps, found, "throughput_rps", "runs/s")
        yield _row("capacity", said.throughput_rps, None, "throughput_rps", "runs/s")
    for label, key in _ROWS:
        value = getattr(said, key)
        if value is not None or (found is not None and rate_rps is not None and key in _OPEN):
            yield _row(label, value, found, key, "s")


_OPEN = ("latency_mean_s", "latency_p50_s", "latency_p95_s")


def _row(
    label: str, said: float | None, found: RunFigures | None, key: str, unit: str
) -> tuple[str, ...]:
    value = getattr(found, key) if found is not None else None
    low, high = found.intervals.get(key, (None, None)) if found is not None else (None, None)
    between = "-" if low is None else f"{number(low)} to {number(high)}"
    off = None if not value or said is None else said / value - 1.0
    return label, number(said, unit), number(value, unit), between, signed_pct(off)


def llm_table(predicted: Figures, simulated: Figures | None) -> Table:
    """Utilisation and call latency of each deployment, predicted and simulated."""
    rows = []
    for name, said in predicted.per_llm.items():
        found = simulated.per_llm.get(name) if simulated is not None else None
        rows.append(
            (
                name,
                pct(said.utilisation),
                number(said.latency_mean_s, "s"),
                *(
                    []
                    if simulated is None
                    else [number(found.latency_mean_s if found else None, "s")]
                ),
                pct(said.share_of_latency),
            )
        )
    heads = (
        "LLM",
        "utilisation",
        "call latency\npredicted",
        "\nsimulated",
        "share of\nrun latency",
    )
    return table("By LLM", heads, rows)


def predicted_parts(predicted: Figures, title: str) -> list[Any]:
    """Figures of a prediction alone, with all their flags."""
    flags = (f"flag: {flag}" for flag in predicted.flags)
    lines = [folded for flag in flags for folded in _folded(flag)]
    return [predicted_table(predicted, title), llm_table(predicted, None), *lines]


def _certified(certificate: Certificate | None) -> Iterator[str]:
    if certificate is None:
        return
    yield f"certificate: {sentence(certificate)}"
    rests = certificate.rests_on
    if rests is not None:
        parts = [
            f"{getattr(rests, f.name):.0f}% {f.name.removesuffix('_pct')}"
            for f in fields(rests)
            if getattr(rests, f.name) > 0
        ]
        yield f"rests on: {', '.join(parts)} figures"


def _folded(line: str) -> list[str]:
    """Lines of at most ``WIDTH`` columns, broken between words."""
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
