"""Tracing: real agents, the recording proxy, and an engine in between."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from fake_engine import engine_in_thread

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import load_spans, save_spans
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.formats.workflow import Workflow, load_workflow
from scepsy_hpc.tracing.proxy.router import CallTarget
from scepsy_hpc.tracing.recorder import Recording, TraceProgress, trace_workflow

AGENT = """
    import openai

    def run(task):
        with openai.OpenAI(max_retries=0) as client:
            for _ in range(task["num_calls"]):
                client.chat.completions.create(
                    model="writer", messages=[], extra_headers={"x-scepsy-role": "draft"})
        if task["num_calls"] == 3:
            raise ValueError("three is too many")
        return "done"
"""


def make_workflow(folder: Path, text: str = "agent: {python: 'some_agent:run'}") -> Workflow:
    (folder / "some_agent.py").write_text(textwrap.dedent(AGENT))
    path = folder / "workflow.yaml"
    path.write_text(
        f"schema: scepsy/workflow/v1\nname: draft\nllms: {{writer: {{model: m/w}}}}\n{text}\n"
    )
    return load_workflow(path)


def trace(workflow: Workflow, *num_calls: int, **options: Any) -> Recording:
    tasks = [
        Task(f"t/{i}", "draft", {"task_id": f"t/{i}", "num_calls": n})
        for i, n in enumerate(num_calls)
    ]
    with engine_in_thread() as engine:
        return trace_workflow(
            workflow, tasks, {"writer": CallTarget(engine.base_url, "m")}, **options
        )


def test_runs_and_calls_are_recorded(tmp_path: Path) -> None:
    """Each task leaves one run span around its calls; what is saved can be read again."""
    seen: list[TraceProgress] = []
    found = trace(make_workflow(tmp_path), 2, 0, 1, concurrency=2, on_progress=seen.append)
    runs = {s.run_id: s for s in found.spans if s.kind == "run"}
    calls = [s for s in found.spans if s.kind == "llm"]
    assert len(runs) == 3
    assert sorted(sum(c.run_id == r for c in calls) for r in runs) == [0, 1, 2]
    for call in calls:
        run = runs[call.run_id]
        assert run.start_s <= call.start_s <= call.end_s <= run.end_s
        assert (call.llm, call.role, call.workflow, call.status) == (
            "writer", "draft", "draft", "ok")  # fmt: skip
    assert [s.start_s for s in found.spans] == sorted(s.start_s for s in found.spans)
    assert seen[-1] == TraceProgress(num_done=3, num_total=3, num_calls=3)
    save_spans(tmp_path / "spans.jsonl", found.spans)
    assert tuple(load_spans(tmp_path / "spans.jsonl")) == found.spans


def test_failures_are_told_and_their_calls_kept(tmp_path: Path) -> None:
    """A task whose agent fails is named with its error; its calls were sent, so they stay."""
    found = trace(make_workflow(tmp_path), 3, 1)
    assert found.failures == {"t/0": "ValueError: three is too many"}
    assert sorted(s.status for s in found.spans if s.kind == "run") == ["failed", "ok"]
    assert sum(s.kind == "llm" for s in found.spans) == 4


def test_bad_input_is_told_before_anything_runs(tmp_path: Path) -> None:
    """No agent, no endpoint for an LLM, one for an unknown LLM, nobody at the address."""
    workflow = make_workflow(tmp_path)
    tasks = [Task("a", "draft", {"task_id": "a", "num_calls": 1})]
    nobody = CallTarget("http://127.0.0.1:9/v1", "m")
    cases = [
        (make_workflow(tmp_path, ""), {"writer": nobody}, "agent: missing"),
        (workflow, {}, "endpoint of 'writer': missing"),
        (workflow, {"writer": nobody, "other": nobody}, "has no such LLM; has writer"),
        (workflow, {"writer": nobody}, "endpoint of 'writer': http://127.0.0.1:9/v1 cannot be "
         "reached: Connection refused"),
    ]  # fmt: skip
    for which, endpoints, says in cases:
        with pytest.raises(InputError, match=says):
            trace_workflow(which, tasks, endpoints)
