"""Spans as they stand in a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import (
    Prefix,
    Span,
    check_references,
    load_spans,
    new_run_id,
    save_spans,
    spans_of_workflow,
)
from scepsy_hpc.planning.simulation.run_graph import run_graphs
from scepsy_hpc.tracing.demand.demand import demand_of

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


def _linked(**changes: Any) -> list[Span]:
    """A run with a tool and three calls, of which the second repeats the first."""
    llm = {"kind": "llm", "llm": "m", "input_tokens": 50}
    run = Span(run_id="r", span_id="run", kind="run", start_s=0, end_s=9, status="ok")
    tool = replace(run, span_id="tool", kind="tool", end_s=1)
    first = replace(run, **llm, span_id="first", end_s=2)
    second = replace(first, span_id="second", start_s=3, end_s=4)
    third = replace(first, span_id="third", start_s=5, end_s=6)
    prefix = Prefix(span_id="first", tokens=50)
    return [run, tool, first, replace(second, **{"prefix_of": prefix, **changes}), third]


@pytest.mark.parametrize(
    ("earlier", "tokens", "says"),
    [
        ("second", 8, "'second' is the call itself; it names an earlier LLM call of the run"),
        ("third", 8, r"'third' starts after it \(5 > 3\)"),
        ("nobody", 8, "'nobody' is no span of the run"),
        ("tool", 8, "'tool' is a tool span"),
        ("first", 51, r"tokens \(51\) must be at most the call's input_tokens \(50\)"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(earlier: str, tokens: int, says: str) -> None:
    """Itself, a later call, an unknown one, a tool, more than the prompt: the line says which."""
    assert spans_of_workflow(_linked(), "w") == _linked()
    spans = _linked(prefix_of=Prefix(span_id=earlier, tokens=tokens))
    for use in (check_references, run_graphs, lambda mine: demand_of(mine, "w")):
        with pytest.raises(InputError, match=f"^run r: span second: prefix_of.*{says}") as caught:
            use(spans)
        assert "\n" not in str(caught.value)


def test_only_calls_have_a_prefix() -> None:
    """A tool that names one is refused."""
    run, tool, *calls = _linked()
    tool = replace(tool, prefix_of=Prefix(span_id="first", tokens=8))
    with pytest.raises(InputError, match="span tool: prefix_of: is of LLM calls"):
        check_references([run, tool, *calls])


def test_an_interrupted_run_may_name_a_call_that_was_lost() -> None:
    """A job was killed with the first call in flight: its other records are still read."""
    whole = _linked()
    lost = [replace(s, run_id="lost") for s in whole if s.span_id not in ("run", "first")]
    check_references([*whole, *lost])
    with pytest.raises(InputError, match="run lost: span second: prefix_of: 'first' is no span"):
        check_references(lost)


@pytest.mark.parametrize("parents", [("second",), ("third",)])
def test_a_circle_of_parents_is_refused(parents: tuple[str, ...]) -> None:
    """Spans that wait for each other never start: `demand` refuses them like `simulate`."""
    *others, third = _linked(parents=parents)
    spans = [*others, replace(third, start_s=3, parents=("second",))]
    with pytest.raises(InputError, match="wait for each other in a circle") as e:
        demand_of(spans, "w")
    assert str(e.value).startswith("run r: parents: ")
    assert "second" in str(e.value)
