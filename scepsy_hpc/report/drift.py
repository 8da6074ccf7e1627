"""What this run's agents did beside what the traced ones did: where they differ, so do figures."""

from __future__ import annotations

from collections.abc import Sequence

from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.files import record
from scepsy_hpc.formats.plan import DemandSummary, Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.tracing.demand.demand import Demand, demand_of


@record
class Habit:
    """One figure of a mean run. ``unit`` is s, calls or tokens; an unknown value is None."""

    workflow: str
    what: str
    unit: str
    traced: float | None
    measured: float | None
    change: float | None


def habits(plan: Plan, spans: Sequence[Span]) -> list[Habit]:
    """Figures of each workflow with runs in ``spans``; none where its plan keeps no demand."""
    found = []
    for workflow in plan.workflows:
        traced = plan.demand.get(workflow.name)
        if traced is None:
            continue
        try:
            found += _habits(workflow.name, traced, demand_of(spans, workflow.name))
        except ScepsyError:
            continue  # no runs of it, or spans cut off in mid-run
    return found


def _habits(workflow: str, traced: DemandSummary, now: Demand) -> list[Habit]:
    rows = [_habit(workflow, "time outside LLM calls", "s", traced.tool_time_s, now.tool_time_s)]
    for alias, before in traced.llms.items():
        after = now.llms.get(alias)
        rows.append(
            _habit(
                workflow,
                f"{alias}: calls",
                "calls",
                before.calls_per_run,
                after.calls_per_run if after else 0.0,
            )
        )
        for which in ("input_tokens", "output_tokens"):
            what = f"{alias}: {which.replace('_', ' ')} of a call"
            means = (getattr(llm, f"{which}_mean", None) for llm in (before, after))
            rows.append(_habit(workflow, what, "tokens", *means))
    return rows


def _habit(
    workflow: str, what: str, unit: str, traced: float | None, measured: float | None
) -> Habit:
    known = traced is not None and measured is not None and traced > 0
    change = measured / traced - 1.0 if known and measured is not None and traced else None
    return Habit(
        workflow=workflow, what=what, unit=unit, traced=traced, measured=measured, change=change
    )
