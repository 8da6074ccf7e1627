"""Predicted beside measured: the same plan, load and token lengths, and the error, whatever it is.

The prediction is made from what the plan was made from (its traced spans and profiles), never
from the run itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError, ScepsyError
from scepsy_hpc.files import record
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.figures import Figures, LlmFigures, RunFigures
from scepsy_hpc.formats.plan import Plan, PlanWorkflow, load_plan
from scepsy_hpc.planning.forecast import Forecast, forecast
from scepsy_hpc.planning.inputs import bundles_of, spans_of
from scepsy_hpc.planning.simulation.arrivals import Closed, Open
from scepsy_hpc.report.notes import engine_notes, sample_note, share_notes
from scepsy_hpc.serving.measured import MeasuredRun
from scepsy_hpc.serving.run_folder import RunFolder, read_json
from scepsy_hpc.serving.settings import RunSettings, load_settings

METRICS = (
    ("throughput", "throughput_rps", "runs/s"),
    ("mean latency", "latency_mean_s", "s"),
    ("p95 latency", "latency_p95_s", "s"),
    ("makespan", "makespan_s", "s"),
)


@record
class Row:
    """One figure of a workflow's runs, or of one LLM's calls; errors are relative to the measured.

    ``interval`` is the simulation's, 95%; ``noise`` how far runs of the same plan differ.
    """

    workflow: str
    llm: str | None = None
    metric: str
    unit: str
    measured: float | None
    pipeline: float | None = None
    simulation: float | None = None
    pipeline_error: float | None = None
    simulation_error: float | None = None
    interval: tuple[float, float] | None = None
    noise: float | None = None


@record
class Comparison:
    """Rows, what was measured, and in words what it rests on."""

    rows: tuple[Row, ...]
    llms: tuple[Row, ...]
    measured: dict[str, Figures]
    pace: dict[str, str]
    notes: tuple[str, ...]
    flags: tuple[str, ...]
    explanation: str


def compare_run(root: Path, again: Sequence[Path] = ()) -> Comparison:
    """Compare a finished run with what its plan predicted for the same load.

    ``again``: folders of other runs of the same plan and tasks; the largest relative difference
    between two of all these runs is the noise floor. Raises InputError.
    """
    folder = RunFolder(root.absolute())
    plan, settings = load_plan(folder.plan), load_settings(folder.settings)
    measured = _measured(folder)
    others = [_again(path, plan) for path in again]
    bundles = _bundles(plan)
    forecasts, told = _forecasts(plan, settings, measured, bundles)
    notes = [*engine_notes(plan, bundles), *share_notes(folder), *told]
    rows, llms = [], []
    for name, one in measured.items():
        pipeline, simulation = _expected(plan, name, one, settings, forecasts.get(name))
        same = [run[name] for run in others if name in run]
        rows += _rows(name, one, pipeline, simulation, same)
        llms += _llm_rows(plan, name, one, forecasts.get(name))
    flags = sorted(
        {f for o in forecasts.values() for f in (*o.pipeline.flags, *o.simulation.flags)}
    )
    return Comparison(
        rows=tuple(rows),
        llms=tuple(llms),
        measured=measured,
        pace=dict.fromkeys(measured, _pace(settings)),
        notes=tuple(notes),
        flags=tuple(flags or (plan.predicted.flags if plan.predicted else ())),
        explanation=_explanation(bool(forecasts), len(again)),
    )


def _bundles(plan: Plan) -> list[Bundle]:
    """The profiles that the plan was made from; none where they are gone."""
    try:
        return bundles_of(plan)
    except ScepsyError:
        return []


def _forecasts(
    plan: Plan, settings: RunSettings, measured: Mapping[str, Figures], bundles: Sequence[Bundle]
) -> tuple[dict[str, Forecast], list[str]]:
    """Predictions for this run's own load by workflow, and what they rest on or lack."""
    if len(plan.workflows) != 1:
        return {}, ["several workflows at once: predicted figures are those stored in the plan"]
    try:
        load, spans = _load(settings, next(iter(measured.values()))), spans_of(plan)
        found = forecast(plan, spans, bundles or bundles_of(plan), load, settings.seed)
    except ScepsyError as error:
        why = str(error).partition(";")[0]
        return {}, [f"no new prediction for this load, figures are the plan's own: {why}"]
    name = plan.workflows[0].name
    return {name: found}, sample_note(spans[name], name)


def _again(path: Path, plan: Plan) -> dict[str, Figures]:
    """Figures of another run. Raises InputError where it ran another plan."""
    folder = RunFolder(path.absolute())
    if load_plan(folder.plan).instances != plan.instances:
        raise InputError(f"--again {path}: ran another plan; its difference would be no noise")
    return _measured(folder)


