"""Predicted beside measured: the same plan, load and token lengths, and the error, whatever it is.

The prediction is made from what the plan was made from (its traced spans and profiles), never
from the run itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError, ScepsyError
from scepsy_hpc.files import check, record
from scepsy_hpc.planning.outlook import Arrivals, Closed, Open, Outlook, outlook
from scepsy_hpc.planning.plan import Plan, load_plan
from scepsy_hpc.planning.plan_inputs import bundles_of, spans_of
from scepsy_hpc.serving.measured import Measured
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
class Comparison:
    """Rows, what was measured, and in words what it rests on."""

    rows: tuple[Row, ...]
    measured: tuple[Measured, ...]
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
    others = [_measured(RunFolder(path.absolute())) for path in again]
    notes, outlooks = [*engine_notes(plan), *share_notes(folder)], {}
    try:
        if len(plan.workflows) == 1:
            load = _load(settings, measured[0])
            name = plan.workflows[0].name
            outlooks[name] = outlook(plan, spans_of(plan), bundles_of(plan), load, settings.seed)
        else:
            notes.append("predictions of several workflows at once are those stored in the plan")
    except ScepsyError as error:
        notes.append(f"no new prediction for this load, figures are the plan's own: {error}")
    rows = [row for one in measured for row in _rows(one, outlooks.get(one.workflow), plan, others)]
    flags = sorted({f for o in outlooks.values() for f in (*o.pipeline.flags, *o.simulation.flags)})
    return Comparison(
        rows=tuple(rows),
        measured=tuple(measured),
        pace={one.workflow: _pace(settings) for one in measured},
        notes=tuple(notes),
        flags=tuple(flags or (plan.predicted.flags if plan.predicted else ())),
        explanation=_explanation(bool(again)),
    )


def share_notes(folder: RunFolder) -> list[str]:
    """Says which engines were not held to their share of a GPU."""
    instances = (read_json(folder.status) or {}).get("instances", [])
    return [
        f"{i['id']} was time-sliced, no MPS held it to its share of the GPU: {i['time_sliced']}"
        for i in instances
        if i.get("time_sliced")
    ]


def engine_notes(plan: Plan) -> list[str]:
    """Says plainly when engines were simulated, and from which profile their timing came."""
    timing = sorted(
        {
            f"{llm.model} from {llm.engine_args.get('timing_bundle', 'its profile')}"
            for llm in plan.llms.values()
            if llm.engine == "simulated"
        }
    )
    if not timing:
        return []
    return [
        "The engines of this run were SIMULATED: no model was computed. Their timing follows "
        f"profiles: {'; '.join(timing)}. Agreement of predicted and measured figures is "
        "self-consistency, not accuracy on real GPUs."
    ]


def _measured(folder: RunFolder) -> list[Measured]:
    data = read_json(folder.measured)
    if data is None:
        raise InputError(f"{folder.measured}: not there; the run has not ended, or ran no task")
    found = data["workflows"].values()
    return [check(figures, Measured, str(folder.measured)) for figures in found]


def _load(settings: RunSettings, measured: Measured) -> Arrivals:
    num_runs = measured.num_ok + measured.num_failed
    if settings.rate_rps:
        return Open(num_runs, settings.rate_rps)
    return Closed(num_runs, settings.max_runs_in_flight or 1)


def _pace(settings: RunSettings) -> str:
    if settings.rate_rps:
        return f"Poisson arrivals at {settings.rate_rps:g} runs per second"
    return f"at most {settings.max_runs_in_flight} at a time"


def _rows(
    measured: Measured, seen: Outlook | None, plan: Plan, others: Sequence[Sequence[Measured]]
) -> list[Row]:
    same = [m for runs in others for m in runs if m.workflow == measured.workflow]
    stored = plan.predicted.per_workflow.get(measured.workflow) if plan.predicted else None
    pipeline: Any = seen.pipeline.per_workflow[measured.workflow] if seen else stored
    simulation = seen.simulation.per_workflow[measured.workflow] if seen else None
    rows = []
    for metric, key, unit in METRICS:
        value = getattr(measured, key)
        by_pipeline = getattr(pipeline, key, None)
        if key == "throughput_rps" and pipeline and pipeline.makespan_s and seen:
            # Over the whole batch, as measured: fill and drain included.
            by_pipeline = (measured.num_ok + measured.num_failed) / pipeline.makespan_s
        by_simulation = getattr(simulation, key, None)
        rows.append(
            Row(
                workflow=measured.workflow,
                metric=metric,
                unit=unit,
                measured=value,
                pipeline=by_pipeline,
                simulation=by_simulation,
                interval=simulation.intervals.get(key) if simulation else None,
                pipeline_error=_error(by_pipeline, value),
                simulation_error=_error(by_simulation, value),
                noise=_noise([value, *(getattr(m, key) for m in same)]),
            )
        )
    return rows


def _error(predicted: float | None, measured: float | None) -> float | None:
    return None if predicted is None or not measured else predicted / measured - 1.0


def _noise(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v]
    return (max(known) - min(known)) / min(known) if len(known) > 1 else None


def _explanation(with_noise: bool) -> str:
    text = (
        "Predicted from the traced runs and profiles that the plan was made from, for this run's "
        "own load. Errors are relative to the measured value."
    )
    if with_noise:
        text += " The noise floor is the largest difference between runs of this same plan."
    return text
