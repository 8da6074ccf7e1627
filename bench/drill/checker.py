"""Counts what went wrong in a results folder; shares no code with the package that wrote it.

It reads the files by the contract alone: what the tasks were, what `results.jsonl` and the segments
in `results.d/` say, and what the agents themselves witnessed. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Results of these odd tasks are fine as JSON: nothing excuses a failure.
HARMLESS = {
    "line_separator": "a\u2028b\u0085c\x0b\x1cd",
    "nul": "a\0b",
    "huge_stdout": None,
    "orphan": None,
}
TOKENS = 5


@dataclass
class Tally:
    """What is wrong with one batch; ``problems`` names each case."""

    tasks: int = 0
    lost: int = 0
    twice: int = 0
    blamed: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, column: str, task_id: str, what: str) -> None:
        """Count one case."""
        setattr(self, column, getattr(self, column) + 1)
        self.problems.append(f"{column}: {task_id!r}: {what}")


def lines_of(path: Path) -> list[bytes]:
    """Lines as the contract has them: they end at `\\n` and nowhere else."""
    data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def objects_of(path: Path) -> list[Any]:
    """The lines of a file that are JSON; others are None."""
    found = []
    for line in lines_of(path):
        try:
            found.append(json.loads(line) if line.strip() else None)
        except (ValueError, RecursionError):
            found.append(None)
    return found


def check(tasks_path: Path, results: Path, witness: Path) -> Tally:
    """Compare what was asked for with what is recorded."""
    tasks = {task["task_id"]: task for task in objects_of(tasks_path)}
    tally, ended = Tally(tasks=len(tasks)), ended_tasks(witness)
    records = objects_of(results)
    for number, one in enumerate(records):
        if not isinstance(one, dict) or one.get("task_id") not in tasks:
            tally.add("wrong", f"line {number + 1}", "is no record of a task")
    known = [one for one in records if isinstance(one, dict) and one.get("task_id") in tasks]
    times = Counter(one["task_id"] for one in known)
    for task_id in tasks:
        if times[task_id] == 0:
            tally.add("lost", task_id, "is not recorded")
        elif times[task_id] > 1:
            tally.add("twice", task_id, f"stands {times[task_id]} times")
    for one in known:
        _judge(tally, tasks[one["task_id"]], one, ended)
    _compare_with_segments(tally, results, {one["task_id"]: one for one in known})
    return tally


def _judge(tally: Tally, task: dict[str, Any], one: dict[str, Any], ended: set[str]) -> None:
    """Whether a record says of its task what is true."""
    task_id, odd = task["task_id"], task.get("odd")
    status, result = one.get("status"), one.get("result")
    if status == "failed":
        if odd is None:
            said = f"{one.get('error_class')}: {str(one.get('error'))[:300]}"
            tally.add("blamed", task_id, said)
        elif odd in HARMLESS:
            tally.add(
                "wrong", task_id, f"{odd} is no reason to fail: {str(one.get('error'))[:300]}"
            )
        elif one.get("error_class") not in ("agent", "record"):
            tally.add("wrong", task_id, f"{odd}: error_class is {one.get('error_class')!r}")
        return
    if status != "ok":
        tally.add("wrong", task_id, f"status {status!r}")
    elif task_id not in ended:
        tally.add("wrong", task_id, "is recorded as ok, but no agent ever finished it")
    elif not isinstance(result, dict) or result.get("task") != task_id:
        tally.add("wrong", task_id, f"has another result: {str(result)[:200]}")
    elif odd is None and result.get("tokens") != TOKENS:
        tally.add("wrong", task_id, f"has {result.get('tokens')} tokens, not {TOKENS}")
    elif HARMLESS.get(str(odd)) not in (None, result.get("text")):
        tally.add("wrong", task_id, f"its text became {result.get('text')!r}")


def ended_tasks(witness: Path) -> set[str]:
    """Tasks that some agent ran to its end."""
    return {one[1] for one in objects_of(witness) if one and one[0] == "end"}


def _compare_with_segments(tally: Tally, results: Path, shown: dict[str, Any]) -> None:
    """`results.jsonl` must be the merge of `results.d/`, where there is one."""
    merged = merge(results.with_name("results.d"))
    if merged is None:
        return
    for task_id in sorted(merged.keys() | shown.keys()):
        if merged.get(task_id) != shown.get(task_id):
            what = "differs from" if task_id in shown and task_id in merged else "is not both in"
            tally.add("wrong", task_id, f"{what} results.jsonl and the merge of results.d")


def merge(folder: Path) -> dict[str, Any] | None:
    """First record of each task in the order (generation, offset); None without segments.

    Of a segment as much counts as the least that any later one says in its first line.
    """
    names = sorted(p.name for p in folder.glob("*.jsonl") if re.fullmatch(r"\d+\.jsonl", p.name))
    if not names:
        return None
    limits: dict[str, int] = {}
    for name in reversed(names):
        head = (folder / name).read_bytes().partition(b"\n")[0]
        if len(head) + 1 <= limits.get(name, len(head) + 1):
            for earlier, length in _earlier(head).items():
                limits[earlier] = min(length, limits.get(earlier, length))
    merged: dict[str, Any] = {}
    for name in names:
        data = (folder / name).read_bytes()
        for line in data[: limits.get(name, len(data))].split(b"\n"):
            try:
                one = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(one, dict) and "task_id" in one and "status" in one:
                merged.setdefault(one["task_id"], one)
    return merged


def _earlier(head: bytes) -> dict[str, int]:
    try:
        found = json.loads(head).get("earlier", {})
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
