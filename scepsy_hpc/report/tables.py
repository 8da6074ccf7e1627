"""Tables for the terminal. Seconds are printed as such; unknown is a dash, never a zero."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.status import Death, WatchedRun

if TYPE_CHECKING:  # these bring servers and cluster modules along, which planning does not need
    from scepsy_hpc.report.comparison import Comparison, Row
    from scepsy_hpc.report.findings import Finding
    from scepsy_hpc.tracing.demand.demand import Demand

LOG_WIDTH = 140
_plain = Console(highlight=False)
# In a log or a pipe there is no width to fit into; folded words would be worse.
console = _plain if _plain.is_terminal else Console(highlight=False, width=LOG_WIDTH)


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit; a dash when unknown."""
    return "-" if value is None else f"{value:.{digits}g}{' ' if unit else ''}{unit}"


def pct(value: float | None) -> str:
    """A fraction as percent; a dash when unknown."""
    return "-" if value is None else f"{100 * value:.0f} %"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    folding: Sequence[str] | None = None,
) -> Table:
    """A table; columns that hold figures only are aligned to the right.

    ``folding``: columns that fold where the terminal is narrow; else all but the first and figures.
    """
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, column in enumerate(columns):
        figures = bool(rows) and all(_is_figure(str(row[index])) for row in rows)
        folds = not figures and (index > 0 if folding is None else column in folding)
        justify: Literal["left", "right"] = "right" if figures else "left"
        made.add_column(column, justify=justify, no_wrap=not folds, overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


_FIGURE = re.compile(r"-|[+<-]?[\d,.]+(e[+-]?\d+)?( (s|%|GiB|runs/s|rps))?")


def _is_figure(cell: str) -> bool:
    return _FIGURE.fullmatch(cell) is not None


def show(*parts: Any) -> None:
    """Print tables, an empty line after each, and lines, folded between words on a terminal."""
    for part in parts:
        if isinstance(part, str):
            console.print(_folded(part), soft_wrap=True, markup=False)
        else:
            console.print(part, "")


def _folded(line: str) -> str:
    """The line for this terminal; several lines at once are left as they are (sbatch text)."""
    if not _plain.is_terminal or "\n" in line or len(line) <= _plain.width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line,
        _plain.width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def demand_parts(demand: Demand) -> list[Any]:
    """What the spans say about each LLM, each role where there are several, and the warnings."""
    rows = []
    for alias, llm in demand.llms.items():
        rows.append(
            (
                alias,
                number(llm.calls_per_run),
                number(llm.parallelism),
                pct(llm.share_mean),
                "-" if llm.share_cv is None else f"{llm.share_cv:.2f}",
                number(llm.duration_s.mean, "s"),
                number(llm.input_tokens.mean, digits=4),
                number(llm.output_tokens.mean, digits=4),
            )
        )
    title = (
        f"Demand of {demand.workflow}: {demand.num_runs} runs of "
        f"{number(demand.run_length_mean_s, 's')}, {number(demand.tool_time_s, 's')} of it outside "
        f"LLMs, overlap {number(demand.overlap)}{_agent_cpu(demand.cpu_s)}"
    )
    heads = (
        *("LLM", "calls\n/run", "paral-\nlelism", "share of\nLLM time", "CV\nof it"),
        *("call\nlatency", "tokens\nin", "tokens\nout"),
    )
    return [table(title, heads, rows), *_roles(demand), *(f"note: {f}" for f in demand.flags)]


def _agent_cpu(cpu_s: float | None) -> str:
    return "" if cpu_s is None else f", {number(cpu_s, 's')} of its agent's CPU"


def _roles(demand: Demand) -> list[Table]:
    rows = [
        (
            alias,
            role,
            number(of.calls_per_run),
            number(of.duration_mean_s, "s"),
            number(of.input_tokens_mean, digits=4),
            number(of.output_tokens_mean, digits=4),
        )
        for alias, llm in demand.llms.items()
        if len(llm.roles) > 1
        for role, of in llm.roles.items()
    ]
    heads = ("LLM", "role", "calls\n/run", "call\nlatency", "tokens\nin", "tokens\nout")
    return [table("Roles", heads, rows)] if rows else []


def deployment_rows(plan: Plan) -> list[tuple[str, ...]]:
    """LLM, model, engine, GPU type, TP degree, GPU share, replicas."""
    return [
        (
            name,
            llm.model,
            f"{llm.engine} {llm.engine_version or ''}".strip(),
            llm.gpu_type,
            str(llm.tp_degree),
            f"{llm.gpu_share_pct} %",
            str(llm.num_replicas),
        )
        for name, llm in plan.llms.items()
    ]


def predicted_table(predicted: Figures, title: str = "Predicted") -> Table:
    """Throughput and latency, whole and by workflow."""
    rows = []
    parts: dict[str, RunFigures] = {**predicted.per_workflow}
    for name, part in (parts or {"all": predicted}).items():
        rows.append(
            (
                name,
                number(part.throughput_rps, "runs/s"),
                number(part.latency_mean_s, "s"),
                number(part.latency_p50_s, "s"),
                number(part.latency_p95_s, "s"),
                number(part.makespan_s, "s"),
            )
        )
    heads = ("workflow", "throughput", "mean\nlatency", "p50", "p95", "makespan")
    return table(title, heads, rows)


def simulated_table(found: Figures) -> Table:
    """Simulated figures with their 95% intervals."""
    rows = []
    for name, flow in found.per_workflow.items():
        for label, key, unit in (
            ("throughput", "throughput_rps", "runs/s"),
            ("mean latency", "latency_mean_s", "s"),
            ("p50 latency", "latency_p50_s", "s"),
            ("p95 latency", "latency_p95_s", "s"),
            ("p99 latency", "latency_p99_s", "s"),
            ("makespan", "makespan_s", "s"),
        ):
            low, high = flow.intervals.get(key, (None, None))
            between = "-" if low is None else f"{number(low)} to {number(high)}"
            rows.append((name, label, number(getattr(flow, key), unit), between))
    title = f"Simulated, not measured: {found.num_runs} runs, seed {found.seed}"
    return table(title, ("workflow", "figure", "value", "95% interval"), rows)


def comparison_table(comparison: Comparison) -> Table:
    """Predicted beside measured; a column for the workflow or the noise only where there is one."""
    several = len({row.workflow for row in comparison.rows}) > 1
    noise = any(row.noise is not None for row in comparison.rows)
    rows = [
        [
            *([row.workflow] if several else []),
            row.metric,
            *compared_cells(row),
            *([pct(row.noise)] if noise else []),
        ]
        for row in comparison.rows
    ]
    heads = [
        *(["workflow"] if several else []),
        *("figure", "pipeline", "simulation", "measured"),
        *("error of\npipeline", "error of\nsimulation"),
        *(["noise\nfloor"] if noise else []),
    ]
    names = {row.workflow for row in comparison.rows}
    title = "Predicted and measured" + (f": {', '.join(names)}" if len(names) == 1 else "")
    return table(title, heads, rows)


def compared_cells(row: Row) -> list[str]:
    """Pipeline, simulation, measured, and the errors of the two predictions."""
    figures = (row.pipeline, row.simulation, row.measured)
    errors = (row.pipeline_error, row.simulation_error)
    return [*(number(value, row.unit) for value in figures), *map(signed_pct, errors)]


def signed_pct(value: float | None) -> str:
    """A relative error with its sign; a dash when unknown."""
    return "-" if value is None else f"{100 * value:+.1f} %"


def findings_parts(findings: Sequence[Finding]) -> list[str]:
    """What `doctor` found, a few lines each: long texts do not fit columns."""
    lines = []
    for f in findings:
        lines.append(f"{f.state:8} {f.what}: {f.detail}")
        if f.state != "ok":
            lines.append(f"         needed for: {f.needed_for}")
        if f.fix:
            lines.append(f"         fix: {f.fix}")
    return lines


def _outlook(status: WatchedRun) -> list[str]:
    """When the job starts, and whether its time is enough, in sentences."""
    found, said = status.outlook, []
    if found.pending_job is not None:
        why = f": {found.pending_reason}" if found.pending_reason else ""
        when = found.expected_start_s
        start = "Slurm does not say when it starts"
        if when is not None:
            start = f"expected to start {time.strftime('%Y-%m-%d %H:%M', time.localtime(when))}"
        said.append(f"job {found.pending_job} waits in the queue{why}; {start}")
    if status.state == "running" and found.tasks_rps is not None:
        planned = "" if found.planned_rps is None else f" (planned {found.planned_rps:.3g})"
        said.append(f"pace: {found.tasks_rps:.3g} tasks/s{planned}")
        if found.needed_s is not None:
            said[-1] += f"; what is left takes {_length(found.needed_s)}"
        if found.left_s is not None:
            enough = (found.needed_s or 0.0) <= found.left_s
            more = "" if enough else ": not enough, the next job goes on with the rest"
            said[-1] += f", the job has {_length(found.left_s)}{more}"
    return said


def _length(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _death_lines(what: str, death: Death) -> list[str]:
    """When and how, and the last that was said."""
    at = datetime.fromtimestamp(death.at_s).strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"{what} at {at}: {death.how}"]
    if death.last_lines:
        lines += [f"  last lines of {death.log}:", *(f"    {line}" for line in death.last_lines)]
    return lines


def status_tables(status: WatchedRun) -> list[Any]:
    """Progress of a run."""
    parts: list[Any] = [f"state: {status.state}; tasks recorded: {status.recorded}"]
    if status.tasks:
        counts = asdict(status.tasks).items()
        parts.append("tasks: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in counts))
    parts += _outlook(status)
    if status.url:
        parts.append(f"endpoint: {status.url} (put any name for RUN_ID)")
    rows = [
        (i.id, i.llm, i.state, i.host, ",".join(i.gpus), i.starts, i.calls_in_flight, i.num_calls)
        for i in status.instances
    ]
    if rows:
        heads = ("instance", "LLM", "state", "host", "GPUs", "starts", "in flight", "calls")
        parts.append(table("Instances", heads, rows))
    parts += [f"{i.id}: {i.error}" for i in status.instances if i.error]
    for one in status.instances:
        if one.last_death:
            parts += _death_lines(f"{one.id} on {one.host} died", one.last_death)
    if status.last_lead:
        parts += _death_lines("the lead was lost", status.last_lead)
    return parts
