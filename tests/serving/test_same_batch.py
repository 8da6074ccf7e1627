"""A folder is resumed with its own batch; what differs is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import serving_cases as cases

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import load_plan, save_plan
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving import same_batch
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.settings import RunSettings

PAIR = {"l0": ("large", "a", (0,)), "s0": ("small", "b", (0,))}


class Batch:
    """A prepared folder, and the files that it was prepared from."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.agent = folder / "agent"
        self.agent.mkdir()
        self.plan, self.tasks = cases.make_case(self.agent, PAIR, 5)
        self.prepare()

    def prepare(self, **options: Any) -> RunFolder:
        return runs.prepare(self.plan, self.tasks, self.out, RunSettings(), **options)

    def refused(self) -> str:
        """What a resume is told."""
        before = {path: path.read_bytes() for path in self.out.iterdir() if path.is_file()}
        with pytest.raises(InputError) as refusal:
            self.prepare(resume=True)
        assert {path: path.read_bytes() for path in before} == before, "something was written"
        self.prepare(resume=True, changed_ok=True)
        self.prepare(resume=True)
        return str(refusal.value)

    def change_agent(self, **changes: Any) -> None:
        plan = load_plan(self.plan)
        (flow,) = plan.workflows
        agent = replace(flow.agent, **changes)
        save_plan(self.plan, replace(plan, workflows=(replace(flow, agent=agent),)))


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_the_same_batch_is_resumed(batch: Batch) -> None:
    """Also from the copies in the folder, and with tasks that are only written in another way."""
    batch.prepare(resume=True)
    runs.prepare(batch.out / "plan.yaml", batch.out / "tasks.jsonl", batch.out, RunSettings(), True)
    lines = [json.loads(line) for line in batch.tasks.read_text().splitlines()]
    batch.tasks.write_text("".join(json.dumps(one, separators=(",", ":")) + "\n" for one in lines))
    batch.prepare(resume=True)


def test_other_tasks_are_named(batch: Batch) -> None:
    """Changed, new and gone ones, and where they stand."""
    lines = [{"task_id": f"t{i}"} for i in range(1, 7)]
    lines[2]["x"] = "new"
    batch.tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = batch.refused()
    assert "1 changed: t3 (task 3), 2 new: t5 (task 5), t6 (task 6), 1 gone: t0" in said
    assert "--changed-ok" in said


def test_another_plan_is_named_by_its_keys(batch: Batch) -> None:
    """With both values; what was expected of a plan may differ."""
    plan = load_plan(batch.plan)
    save_plan(batch.plan, replace(plan, explanation=("words",)))
    batch.prepare(resume=True)
    routing = replace(plan.routing, rule="sticky_prefix")
    save_plan(batch.plan, replace(plan, routing=routing))
    assert 'plan differs in routing.rule (was "least_in_flight", is "sticky_prefix")' in (
        batch.refused()
    )


def test_an_agent_s_own_files_are_compared(batch: Batch) -> None:
    """Those it may import from its folder, and no others."""
    for name in (".venv/a.py", "env/pyvenv.cfg", "env/lib/b.py", "__pycache__/c.py", "data.txt"):
        (batch.agent / name).parent.mkdir(exist_ok=True, parents=True)
        (batch.agent / name).write_text("x = 1\n")
    batch.prepare(resume=True)
    (batch.agent / "tools").mkdir()
    (batch.agent / "tools" / "search.py").write_text("x = 1\n")
    with (batch.agent / "tiny_agent.py").open("a") as stream:
        stream.write("# changed\n")
    assert "agent of tiny has other files: tiny_agent.py, tools/search.py" in batch.refused()


def test_in_a_large_folder_only_the_agent_s_own_module_is_compared(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home directory is not read through."""
    monkeypatch.setattr(same_batch, "MAX_AGENT_FILES", 2)
    for i in range(5):
        (batch.agent / f"other{i}.py").write_text("")
    batch.prepare(resume=True, changed_ok=True)
    (batch.agent / "other6.py").write_text("")
    batch.prepare(resume=True)
    (batch.agent / "tiny_agent.py").write_text("")
    assert "other files: tiny_agent.py" in batch.refused()


def test_a_command_is_compared_by_its_words_and_the_files_that_these_name(batch: Batch) -> None:
    """Its other files are data to us."""
    (batch.agent / "main.py").write_text("1")
    batch.change_agent(python=None, command=("python", "main.py", "-x"))
    batch.prepare(resume=True, changed_ok=True)
    (batch.agent / "other.py").write_text("2")
    batch.prepare(resume=True)
    (batch.agent / "main.py").write_text("2")
    assert "agent of tiny has other files: main.py" in batch.refused()
    batch.change_agent(command=("python", "main.py", "-y"))
    assert 'workflows[0].agent.command[2] (was "-x", is "-y")' in batch.refused()


def test_a_folder_of_another_version_is_resumed_or_refused_in_words(batch: Batch) -> None:
    """What this version reads goes on; else the version is named that goes on."""
    origin = batch.out / "origin.json"
    origin.write_text(origin.read_text().replace(same_batch.__version__, "0.0.7"))
    batch.prepare(resume=True)
    origin.write_text(json.dumps({"version": "0.0.7"}))
    text = batch.plan.read_text()
    batch.plan.write_text(text + "wings: 2\n")
    (batch.out / "plan.yaml").write_text(text + "wings: 2\n")
    with pytest.raises(InputError) as refusal:
        batch.prepare(resume=True)
    assert "wings: unknown key" in str(refusal.value)
    assert "begun by scepsy 0.0.7, this is" in str(refusal.value)
    batch.plan.write_text(text)
    with pytest.raises(InputError, match=r"its plan cannot be read .* begun by scepsy 0.0.7"):
        batch.prepare(resume=True)
    batch.prepare(resume=True, changed_ok=True)


def test_a_folder_from_before_agents_were_noted(batch: Batch) -> None:
    """Its tasks and plan are compared all the same."""
    (batch.out / "origin.json").unlink()
    batch.prepare(resume=True)
