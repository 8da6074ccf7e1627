"""Whose fault it is that an agent's process ended."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_cases import run_tasks, with_pool, write_agent

from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.nursery import died
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool

AGENT = """
    import os, threading, time

    def run(task):
        if "code" in task:
            os._exit(task["code"])
        if "signal" in task:
            os.kill(os.getpid(), task["signal"])
        if task.get("memory"):
            raise MemoryError
        if "here" in task:
            with open(task["here"] + ".new", "w") as stream:
                stream.write(str(os.getpid()))
            os.rename(task["here"] + ".new", task["here"])
            time.sleep(600)
        return os.getppid()
"""
THREADS = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "taken over"])
def test_the_agent_s_own_end_and_another_s(tmp_path: Path, forks: bool) -> None:
    """An exit and a crash are its own; SIGKILL, as of the kernel short of memory, and SIGTERM are
    not, nor is running out of memory."""
    text = AGENT if forks else AGENT + THREADS
    agent = Agent(python="my_agent:run", folder=str(write_agent(tmp_path, text)))
    tasks = [
        *({"code": 7}, {"signal": signal.SIGSEGV}, {"signal": signal.SIGABRT}),
        *({"signal": signal.SIGKILL}, {"signal": signal.SIGTERM}, {"memory": True}, {}),
    ]
    found = run_tasks(agent, *tasks, num_workers=1)
    assert [o.failure for o in found] == ["agent"] * 3 + ["infra"] * 3 + [None]
    says = ["with code 7", "by signal 11", "by signal 6", "by signal 9", "by signal 15", "Memory"]
    for outcome, words in zip(found, says, strict=False):
        assert words in (outcome.error or "")


def test_a_worker_killed_from_outside_is_nobody_s_failure(tmp_path: Path) -> None:
    """Also where the process that forked it was killed before, so that nobody can tell how."""
    agent = Agent(python="my_agent:run", folder=str(write_agent(tmp_path, AGENT)))

    async def killed(pool: AgentPool, number: int, parent_too: bool) -> AgentOutcome:
        path = tmp_path / f"here{number}"
        job = asyncio.create_task(pool.run({"task_id": "t", "here": str(path)}, {}))
        while not path.exists():
            await asyncio.sleep(0.01)
        worker = psutil.Process(int(path.read_text()))
        if parent_too:
            worker.parent().kill()
        worker.kill()
        return await job

    async def test(pool: AgentPool) -> list[Any]:
        found = [await killed(pool, 1, False), await killed(pool, 2, True)]
        # Whoever needs a worker next gets one of a new nursery.
        return [*found, await pool.run({"task_id": "t"}, {})]

    one, two, after = with_pool(agent, test, num_workers=1)
    assert (one.failure, two.failure) == ("infra", "infra")
    assert after.error is None


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        *((0, "agent"), (1, "agent"), (-11, "agent"), (139, "agent"), (None, "infra")),
        *((-9, "infra"), (137, "infra"), (-15, "infra"), (143, "infra"), (-1, "infra")),
    ],
)
def test_how_a_process_ended(code: int | None, failure: str) -> None:
    """A shell tells its child's signal as 128 and the number."""
    assert died(code)["failure"] == failure


def test_a_command_that_is_killed(tmp_path: Path) -> None:
    """Like a function; a program that is gone meanwhile is not the agent's fault either."""
    text = "import os, sys\nos.kill(os.getpid(), int(sys.stdin.read().split('\"')[7]))\n"
    write_agent(tmp_path, text, "main")
    agent = Agent(command=("python", "main.py"), folder=str(tmp_path))
    found = run_tasks(agent, {"n": str(int(signal.SIGKILL))}, {"n": str(int(signal.SIGSEGV))})
    assert [o.failure for o in found] == ["infra", "agent"]
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\necho 1\n")
    script.chmod(0o755)

    async def test(pool: AgentPool) -> AgentOutcome:
        os.unlink(script)
        return await pool.run({"task_id": "t"}, {})

    gone = with_pool(Agent(command=("./run.sh",), folder=str(tmp_path)), test)
    assert (gone.failure, "cannot be started" in gone.error) == ("infra", True)
