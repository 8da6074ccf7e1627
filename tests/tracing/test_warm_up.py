"""A worker's first run is left out of a trace."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from fake_engine import engine_in_thread

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.formats.spans import Span, load_spans, new_run_id
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.demand.demand import demand_of
from scepsy_hpc.tracing.warm_up import num_cold, warm_up_tasks, without_runs_of

SLOW_S = 0.4
AGENT = f"""
    import time, openai

    openai.OpenAI(api_key="none").chat.completions
    loaded = False

    def run(task):
        global loaded
        time.sleep(0.01 if loaded else {SLOW_S})
        loaded = True
        with openai.OpenAI(max_retries=0) as client:
            client.chat.completions.create(model="writer", messages=[])
"""


def tasks_of(*ids: str) -> list[Task]:
    return [Task(name, "draft", {"task_id": name}) for name in ids]


def traced(folder: Path, num_tasks: int, *options: str) -> list[Span]:
    """`scepsy trace -n 4`, two at a time."""
    (folder / "some_agent.py").write_text(textwrap.dedent(AGENT))
    (folder / "workflow.yaml").write_text(
        "schema: scepsy/workflow/v1\nname: draft\nllms: {writer: {model: m/w}}\n"
        "agent: {python: 'some_agent:run'}\n"
    )
    lines = (json.dumps({"task_id": f"t/{i}"}) for i in range(num_tasks))
    (folder / "tasks.jsonl").write_text("".join(f"{line}\n" for line in lines))
    files = [str(folder / name) for name in ("workflow.yaml", "tasks.jsonl", "spans.jsonl")]
    with engine_in_thread() as engine:
        line = ["trace", *files[:2], "-o", files[2], "-n", "4", "--runs-in-flight", "2"]
        assert run_line([*line, "--endpoint", f"writer={engine.base_url}#m", *options]) == 0
    return load_spans(files[2])


def test_what_an_agent_loads_on_first_use_is_no_tool_time(tmp_path: Path, capsys) -> None:
    """Four tasks of ten are traced, after two more that the spans do not hold."""
    spans = traced(tmp_path, 10)
    assert {span.run_id.rpartition(".1.")[0] for span in spans} == {f"t_{i}" for i in range(4)}
    assert sum(span.kind == "llm" for span in spans) == 4
    assert demand_of(spans, "draft").tool_time_s < SLOW_S / 4
    assert "8 spans of 4 runs, after 2 to warm up" in capsys.readouterr().err


@pytest.mark.parametrize(("num_tasks", "options"), [(4, ()), (10, ("--warm-up", "0"))])
def test_first_runs_that_count_are_told(tmp_path: Path, capsys, num_tasks, options) -> None:
    """Without tasks or leave to warm up, two runs of four are slow, and the last line says so."""
    spans = traced(tmp_path, num_tasks, *options)
    assert demand_of(spans, "draft").tool_time_s > SLOW_S / 2
    assert "2 of them the first of their worker" in capsys.readouterr().err


def test_a_command_is_as_new_in_every_run() -> None:
    """Nothing to warm up; workers of a function are as many as runs in flight."""
    assert num_cold(Agent(command=("agent",)), 3) == 0
    assert num_cold(Agent(python="agent:run"), 3) == 3
    assert num_cold(None, 3) == 0


def test_no_traced_run_is_taken_for_one_of_them() -> None:
    """Ids that look alike in run ids are not used; a retry of a warm-up run goes as well."""
    tasks = tasks_of("a/b", "c", "a_b", "d.1", "e")
    warm = warm_up_tasks(tasks, 2, 2)
    assert [task.task_id for task in warm] == ["d.1", "e"]
    runs = [new_run_id(t.task_id, attempt) for t in tasks for attempt in (1, 2)]
    spans = [
        Span(run_id=r, span_id=r, kind="run", start_s=0.0, end_s=1.0, status="ok") for r in runs
    ]
    kept = {span.run_id.rsplit(".", 2)[0] for span in without_runs_of(spans, warm)}
    assert kept == {"a_b", "c"}
