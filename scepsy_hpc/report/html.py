"""One self-contained HTML file about a run: predicted beside measured, placement, latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2

from scepsy_hpc import __version__
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import write_text
from scepsy_hpc.planning.plan import Plan, load_plan
from scepsy_hpc.report import plots
from scepsy_hpc.report.comparison import Comparison, compare_run
from scepsy_hpc.report.tables import number, pct, signed_pct
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.tracing.spans import Span, load_spans


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a text, a table, plots and lines, each optional."""

    title: str
    text: str = ""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[int] = ()
    plots: Sequence[str] = ()
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
        _comparison(comparison),
        _deployments(plan),
        _latencies(comparison, spans),
        _flags(plan, comparison),
    ]
    text = _template().render(
        title=f"scepsy: {', '.join(w.name for w in plan.workflows)}",
        subtitle=f"{_what_ran(comparison)}; written by scepsy-hpc {__version__}",
        notes=comparison.notes,
        sections=[section for section in sections if section],
    )
    write_text(output, text)
    return output, comparison


def _template() -> jinja2.Template:
    source = resources.files("scepsy_hpc.report").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _what_ran(comparison: Comparison) -> str:
    parts = [
        f"{m.num_ok} runs of {m.workflow} ended well and {m.num_failed} failed, "
        f"{comparison.pace[m.workflow]}, in {m.makespan_s:.1f} s"
        for m in comparison.measured
    ]
    return "; ".join(parts)


def _comparison(comparison: Comparison) -> Section:
    rows = [
        (
            row.workflow,
            row.metric,
            number(row.pipeline, row.unit),
            number(row.simulation, row.unit),
            row.interval_text,
            number(row.measured, row.unit),
            signed_pct(row.pipeline_error),
            signed_pct(row.simulation_error),
            pct(row.noise),
        )
        for row in comparison.rows
    ]
    heads = (
        *("workflow", "figure", "predicted: pipeline", "predicted: simulation", "95% interval"),
        *("measured", "error of pipeline", "error of simulation", "noise floor"),
    )
    return Section(
        title="Predicted and measured",
        text=comparison.explanation,
        heads=heads,
        rows=rows,
        figures=(2, 3, 4, 5, 6, 7, 8),
    )


def _deployments(plan: Plan) -> Section:
    rows = [
        (
            name,
            llm.model,
            f"{llm.engine} {llm.engine_version or ''}",
            llm.gpu_type,
            str(llm.tp_degree),
            f"{llm.gpu_share_pct} %",
            str(llm.num_replicas),
        )
        for name, llm in plan.llms.items()
    ]
    heads = ("LLM", "model", "engine", "GPU type", "TP degree", "GPU share", "replicas")
    return Section(
        title="What ran where",
        heads=heads,
        rows=rows,
        figures=(4, 5, 6),
        plots=[plots.placement(plan)],
        lines=plan.explanation,
    )


def _latencies(comparison: Comparison, spans: Sequence[Span]) -> Section:
    runs = [s for s in spans if s.kind == "run" and s.status == "ok"]
    names = sorted({s.workflow or "" for s in runs})
    by_name = {n: [s.duration_s for s in runs if s.workflow == n] for n in names}
    rows = [
        (
            m.workflow,
            alias,
            str(llm.num_calls),
            str(llm.num_failed),
            number(llm.latency_mean_s, "s"),
            number(llm.calls_in_flight_mean),
            f"{llm.input_tokens:,}",
            f"{llm.output_tokens:,}",
        )
        for m in comparison.measured
        for alias, llm in m.llms.items()
    ]
    heads = (
        *("workflow", "LLM", "calls", "not ok", "mean latency", "mean in flight"),
        *("input tokens", "output tokens"),
    )
    drawn = [plots.latency_distribution(by_name)] if runs else []
    return Section(
        title="Measured runs and calls",
        heads=heads,
        rows=rows,
        figures=(2, 3, 4, 5, 6, 7),
        plots=[*drawn, plots.calls_in_flight(spans)],
    )


def _flags(plan: Plan, comparison: Comparison) -> Section:
    inputs = [f"{i.path} (sha256 {i.sha256[:12]}…)" for i in plan.inputs]
    return Section(
        title="What the prediction rests on",
        lines=[*comparison.flags, *(f"input: {line}" for line in inputs)],
    )
