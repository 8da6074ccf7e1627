"""Results files: what a line of the ledger holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.results import TaskResult, load_results, result_line


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """An agent's result may be any JSON; a failure has a reason instead."""
    times = {"attempts": 2, "started_s": 1.5, "finished_s": 2}
    found = [
        TaskResult(task_id="a", status="ok", result={"x": [None, 1]}, **times),
        TaskResult(task_id="b", status="failed", error="no", error_class="record", **times),
        TaskResult(task_id="c", status="ok", result=["\ud800", "\u2028", 10**30], **times),
        TaskResult(task_id="d", status="ok", **times),
    ]
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join(result_line(one) for one in found))
    assert load_results(path) == found
    assert '"result"' not in path.read_text().splitlines()[1]


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    """A status that nobody knows is refused with the line that has it."""
    path = tmp_path / "results.jsonl"
    path.write_text(
        '{"task_id": "a", "status": "done", "attempts": 1, "started_s": 0, "finished_s": 1}\n'
    )
    with pytest.raises(InputError, match=r"line 1: status: .*'ok' or 'failed'; got \"done\""):
        load_results(path)
