"""``TASKS.jsonl``: what a batch works off, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.limits import MAX_TASK_ID_CHARS, parsed_json


@dataclass(frozen=True, slots=True)
class Task:
    """``data`` is all of its JSON, as its agent gets it: task id and workflow included."""

    task_id: str
    workflow: str
    data: dict[str, Any]


def load_tasks(path: Path | str, workflows: Sequence[str]) -> list[Task]:
    """Read tasks; each gets the key ``workflow`` (needed in the file when there are several).

    Raises InputError naming the task: no task_id or one that no environment can hold, one that
    stands twice, an unknown workflow, NaN, lists and objects too deep inside each other.
    """
    seen: dict[str, int] = {}
    tasks = []
    for number, data in enumerate(_objects(path), start=1):
        where = f"{path} task {number}"
        task_id = _checked_id(data.get("task_id"), where)
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
    if not tasks:
        raise InputError(f'{path}: has no tasks; each line is {{"task_id": "...", ...}}')
    return tasks


def load_task_ids(path: Path | str) -> list[str]:
    """Ids of a tasks file that was checked before, and nothing else of it. Raises InputError."""
    return [data["task_id"] for data in _objects(path)]


def _checked_id(task_id: Any, where: str) -> str:
    if not isinstance(task_id, str) or not task_id:
        raise InputError(f"{where}: task_id: must be a non-empty string, is {task_id!r}")
    if len(task_id) > MAX_TASK_ID_CHARS:
        raise InputError(
            f"{where}: task_id: has {len(task_id)} characters, at most {MAX_TASK_ID_CHARS}"
        )
    odd = [c for c in task_id if ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000]
    if odd:
        raise InputError(
            f"{where}: task_id: holds {odd[0]!r}, which no environment variable or log can; is "
            f"{task_id!r}"
        )
    return task_id


def _objects(path: Path | str) -> Iterator[dict[str, Any]]:
    """One line after the other, so that a large file is never in memory as a whole."""
    try:
        with Path(path).open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _object(line, f"{path} line {number}")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parsed_json(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{where}: cannot be read: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        shown = json.dumps(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise InputError(f"{where}: must be one JSON object, is {shown}")
    return value
