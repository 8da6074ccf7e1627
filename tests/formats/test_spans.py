"""Spans as they stand in a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import (
    Prefix,
    Span,
    load_spans,
    new_run_id,
    save_spans,
    spans_of_workflow,
)

GOOD = '{"run_id":"r","span_id":"s1","kind":"run","start_s":0,"end_s":9.5,"status":"ok"}'
LLM = (
    '{"run_id":"r","span_id":"s2","kind":"llm","llm":"m","start_s":1,"end_s":2,"status":"ok",'
    '"input_tokens":8,"prefix_of":{"span_id":"s0","tokens":4}}'
)


def test_spans_are_read_and_written(tmp_path: Path) -> None:
    """What the contract shows is read; written again and read, it is the same."""
    path = tmp_path / "spans.jsonl"
    path.write_text(f"{GOOD}\n\n{LLM}\n")
    spans = load_spans(path)
    assert spans[0].duration_s == 9.5
    assert spans[1] == Span(
        run_id="r",
        span_id="s2",
        kind="llm",
        llm="m",
        start_s=1,
        end_s=2,
        status="ok",
        input_tokens=8,
        prefix_of=Prefix(span_id="s0", tokens=4),
    )
    save_spans(tmp_path / "again.jsonl", spans)
    assert load_spans(tmp_path / "again.jsonl") == spans


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"kind":"llm"', '"kind":"LLM"'), "line 3: kind: .*'run', 'llm' or 'tool'.* got \"LLM\""),
        (('"llm":"m",', '"model":"m",'), "line 3: model: unknown key; known keys: .*llm, role"),
        (('"llm":"m",', ""), "line 3: span 's2': llm: missing"),
        (('"end_s":2', '"end_s":0'), r"line 3: span 's2': end_s \(0.0\) is before start_s \(1.0\)"),
        (('"end_s":2', '"end_s":"2"'), 'line 3: end_s: .*got "2"'),
        (('"end_s":2', '"end_s":NaN'), "line 3: "),
        (('"input_tokens":8', '"input_tokens":-8'), "line 3: input_tokens: .*got -8"),
        (('"s2"', '"s1"'), "line 3: span_id: 's1' stands twice in run 'r'"),
        (('"status":"ok",', ""), "line 3: status: missing"),
        (('"s2"', "s2"), "line 3: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    """A wrong span is refused with its line in the file (blank lines count) and what is wrong."""
    path = tmp_path / "spans.jsonl"
    path.write_text(f"{GOOD}\n\n{LLM.replace(*change)}\n")
    with pytest.raises(InputError, match=says) as caught:
        load_spans(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_says_how_to_fill_it(tmp_path: Path) -> None:
    """No spans at all: the message names the command that records some."""
    (tmp_path / "spans.jsonl").write_text("\n")
    with pytest.raises(InputError, match="scepsy trace"):
        load_spans(tmp_path / "spans.jsonl")


def _run_of(run_id: str, workflow: str | None, on_call: str | None = None) -> list[Span]:
    common = {"run_id": run_id, "start_s": 0.0, "end_s": 1.0, "status": "ok"}
    run = Span(span_id="run", kind="run", workflow=workflow, **common)
    return [run, Span(span_id="call", kind="llm", llm="a", workflow=on_call, **common)]


def test_a_workflow_named_once_in_a_run_names_all_of_it():
    """Calls belong to the workflow that their run span names; unnamed runs to whoever asks."""
    spans = [*_run_of("r1", "rag"), *_run_of("r2", "beam"), *_run_of("r3", None)]
    mine = spans_of_workflow(spans, "rag")
    assert {(s.run_id, s.span_id) for s in mine} == {
        *(("r1", "run"), ("r1", "call"), ("r3", "run"), ("r3", "call"))
    }
    assert spans_of_workflow(_run_of("r1", None, on_call="rag"), "rag")


def test_a_run_of_two_workflows_is_refused():
    """A run id that two workflows share says which run, and what to do."""
    with pytest.raises(
        InputError, match="run 'r1': its spans name two workflows, 'rag' and 'beam'"
    ):
        spans_of_workflow(_run_of("r1", "rag", on_call="beam"), "rag")
    with pytest.raises(InputError, match=r"no run of workflow 'rag'.*they name: beam"):
        spans_of_workflow(_run_of("r1", "beam"), "rag")


def test_no_run_is_an_answer_where_none_is_needed():
    """A batch may not have begun a run of each of its workflows."""
    spans = [*_run_of("r1", "rag"), *_run_of("r2", None)]
    assert spans_of_workflow(spans[:2], "beam", needed=False) == []
    assert spans_of_workflow(spans, "beam", needed=False) == spans[2:]


def test_run_ids_show_their_task_and_differ():
    """A run id is safe in a URL, shows task and attempt, and is never given twice."""
    first, second = new_run_id("a/b c", 2), new_run_id("a/b c", 2)
    assert first != second
    assert re.fullmatch(r"a_b_c\.2\.[0-9a-f]{8}", first)
