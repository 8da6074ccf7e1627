"""Runs at a trace's start that are left out of it.

The first run of an agent's worker also loads what the agent uses: modules that its client imports
when first called, indexes, connections. A trace of a dozen runs on three workers would have every
fourth run that slow, a batch of thousands hardly one.
"""

from __future__ import annotations

from collections.abc import Sequence

from scepsy_hpc.formats.spans import Span, shown_in_run_id
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.formats.workflow import Agent


def num_cold(agent: Agent | None, runs_in_flight: int) -> int:
    """Runs that are the first of their worker. A command starts anew for every task."""
    return runs_in_flight if agent is not None and agent.python is not None else 0


def warm_up_tasks(tasks: Sequence[Task], num_traced: int, number: int) -> list[Task]:
    """Up to ``number`` tasks after the traced ones, whose run ids cannot be taken for theirs."""
    traced = {shown_in_run_id(task.task_id) for task in tasks[:num_traced]}
    others = (t for t in tasks[num_traced:] if shown_in_run_id(t.task_id) not in traced)
    return [task for task, _ in zip(others, range(number), strict=False)]


def without_runs_of(spans: Sequence[Span], tasks: Sequence[Task]) -> list[Span]:
    """The spans of all other tasks' runs."""
    gone = {shown_in_run_id(task.task_id) for task in tasks}
    return [span for span in spans if span.run_id.rsplit(".", 2)[0] not in gone]
