"""``TASKS.jsonl``: what a batch works off, one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import read_jsonl_data


@dataclass(frozen=True, slots=True)
class Task:
    """``data`` is all of its JSON, as its agent gets it: task id and workflow included."""

    task_id: str
    workflow: str
    data: dict[str, Any]


def load_tasks(path: Path | str, workflows: Sequence[str]) -> list[Task]:
    """Read tasks; each gets the key ``workflow`` (needed in the file when there are several).

    Raises InputError naming the task: no task_id, one that stands twice, an unknown workflow.
    """
    lines = read_jsonl_data(path)
    if not lines:
        raise InputError(f'{path}: has no tasks; each line is {{"task_id": "...", ...}}')
    seen: dict[str, int] = {}
    tasks = []
    for number, data in enumerate(lines, start=1):
        where = f"{path} task {number}"
        task_id = data.get("task_id")
        if not isinstance(task_id, str) or not task_id:
            raise InputError(f"{where}: task_id: must be a non-empty string, is {task_id!r}")
        if task_id in seen:
            raise InputError(f"{where}: task_id {task_id!r} stands already in task {seen[task_id]}")
        seen[task_id] = number
        if "workflow" not in data and len(workflows) == 1:
            data["workflow"] = workflows[0]
        workflow = data.get("workflow")
        if not isinstance(workflow, str) or workflow not in workflows:
            known = ", ".join(workflows) or "none"
            raise InputError(f"{where}: workflow: {workflow!r} is not known; known: {known}")
        tasks.append(Task(task_id, workflow, data))
    return tasks
