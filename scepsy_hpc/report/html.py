"""One self-contained HTML file about a run: predicted beside measured, placement, latencies."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2

from scepsy_hpc import __version__
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import write_text
from scepsy_hpc.formats.plan import Plan, load_plan
from scepsy_hpc.formats.spans import Span, load_spans, spans_of_workflow
from scepsy_hpc.report import plots
from scepsy_hpc.report.comparison import Comparison, compare_run
from scepsy_hpc.report.drift import habits
from scepsy_hpc.report.notes import in_words
from scepsy_hpc.report.tables import compared_cells, deployment_rows, number, pct, signed_pct
from scepsy_hpc.serving.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table; ``figures`` are the columns aligned to the right, ``wide`` those that may fold."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[int] = ()
    wide: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a text, a table, plots and lines, each optional."""

    title: str
    text: str = ""
    table: HtmlTable | None = None
    plots: Sequence[str] = ()
    lines_title: str = ""
    lines: Sequence[str] = field(default_factory=tuple)


def write_report(root: Path, output: Path, again: Sequence[Path] = ()) -> tuple[Path, Comparison]:
    """Write the report of a results folder; returns its path and the comparison in it.

    ``again``: other runs of the same plan, which show how much runs differ by themselves. Raises
    InputError when the folder holds no finished run.
    """
    folder = RunFolder(root.absolute())
    if not folder.spans.exists():
        raise InputError(f"{root}: holds no spans.jsonl; report a folder that `scepsy run` filled")
    plan, spans = load_plan(folder.plan), load_spans(folder.spans)
    comparison = compare_run(root, again)
    sections = [
        _comparison(comparison, bool(again)),
        _deployments(plan),
        _runs(comparison, spans),
        _habits(plan, spans, len(comparison.measured) > 1),
        _calls(comparison, spans),
        _flags(comparison),
        _inputs(plan),
    ]
    text = _template().render(
        title=f"{', '.join(w.name for w in plan.workflows)}: predicted and measured",
        subtitle=_what_ran(comparison),
        footer=f"Written by scepsy-hpc {__version__} from {root.name}/ of {_day(spans)}.",
        notes=comparison.notes,
        sections=[s for s in sections if s.table or s.plots or s.lines],
    )
    write_text(output, text)
    return output, comparison


def _template() -> jinja2.Template:
    source = resources.files("scepsy_hpc.report").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _day(spans: Sequence[Span]) -> str:
    """When the first run started, where the clock was that of the calendar."""
    start_s = min((s.start_s for s in spans), default=0.0)
    day = datetime.datetime.fromtimestamp(start_s, datetime.UTC)
    return f"{day:%Y-%m-%d %H:%M} UTC" if day.year > 1970 else "an unknown day"


def _what_ran(comparison: Comparison) -> str:
    parts = [
        f"{m.num_ok} runs of {name} ended well and {m.num_failed} failed, "
        f"{comparison.pace[name]}, in {m.makespan_s or 0.0:.1f} s"
        for name, m in comparison.measured.items()
    ]
    return "; ".join(parts)


def _comparison(comparison: Comparison, with_noise: bool) -> Section:
    several = len(comparison.measured) > 1
    rows = []
    for row in comparison.rows:
        cells = compared_cells(row)
        if row.interval is not None:
            cells[1] += f" ({row.interval[0]:.3g} to {row.interval[1]:.3g})"
        noise = [pct(row.noise)] if with_noise else []
        rows.append([*([row.workflow] if several else []), row.metric, *cells, *noise])
    heads = [
        *(["workflow"] if several else []),
        *("figure", "predicted by the pipeline", "predicted by simulation (95% interval)"),
        *("measured", "error of the pipeline", "error of the simulation"),
        *(["noise floor"] if with_noise else []),
    ]
    return Section(
        title="Predicted and measured",
        text=comparison.explanation,
        table=HtmlTable(heads, rows, figures=range(1 + several, len(heads))),
    )


def _deployments(plan: Plan) -> Section:
    heads = ("LLM", "model", "engine", "GPU type", "TP degree", "GPU share", "replicas")
    return Section(
        title="What ran where",
        table=HtmlTable(heads, deployment_rows(plan), figures=(4, 5, 6), wide=(0, 1)),
        plots=[plots.placement(plan)],
        lines_title="Why this plan" if plan.explanation else "",
        lines=plan.explanation,
    )


def _runs(comparison: Comparison, spans: Sequence[Span]) -> Section:
    names = list(comparison.measured)
    by_name = {
        name: [
            span.duration_s
            for span in spans_of_workflow(spans, name, needed=False)
            if span.kind == "run" and span.status == "ok"
        ]
        for name in names
    }
    drawn = {name: values for name, values in by_name.items() if values}
    if not drawn:
        return Section(title="Runs")
    predicted = {}
    if len(names) == 1:
        for row in comparison.rows:
            if row.metric == "mean latency" and row.pipeline is not None:
                predicted["predicted mean (pipeline)"] = row.pipeline
            if row.metric == "p95 latency" and row.simulation is not None:
                predicted["predicted p95 (simulation)"] = row.simulation
    return Section(title="Runs", plots=[plots.latency_distribution(drawn, predicted)])


def _habits(plan: Plan, spans: Sequence[Span], several: bool) -> Section:
    rows = []
    for habit in habits(plan, spans):
        unit = "s" if habit.unit == "s" else ""
        cells = (number(habit.traced, unit), number(habit.measured, unit), signed_pct(habit.change))
        rows.append([*([habit.workflow] if several else []), habit.what, *cells])
    heads = [*(["workflow"] if several else []), "of a mean run", "traced", "this run", "change"]
    return Section(
        title="What the agents did",
        text="Predictions take runs to be like the traced ones. Where they differ, predicted and "
        "measured figures do too.",
        table=HtmlTable(heads, rows, figures=range(1 + several, 4 + several)) if rows else None,
    )


def _calls(comparison: Comparison, spans: Sequence[Span]) -> Section:
    rows: list[Sequence[str]] = []
    for row in comparison.llms:
        of = comparison.measured[row.workflow].per_llm[row.llm or ""]
        in_flight = number(of.calls_in_flight_mean)
        tokens = (f"{of.input_tokens:,}", f"{of.output_tokens:,}")
        counts = (str(of.num_calls), str(of.num_failed))
        rows.append(
            (row.workflow, row.llm or "", *counts, *compared_cells(row), in_flight, *tokens)
        )
    heads: Sequence[str] = (
        *("workflow", "LLM", "calls", "not ok", "mean latency: pipeline", "simulation", "measured"),
        *("error of the pipeline", "error of the simulation"),
        *("mean in flight", "input tokens", "output tokens"),
    )
    if len(comparison.measured) == 1:
        rows, heads = [row[1:] for row in rows], heads[1:]
    return Section(
        title="Calls",
        table=HtmlTable(heads, rows, figures=range(len(heads) - 10, len(heads))) if rows else None,
        plots=[plots.calls_in_flight(spans)] if rows else [],
    )


def _flags(comparison: Comparison) -> Section:
    rows = [in_words(flag) for flag in comparison.flags]
    return Section(
        title="What the prediction rests on",
        table=HtmlTable(("about", "flag", "details"), rows, wide=(2,)) if rows else None,
    )


def _inputs(plan: Plan) -> Section:
    rows = [
        (f"{i.role} of {i.workflow}" if i.workflow else i.role, i.path, f"{i.sha256[:16]}…")
        for i in plan.inputs
    ]
    return Section(
        title="Files the plan was made from",
        table=HtmlTable(("what", "path", "sha256"), rows, wide=(1,)) if rows else None,
    )
