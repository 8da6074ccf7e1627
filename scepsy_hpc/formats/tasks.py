"""``TASKS.jsonl``: what a batch works off, one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import read_jsonl_data


def load_tasks(path: Path | str, workflows: Sequence[str]) -> list[dict[str, Any]]:
    """Read tasks; each gets the key ``workflow`` (needed in the file when there are several).

    Raises InputError naming the task: no task_id, one that stands twice, an unknown workflow.
    """
    tasks = read_jsonl_data(path)
    if not tasks:
        raise InputError(f'{path}: has no tasks; each line is {{"task_id": "...", ...}}')
    seen: dict[str, int] = {}
    for number, task in enumerate(tasks, start=1):
        where = f"{path} task {number}"
        task_id = task.get("task_id")
        if not isinstance(task_id, str) or not task_id:
            raise InputError(f"{where}: task_id: must be a non-empty string, is {task_id!r}")
        if task_id in seen:
            raise InputError(f"{where}: task_id {task_id!r} stands already in task {seen[task_id]}")
        seen[task_id] = number
        if "workflow" not in task and len(workflows) == 1:
            task["workflow"] = workflows[0]
        if task.get("workflow") not in workflows:
            known = ", ".join(workflows) or "none"
            raise InputError(
                f"{where}: workflow: {task.get('workflow')!r} is not known; known: {known}"
            )
    return tasks
