"""CPU seconds of a run, as the kernel counted them, and where a run starts.

The agents here burn CPU time by its own clock, so a busy machine changes nothing.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
from pathlib import Path

import pytest

from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing import clock
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool
from scepsy_hpc.tracing.recorder import run_span

BURNER = """
    import asyncio, json, os, subprocess, sys, threading, time

    def burn(seconds, used=time.process_time):
        until = used() + seconds
        while used() < until:
            pass

    def child(seconds):
        return subprocess.Popen([sys.executable, "-S", "child.py", str(seconds)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    kept = []

    def run(task):
        how, seconds = task["how"], task["seconds"]
        if how == "itself":
            burn(seconds)
        if how == "threads":
            threads = [threading.Thread(target=burn, args=(seconds / 2, time.thread_time))
                       for _ in range(2)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        if how == "a child":
            process = child(seconds)
            process.communicate()
        if how == "a child that lives on":
            kept.append(child(seconds))
            kept[-1].stdout.readline()
        if how == "failing":
            burn(seconds)
            raise ValueError("no good")
        if how == "waiting":
            time.sleep(seconds)
        if how == "dying":
            os._exit(1)
        return "done"

    async def later(task):
        await asyncio.sleep(0)
        return run(task)

    if __name__ == "__main__":
        print(json.dumps(run(json.load(sys.stdin))))
"""
CHILD = """
    import sys, time
    while time.process_time() < float(sys.argv[1]):  # from its start: the interpreter's is inside
        pass
    print("burnt", flush=True)
    sys.stdin.read()
"""
BURNT_S = 0.4
OWN_S = 0.15
"""More than a worker's own work, or an interpreter's start, takes."""


def outcomes_of(agent: Agent, *ways: str, seconds: float = BURNT_S) -> list[AgentOutcome]:
    async def go() -> list[AgentOutcome]:
        async with AgentPool(agent, 1) as pool:
            tasks = [{"task_id": "t", "how": how, "seconds": seconds} for how in ways]
            return [await asyncio.wait_for(pool.run(task, {}), 60) for task in tasks]

    return asyncio.run(go())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the agent lives."""
    (tmp_path / "burner.py").write_text(textwrap.dedent(BURNER))
    (tmp_path / "child.py").write_text(textwrap.dedent(CHILD))
    return tmp_path


def agents(folder: Path) -> list[Agent]:
    command = (sys.executable, "burner.py")
    found = [Agent(python=f"burner:{name}", folder=str(folder)) for name in ("run", "later")]
    return [*found, Agent(command=command, folder=str(folder))]


@pytest.mark.parametrize("kind", range(3), ids=["function", "async function", "command"])
@pytest.mark.parametrize("how", ["itself", "threads", "a child", "failing"])
def test_what_a_run_burns_is_on_its_span(folder: Path, kind: int, how: str) -> None:
    """In the process, in its threads, in a child that it waits for, and where it fails."""
    [outcome] = outcomes_of(agents(folder)[kind], how)
    assert (outcome.error is None) == (how != "failing")
    span = run_span("r", "w", outcome)
    assert span.cpu_s == pytest.approx(outcome.cpu_s, abs=1e-6)
    assert BURNT_S - 0.01 <= span.cpu_s < BURNT_S + OWN_S


@pytest.mark.parametrize("kind", range(3), ids=["function", "async function", "command"])
def test_waiting_costs_nothing(folder: Path, kind: int) -> None:
    """A run that sleeps for as long as another burns has used next to nothing."""
    [outcome] = outcomes_of(agents(folder)[kind], "waiting")
    assert 0 <= outcome.cpu_s < OWN_S


def test_a_worker_counts_each_run_for_itself(folder: Path) -> None:
    """Of runs in one worker none is charged with an earlier one, nor with its child that lives."""
    function, _, _ = agents(folder)
    ways = ("itself", "waiting", "a child that lives on", "waiting")
    burnt, slept, left, after = (o.cpu_s for o in outcomes_of(function, *ways))
    assert burnt >= BURNT_S - 0.01
    assert slept < OWN_S
    assert BURNT_S - 0.05 <= left < BURNT_S + OWN_S
    assert after < OWN_S


def test_of_a_worker_that_dies_nothing_is_known(folder: Path) -> None:
    """Null, not zero."""
    dead, fine = outcomes_of(agents(folder)[0], "dying", "itself")
    assert dead.cpu_s is None
    assert run_span("r", "w", dead).cpu_s is None
    assert fine.cpu_s >= BURNT_S - 0.01


IMPORTED = """
    import threading, time
    time.sleep(0.2)
    threading.Thread(target=threading.Event().wait, daemon=True).start()  # not to be forked
    imported_s = time.monotonic()

    def run(task):
        return [imported_s, time.monotonic()]
"""


def test_a_run_starts_when_its_agent_can(tmp_path: Path) -> None:
    """The import in the second worker, made while the first one is busy, is before its run."""
    (tmp_path / "slow.py").write_text(textwrap.dedent(IMPORTED))
    agent = Agent(python="slow:run", folder=str(tmp_path))

    async def go() -> list[AgentOutcome]:
        async with AgentPool(agent, 2) as pool:
            jobs = [pool.run({"task_id": str(n)}, {}) for n in range(2)]
            return await asyncio.wait_for(asyncio.gather(*jobs), 60)

    outcomes = asyncio.run(go())
    base_s = clock.now_s() - clock.time.monotonic()
    assert len({o.result[0] for o in outcomes}) == 2
    for outcome in outcomes:
        imported_s, called_s = (base_s + s for s in outcome.result)
        assert imported_s <= outcome.started_s + 1e-3
        assert outcome.started_s <= called_s + 1e-3 <= outcome.finished_s + 2e-3
