"""``results.jsonl``: one line a task that ended.

A line ends with ``\\n`` and nothing else does; all outside ASCII is escaped, half a surrogate pair
too, so that whatever an agent returns can be read back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, record, to_plain
from scepsy_hpc.formats.limits import result_json, short_error

FailureClass = Literal["infra", "agent", "record"]
"""Why an attempt failed: what hosts it, its agent, or a result that cannot be recorded."""


@record
class TaskResult:
    """One task that ended; times are Unix seconds.

    ``error_class`` of a failed one: its agent failed, or its result cannot be recorded.
    """

    task_id: str
    status: Literal["ok", "failed"]
    attempts: int
    started_s: float
    finished_s: float
    result: Any = None
    error: str | None = None
    error_class: Literal["agent", "record"] | None = None


_CHECKED = TypeAdapter(TaskResult)


def result_line(result: TaskResult) -> bytes:
    """The line of a task that ended. Raises Unrecordable where its result cannot be written."""
    plain = {
        "task_id": result.task_id,
        "status": result.status,
        "attempts": result.attempts,
        "started_s": result.started_s,
        "finished_s": result.finished_s,
    }
    if result.error is not None:
        plain |= {"error": short_error(result.error), "error_class": result.error_class}
    text = json.dumps(to_plain(plain), allow_nan=False)
    if result.status == "ok":
        text = f'{text[:-1]}, "result": {result_json(result.result)}}}'
    return text.encode("ascii") + b"\n"


def parse_result(line: bytes) -> TaskResult:
    """What a line of results says. Raises ValueError where it is damaged."""
    try:
        return _CHECKED.validate_json(line, strict=True)
    except ValidationError:
        # Strict readers refuse half a surrogate pair; ours wrote it.
        found = _loosely(line)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    result = found.pop("result", None)
    try:
        head = check(found, TaskResult, "line")
    except InputError as error:
        raise ValueError(str(error).removeprefix("line: ")) from None
    return TaskResult(**{name: getattr(head, name) for name in _HEAD}, result=result)


def _loosely(line: bytes) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None


_HEAD = ("task_id", "status", "attempts", "started_s", "finished_s", "error", "error_class")


def load_results(path: Path | str) -> list[TaskResult]:
    """Read a ``results.jsonl``. Raises InputError naming the line.

    While a run goes on, ``formats.segments`` knows more.
    """
    found = []
    try:
        with Path(path).open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    found.append(_read_line(line, f"{path} line {number}"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return found


def _read_line(line: bytes, where: str) -> TaskResult:
    try:
        return parse_result(line)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
