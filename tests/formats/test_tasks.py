"""Tasks files: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.tasks import Task, load_task_ids, load_tasks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no tasks"),
        ('{"task_id": "a"}\n{"task_id": "a"}\n', "task 2: task_id 'a' stands already in task 1"),
        ('{"id": "a"}\n', "task 1: task_id: must be a non-empty string, is None"),
        ('{"task_id": "a", "workflow": "x"}\n', "workflow: 'x' is not known; known: draft"),
        ('{"task_id": "a"}\n[1]\n', "line 2: must be one JSON object, is .1."),
        ('{"task_id": "a\\u0000"}\n', r"task 1: task_id: holds '\\x00'"),
        ('{"task_id": "a\\n"}\n', r"task 1: task_id: holds '\\n'"),
        ('{"task_id": "a\\ud800"}\n', r"task 1: task_id: holds '\\ud800'"),
        (f'{{"task_id": "{"a" * 513}"}}\n', "task_id: has 513 characters, at most 512"),
        ('{"task_id": "a", "x": NaN}\n', "line 1: NaN is not JSON"),
        (f'{{"task_id": "a", "x": {"1" * 5000}}}\n', "line 1: Exceeds the limit"),
        (f'{{"task_id": "a", "x": {"[" * 600}{"]" * 600}}}\n', "line 1: nested deeper than 128"),
        ('["' * 100_000 + "\n", "line 1: (nested|not JSON)"),
        ('{"task_id": "a"\n', "line 1: not JSON"),
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


def test_odd_texts_that_an_agent_can_be_given_are_kept(tmp_path: Path) -> None:
    """Half a surrogate pair, NUL and other ends of lines inside a task are its own business."""
    path = tmp_path / "tasks.jsonl"
    odd = "a\ud800b\x00c\u2028d\u0085e"
    raw = json.dumps({"task_id": "t\u2028", "x": "\u2028"}, ensure_ascii=False)
    path.write_bytes(json.dumps({"task_id": "a", "x": odd}).encode() + b"\n" + raw.encode() + b"\n")
    one, two = load_tasks(path, ["draft"])
    assert (one.data["x"], two.task_id) == (odd, "t\u2028")
    assert load_task_ids(path) == ["a", "t\u2028"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """With the line that has them."""
    (tmp_path / "tasks.jsonl").write_bytes(b'{"task_id": "a"}\n{"task_id": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: cannot be read: not UTF-8"):
        load_tasks(tmp_path / "tasks.jsonl", ["draft"])
