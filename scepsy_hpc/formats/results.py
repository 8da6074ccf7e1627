"""``results.jsonl``: one line a task that ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from scepsy_hpc.files import read_jsonl, record


@record
class TaskResult:
    """One task that ended; times are Unix seconds."""

    task_id: str
    status: Literal["ok", "failed"]
    attempts: int
    started_s: float
    finished_s: float
    result: Any = None
    error: str | None = None


def load_results(path: Path | str) -> list[TaskResult]:
    """Read what is recorded. Raises InputError naming the line."""
    return read_jsonl(path, TaskResult)
