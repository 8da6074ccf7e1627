"""Files that say when runs come: JSON lines or CSV, read line by line.

A line gives ``time_s`` and may give ``workflow`` and ``count``, so many runs at once (1 by
default). Times are seconds from any zero and do not descend within a workflow.
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError

_KEYS = ("time_s", "workflow", "count")
_LATEST_S = 1e11
_MOST_AT_ONCE = 1_000_000


def load_arrival_times(path: Path | str, workflows: Sequence[str]) -> dict[str, Sequence[float]]:
    """Times (s) of each workflow's runs, the first of all at 0. Raises InputError naming the line.

    With several workflows each line names its own; every one must come at least once. The name of
    a CSV file ends in ``.csv``.
    """
    found: dict[str, array[float]] = {name: array("d") for name in workflows}
    rows = _csv_rows if str(path).endswith(".csv") else _json_rows
    try:
        with open(path, encoding="utf-8", newline="") as lines:
            for number, row in rows(path, lines):
                name, time_s, count = _checked(row, f"{path} line {number}", workflows)
                mine = found[name]
                if mine and time_s < mine[-1]:
                    raise InputError(
                        f"{path} line {number}: time_s: {time_s} is before the line ahead of it "
                        f"({mine[-1]})"
                    )
                mine.extend([time_s] * count)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    without = [name for name, mine in found.items() if not mine]
    if without:
        raise InputError(f"{path}: no run of workflow {', '.join(without)} comes")
    first_s = min(mine[0] for mine in found.values())
    return {name: array("d", (t - first_s for t in mine)) for name, mine in found.items()}


def _json_rows(path: Path | str, lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f'{path} line {number}: must be an object, like {{"time_s": 0.5}}')
        yield number, row


def _csv_rows(path: Path | str, lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    table = csv.DictReader(lines)
    try:
        if table.fieldnames and "time_s" not in table.fieldnames:
            raise InputError(
                f"{path} line 1: must name the columns: time_s, and workflow and count where needed"
            )
        names = list(table.fieldnames or ())
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"{path} line 1: column {twice[0]!r} stands twice")
        for row in table:
            yield table.line_num, {key: _cell(key, value) for key, value in row.items() if value}
    except csv.Error as error:
        raise InputError(f"{path} line {table.line_num}: {error}") from None


def _cell(key: Any, text: Any) -> Any:
    try:
        return float(text) if key == "time_s" else int(text) if key == "count" else text
    except (TypeError, ValueError):
        return text


def _checked(row: dict[Any, Any], where: str, workflows: Sequence[str]) -> tuple[str, float, int]:
    unknown = [str(key) for key in row if key not in _KEYS]
    if unknown:
        raise InputError(f"{where}: {unknown[0]}: unknown key; known: {', '.join(_KEYS)}")
    time_s, count = row.get("time_s"), row.get("count", 1)
    if isinstance(time_s, bool) or not isinstance(time_s, int | float) or math.isnan(time_s):
        raise InputError(f"{where}: time_s: must be a finite number; is {time_s!r}")
    if not -_LATEST_S <= time_s <= _LATEST_S:
        raise InputError(
            f"{where}: time_s: must be a finite number of seconds, {_LATEST_S:g} at most; "
            f"is {_short(time_s)}"
        )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"{where}: count: must be a whole number of at least 1; is {count!r}")
    if count > _MOST_AT_ONCE:
        raise InputError(f"{where}: count: must be at most {_MOST_AT_ONCE}; is {_short(count)}")
    name = row.get("workflow", workflows[0] if len(workflows) == 1 else None)
    if name not in workflows:
        raise InputError(
            f"{where}: workflow: must be one of {', '.join(workflows)}; is {_short(name)}"
        )
    return str(name), float(time_s), count


def _short(value: Any) -> str:
    """A value as one screen line takes it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
