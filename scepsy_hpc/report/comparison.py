"""Predicted beside measured: the same plan, load and token lengths, and the error, whatever it is.

The prediction is made from what the plan was made from (its traced spans and profiles), never
from the run itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scepsy_hpc.errors import InputError, ScepsyError
from scepsy_hpc.files import check, record
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.plan import Plan, PlanWorkflow, load_plan
from scepsy_hpc.planning.forecast import Forecast, forecast
from scepsy_hpc.planning.inputs import bundles_of, spans_of
from scepsy_hpc.planning.simulation.flows import Arrivals, Closed, Open
from scepsy_hpc.report.notes import engine_notes, share_notes
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
    """One figure of one workflow; errors are relative to the measured value."""

    workflow: str
    metric: str
    unit: str
    measured: float | None
    pipeline: float | None = None
    simulation: float | None = None
    interval: tuple[float, float] | None = None
    pipeline_error: float | None = None
    simulation_error: float | None = None
    noise: float | None = None

    @property
    def interval_text(self) -> str:
        """The simulation's 95% interval; a dash when it has none."""
        if self.interval is None:
            return "-"
        return f"{self.interval[0]:.3g} to {self.interval[1]:.3g}"


@record
class LlmRow:
    """Mean latency of one LLM's calls, in seconds; errors are relative to the measured value."""

    workflow: str
    llm: str
    num_calls: int
    measured_s: float | None
    pipeline_s: float | None = None
    simulation_s: float | None = None
    pipeline_error: float | None = None
    simulation_error: float | None = None


@record
class Comparison:
    """Rows, what was measured, and in words what it rests on."""

    rows: tuple[Row, ...]
    llms: tuple[LlmRow, ...]
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
    forecasts, problem = _forecasts(plan, settings, measured, bundles)
    notes = [*engine_notes(plan, bundles), *share_notes(folder), *([problem] if problem else [])]
    rows, llms = [], []
    for name, one in measured.items():
        expected = _expected(plan, name, one, settings, forecasts.get(name))
        rows += _rows(name, one, expected, [run[name] for run in others if name in run])
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
) -> tuple[dict[str, Forecast], str | None]:
    """Predictions for this run's own load by workflow, or why there are none."""
    if len(plan.workflows) != 1:
        return {}, "several workflows at once: predicted figures are those stored in the plan"
    try:
        load, spans = _load(settings, next(iter(measured.values()))), spans_of(plan)
        found = forecast(plan, spans, bundles or bundles_of(plan), load, settings.seed)
    except ScepsyError as error:
        why = str(error).partition(";")[0]
        return {}, f"no new prediction for this load, figures are the plan's own: {why}"
    return {plan.workflows[0].name: found}, None


def _again(path: Path, plan: Plan) -> dict[str, Figures]:
    """Figures of another run. Raises InputError where it ran another plan."""
    folder = RunFolder(path.absolute())
    if load_plan(folder.plan).instances != plan.instances:
        raise InputError(f"--again {path}: ran another plan; its difference would be no noise")
    return _measured(folder)


def _measured(folder: RunFolder) -> dict[str, Figures]:
    data = read_json(folder.measured)
    if data is None:
        raise InputError(f"{folder.measured}: not there; the run has not ended, or ran no task")
    return check(data, MeasuredRun, str(folder.measured)).workflows


def _load(settings: RunSettings, measured: Figures) -> Arrivals:
    num_runs = measured.num_runs or 0
    if settings.rate_rps:
        return Open(num_runs, settings.rate_rps)
    return Closed(num_runs, settings.max_runs_in_flight or 1)


def _pace(settings: RunSettings) -> str:
    if settings.rate_rps:
        return f"Poisson arrivals at {settings.rate_rps:g} runs per second"
    return f"at most {settings.max_runs_in_flight} at a time"


@record
class _Expected:
    """What was predicted of one workflow; figures by name, unknown ones are missing."""

    pipeline: dict[str, float]
    simulation: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def _expected(
    plan: Plan, name: str, measured: Figures, settings: RunSettings, seen: Forecast | None
) -> _Expected:
    if seen is None:
        planned = next((w for w in plan.workflows if w.name == name), None)
        stored = plan.predicted.per_workflow.get(name) if plan.predicted else None
        known = _figures(stored) if _is_planned_load(planned, settings) else {}
        return _Expected(pipeline=_offered(known, settings), simulation={}, intervals={})
    pipeline, simulation = seen.pipeline.per_workflow[name], seen.simulation.per_workflow[name]
    figures = _offered(_figures(pipeline), settings)
    if pipeline.makespan_s:
        # Over the whole batch, as measured: fill and drain included.
        figures["throughput_rps"] = (measured.num_runs or 0) / pipeline.makespan_s
    return _Expected(
        pipeline=figures, simulation=_figures(simulation), intervals=simulation.intervals
    )


def _figures(found: RunFigures | None) -> dict[str, float]:
    values = {key: getattr(found, key, None) for _, key, _ in METRICS}
    return {key: value for key, value in values.items() if value is not None}


def _offered(figures: dict[str, float], settings: RunSettings) -> dict[str, float]:
    """No more runs end than arrive: the pipeline's throughput is what it could take."""
    if settings.rate_rps and "throughput_rps" in figures:
        return figures | {"throughput_rps": min(settings.rate_rps, figures["throughput_rps"])}
    return figures


def _is_planned_load(planned: PlanWorkflow | None, settings: RunSettings) -> bool:
    """Whether the run had the load that the plan's own figures are for."""
    if planned is None:
        return False
    if planned.rate_rps is not None:
        return planned.rate_rps == settings.rate_rps
    return planned.max_runs_in_flight == settings.max_runs_in_flight


def _rows(
    name: str, measured: Figures, expected: _Expected, others: Sequence[Figures]
) -> list[Row]:
    rows = []
    for metric, key, unit in METRICS:
        value = getattr(measured, key)
        pipeline, simulation = expected.pipeline.get(key), expected.simulation.get(key)
        rows.append(
            Row(
                workflow=name,
                metric=metric,
                unit=unit,
                measured=value,
                pipeline=pipeline,
                simulation=simulation,
                interval=expected.intervals.get(key),
                pipeline_error=_error(pipeline, value),
                simulation_error=_error(simulation, value),
                noise=_noise([value, *(getattr(m, key) for m in others)]),
            )
        )
    return rows


def _llm_rows(plan: Plan, name: str, measured: Figures, seen: Forecast | None) -> list[LlmRow]:
    planned = next((w for w in plan.workflows if w.name == name), None)
    hosts = planned.llms if planned else {}
    rows = []
    for alias, llm in measured.per_llm.items():
        host, value = hosts.get(alias, alias), llm.latency_mean_s
        by_pipeline = seen.pipeline.per_llm.get(host) if seen else None
        by_simulation = seen.simulation.per_llm.get(host) if seen else None
        pipeline_s = by_pipeline.latency_mean_s if by_pipeline else None
        simulation_s = by_simulation.latency_mean_s if by_simulation else None
        rows.append(
            LlmRow(
                workflow=name,
                llm=alias,
                num_calls=llm.num_calls or 0,
                measured_s=value,
                pipeline_s=pipeline_s,
                simulation_s=simulation_s,
                pipeline_error=_error(pipeline_s, value),
                simulation_error=_error(simulation_s, value),
            )
        )
    return rows


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
