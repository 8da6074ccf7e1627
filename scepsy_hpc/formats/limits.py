"""How large and how deep one task's data may be, so that no task harms the others.

Imports only the standard library: an agent's worker needs it and must start quickly.
"""

from __future__ import annotations

import json
from typing import Any

MAX_RESULT_BYTES = 16 << 20
"""Bytes of one result as JSON; what is larger belongs into a file that the result names."""

MAX_JSON_DEPTH = 128
"""Lists and objects inside each other, of a task and of a result: strict readers stop at 200."""

MAX_ERROR_CHARS = 2_000
"""Characters of an error that are kept; the whole of it stands in the agent's log."""

MAX_TASK_ID_CHARS = 512
"""Characters of a task id: it is in file names, logs and the agent's environment."""


class Unrecordable(ValueError):
    """A result that no line of the ledger can hold; the message says why."""


def result_json(result: Any) -> str:
    """A result as strict JSON, all of it ASCII. Raises Unrecordable."""
    if too_deep(result):
        raise Unrecordable(f"nested deeper than {MAX_JSON_DEPTH} lists and objects")
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unrecordable(str(error)) from None
    if len(text) > MAX_RESULT_BYTES:
        raise Unrecordable(
            f"its JSON has {len(text)} bytes, more than {MAX_RESULT_BYTES}; write large results "
            "into files, return their paths"
        )
    return text


def parsed_json(text: str) -> Any:
    """What a JSON text says. Raises ValueError, also for NaN and where it is nested too deep."""
    try:
        found = _STRICT.decode(text)
    except RecursionError:
        found = _DEEP
    if found is _DEEP or too_deep(found):
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} lists and objects")
    return found


def too_deep(value: Any) -> bool:
    """Whether lists and objects stand deeper inside each other than is allowed."""
    level = [value] if isinstance(value, _NESTS) else []
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _NESTS)
        ]
        if not level:
            return False
    return True


def short_error(text: str) -> str:
    """One line of an error, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_ERROR_CHARS else line[: MAX_ERROR_CHARS - 3] + "..."


_DEEP = object()
_NESTS = (dict, list, tuple)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Made once: json.loads makes one a call where it is given an option.
_STRICT = json.JSONDecoder(parse_constant=_no_constant)