def _measured(folder: RunFolder) -> dict[str, Figures]:
    found = read_json(folder.measured, MeasuredRun)
    if found is None or not found.workflows:
        raise InputError(f"{folder.measured}: no figures; the run has not ended, or ran no task")
    return found.workflows


def _load(settings: RunSettings, measured: Figures) -> Closed | Open:
    num_runs = measured.num_runs or 0
    if settings.rate_rps:
        return Open(num_runs, settings.rate_rps)
    return Closed(num_runs, settings.max_runs_in_flight or 1)


def _pace(settings: RunSettings) -> str:
    if settings.rate_rps:
        return f"Poisson arrivals at {settings.rate_rps:g} runs per second"
    return f"at most {settings.max_runs_in_flight} at a time"


def _expected(
    plan: Plan, name: str, measured: Figures, settings: RunSettings, seen: Forecast | None
) -> tuple[RunFigures, RunFigures]:
    """What pipeline and simulation say of one workflow's runs; unknown figures are None."""
    if seen is None:
        planned = next((w for w in plan.workflows if w.name == name), None)
        known = plan.predicted if _is_planned_load(planned, settings) else None
        stored = known.per_workflow.get(name) if known else None
        return _offered(stored or RunFigures(), settings), RunFigures()
    pipeline = _offered(seen.pipeline.per_workflow[name], settings)
    if pipeline.makespan_s:
        # Over the whole batch, as measured: fill and drain included.
        throughput_rps = (measured.num_runs or 0) / pipeline.makespan_s
        pipeline = replace(pipeline, throughput_rps=throughput_rps)
    return pipeline, seen.simulation.per_workflow[name]


def _offered(figures: RunFigures, settings: RunSettings) -> RunFigures:
    """No more runs end than arrive: the pipeline's throughput is what it could take."""
    if settings.rate_rps and figures.throughput_rps is not None:
        return replace(figures, throughput_rps=min(settings.rate_rps, figures.throughput_rps))
    return figures


def _is_planned_load(planned: PlanWorkflow | None, settings: RunSettings) -> bool:
    """Whether the run had the load that the plan's own figures are for."""
    if planned is None:
        return False
    if planned.rate_rps is not None:
        return planned.rate_rps == settings.rate_rps
    return planned.max_runs_in_flight == settings.max_runs_in_flight


def _rows(
    name: str,
    measured: Figures,
    pipeline: RunFigures,
    simulation: RunFigures,
    others: Sequence[Figures],
) -> list[Row]:
    """The figures of one workflow's runs; ``others`` are those of its other runs."""
    return [
        _row(
            *(getattr(figures, key) for figures in (measured, pipeline, simulation)),
            workflow=name,
            metric=metric,
            unit=unit,
            interval=simulation.intervals.get(key),
            noise=_noise([getattr(figures, key) for figures in (measured, *others)]),
        )
        for metric, key, unit in METRICS
    ]


def _llm_rows(plan: Plan, name: str, measured: Figures, seen: Forecast | None) -> list[Row]:
    """Mean latency of each LLM's calls in one workflow."""
    hosts = {alias: llm for w in plan.workflows if w.name == name for alias, llm in w.llms.items()}
    predicted = (seen.pipeline, seen.simulation) if seen else (Figures(), Figures())
    rows = []
    for alias, llm in measured.per_llm.items():
        calls = [of.per_llm.get(hosts.get(alias, alias), LlmFigures()) for of in predicted]
        latencies_s = (of.latency_mean_s for of in (llm, *calls))
        rows.append(_row(*latencies_s, workflow=name, llm=alias, metric="call latency", unit="s"))
    return rows


def _row(
    measured: float | None, pipeline: float | None, simulation: float | None, **about: Any
) -> Row:
    return Row(
        measured=measured,
        pipeline=pipeline,
        simulation=simulation,
        pipeline_error=_error(pipeline, measured),
        simulation_error=_error(simulation, measured),
        **about,
    )


def _error(predicted: float | None, measured: float | None) -> float | None:
    return None if predicted is None or not measured else predicted / measured - 1.0


def _noise(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v]
    return (max(known) - min(known)) / min(known) if len(known) > 1 else None


def _explanation(is_new: bool, num_again: int) -> str:
    if is_new:
        text = (
            "Predicted from the traced runs and profiles that the plan was made from, for this "
            "run's own load."
        )
    else:
        text = (
            "Predicted figures are those stored in the plan, shown only where the run had the load "
            "they are for."
        )
    text += " Errors are relative to the measured value: + says that the prediction is higher."
    if num_again:
        return (
            f"{text} The noise floor is the largest difference between {num_again + 1} runs of "
            "this same plan."
        )
    return f"{text} For the noise floor run the same plan again and give it with --again."
