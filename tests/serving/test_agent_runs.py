"""One attempt of a task: what its agent is told, and the span that it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan, PlanWorkflow
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.serving.agent_runs import AgentRuns
from scepsy_hpc.serving.dispatcher import dispatcher_of
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.serving.start import Run
from scepsy_hpc.tracing.agents.pool import AgentOutcome
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy

# What it was given, as JSON; it fails, or waits for ever, where its task says so.
AGENT = """
import json, os, sys, time
task = json.load(sys.stdin)
time.sleep(task.get("waits_s", 0))
if task.get("fails"):
    sys.exit("this task is wrong")
names = ["SCEPSY_TASK_ID", "SCEPSY_RUN_ID", "SCEPSY_ATTEMPT", "OPENAI_API_KEY", "OPENAI_BASE_URL"]
print(json.dumps({"task": task, **{name: os.environ[name] for name in names}}))
"""


class Attempts:
    """Attempts of tasks of one workflow, with a command as agent."""

    def __init__(self, folder: Path, agent: Agent | None) -> None:
        workflow = PlanWorkflow(name="rag", llms={}, agent=agent)
        run = RunFolder(folder)
        run.create()
        plan, self.spans = Plan(workflows=(workflow,)), list[Span]()
        dispatcher = self.dispatcher = dispatcher_of(plan, "key", 1.0)
        self.runs = AgentRuns(
            Run(run, run.attempt("a-0"), plan, RunSettings(task_timeout_s=60.0), "host"),
            dispatcher,
            RecordingProxy(dispatcher, self.spans.append, api_key="key"),
            self.spans.append,
        )

    async def run(self, number: int = 1, **task: object) -> AgentOutcome:
        async with contextlib.AsyncExitStack() as stack:
            await self.runs.start(1, stack)
            return await self.runs.run(Task("t 1", "rag", {"task_id": "t 1", **task}), number)


@pytest.fixture
def agent(tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    return Agent(command=(sys.executable, "agent.py"), folder=str(tmp_path))


def test_an_attempt_that_ends_well(tmp_path, agent):
    """The agent gets task, ids and key; its span is from its own start to its own end."""

    async def go():
        attempts = Attempts(tmp_path, agent)
        return attempts, await attempts.run(2, x=[1])

    attempts, end = asyncio.run(go())
    [span] = attempts.spans
    assert span.run_id.startswith("t_1.2.")
    assert end.result == {
        "task": {"task_id": "t 1", "x": [1]},
        "SCEPSY_TASK_ID": "t 1",
        "SCEPSY_RUN_ID": span.run_id,
        "SCEPSY_ATTEMPT": "2",
        "OPENAI_API_KEY": "key",
        "OPENAI_BASE_URL": attempts.runs.proxy.base_url(span.run_id),
    }
    assert (span.kind, span.workflow, span.status) == ("run", "rag", "ok")
    assert (span.start_s, span.end_s) == (end.started_s, end.finished_s)
    assert end.failure is None
    assert attempts.dispatcher.workflow_of == {}


def test_a_failure_is_the_agents_own(tmp_path, agent):
    """Its span says so, and ends when the agent did."""

    async def go():
        attempts = Attempts(tmp_path, agent)
        return attempts, await attempts.run(fails=True)

    attempts, end = asyncio.run(go())
    assert "this task is wrong" in end.error
    assert end.failure == "agent"
    [span] = attempts.spans
    assert (span.status, span.end_s) == ("failed", end.finished_s)


def test_an_attempt_that_is_cut_off(tmp_path, agent):
    """Its span is there all the same."""

    async def go():
        attempts = Attempts(tmp_path, agent)
        job = asyncio.create_task(attempts.run(waits_s=600))
        while not attempts.dispatcher.workflow_of:
            await asyncio.sleep(0.01)
        job.cancel()
        await asyncio.wait([job])
        assert job.cancelled()
        return attempts

    [span] = asyncio.run(go()).spans
    assert (span.status, span.workflow) == ("cancelled", "rag")
    assert span.end_s >= span.start_s


@pytest.mark.parametrize("how", ["fault", "suspect", "gone", "sound", "another"])
def test_an_agent_is_not_blamed_for_an_engine(tmp_path, agent, how):
    """Its failure is infrastructure's where an engine failed in its run, or one that it called is
    suspect or gone; an engine that it did not call excuses nothing."""

    async def go():
        attempts = Attempts(tmp_path, agent)
        dispatcher = attempts.dispatcher
        dispatcher.routes.update({"i0": ("m", "http://h"), "i1": ("m", "http://h")})
        job = asyncio.create_task(attempts.run(fails=True, waits_s=0.3))
        while not dispatcher.workflow_of:
            await asyncio.sleep(0.01)
        [run_id] = dispatcher.workflow_of
        dispatcher.called[run_id] = {"i1" if how == "another" else "i0"}
        if how == "fault":
            common = {"kind": "llm", "llm": "m", "start_s": 0.0, "end_s": 1.0}
            dispatcher.saw(Span(run_id=run_id, span_id="c", status="unreachable", **common))
        if how in ("suspect", "another"):
            dispatcher.routes.suspect("i0", float("inf"))
        if how == "gone":
            dispatcher.routes.update({})
        end = await job
        assert (dispatcher.faulted, dispatcher.called) == (set(), {})
        return end.failure

    assert asyncio.run(go()) == ("agent" if how in ("sound", "another") else "infra")


def test_a_workflow_without_an_agent_is_refused(tmp_path):
    """Before any engine is waited for."""

    async def go():
        await Attempts(tmp_path, None).run()

    with pytest.raises(InputError, match="workflow rag has no agent"):
        asyncio.run(go())
