"""Tasks files: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.tasks import Task, load_tasks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no tasks"),
        ('{"task_id": "a"}\n{"task_id": "a"}\n', "task 2: task_id 'a' stands already in task 1"),
        ('{"id": "a"}\n', "task 1: task_id: must be a non-empty string, is None"),
        ('{"task_id": "a", "workflow": "x"}\n', "workflow: 'x' is not known; known: draft"),
        ('{"task_id": "a"}\n[1]\n', "line 2: must be one JSON object"),
    ],
)
def test_wrong_tasks_are_refused(tmp_path: Path, text: str, says: str) -> None:
    """A tasks file is refused with the line and what is wrong in it."""
    (tmp_path / "tasks.jsonl").write_text(text)
    with pytest.raises(InputError, match=says):
        load_tasks(tmp_path / "tasks.jsonl", ["draft"])


def test_tasks_need_a_workflow_only_among_several(tmp_path: Path) -> None:
    """With one workflow the key may be left out; with two it may not."""
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task_id": "a", "x": 1}\n')
    data = {"task_id": "a", "x": 1, "workflow": "draft"}
    assert load_tasks(path, ["draft"]) == [Task("a", "draft", data)]
    with pytest.raises(InputError, match="workflow: None is not known; known: draft, other"):
        load_tasks(path, ["draft", "other"])


def test_a_task_is_passed_on_as_it_stands(tmp_path: Path) -> None:
    """Its agent gets the very JSON of the line: keys in their order, whatever they hold."""
    line = '{"b": [1, null], "task_id": "a", "workflow": "x", "a": {"\\u00e9": 1e-3}}'
    (tmp_path / "tasks.jsonl").write_text(line + "\n")
    task = load_tasks(tmp_path / "tasks.jsonl", ["draft", "x"])[0]
    assert (task.task_id, task.workflow) == ("a", "x")
    assert json.dumps(task.data) == line.replace("1e-3", "0.001")
