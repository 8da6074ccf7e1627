"""Agents as long-lived Python workers and as commands, with everything that agents do wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_cases import run_tasks, with_pool, write_agent

from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool, agent_environment

AGENT = """
    import asyncio, os, random, subprocess, sys, threading, time
    print("noise at import")

    def echo(task):
        print("noise", '{"result": 1}', flush=True)
        os.write(1, b"more noise")
        return {"task": task, "env": os.environ.get("OPENAI_BASE_URL"), "pid": os.getpid(),
                "cwd": os.getcwd(), "run": os.environ.get("SCEPSY_RUN_ID")}

    async def later(task):
        await asyncio.sleep(0)
        return task["n"] + 1

    def misbehave(task):
        kind = task["kind"]
        if kind == "raise":
            raise ValueError("two\\nlines")
        if kind == "exit":
            sys.exit(3)
        if kind == "die":
            os._exit(7)
        if kind == "crash":
            os.kill(os.getpid(), 11)
        if kind == "hang":
            subprocess.Popen(["sleep", "600"])
            time.sleep(600)
        if kind == "child_holds_on":
            if os.fork() == 0:
                time.sleep(600)
            os._exit(7)
        if kind == "env":
            os.environ["LEFT"] = "over"
            os.chdir("/")
        if kind == "not json":
            return {1, 2}
        if kind == "nan":
            return float("nan")
        if kind == "deep":
            return eval("[" * 90 + "x" + "]" * 90, {"x": eval("[" * 90 + "]" * 90)})
        if kind == "large":
            return "x" * 50_000_000
        if kind == "digits":
            return 10**5000
        if kind == "stdout":
            sys.stdout.close()
        return [os.environ.get("LEFT"), os.getcwd()]

    def draw(task):
        time.sleep(0.05)
        return random.random()
"""


def python_agent(folder: Path, function: str) -> Agent:
    return Agent(python=f"my_agent:{function}", folder=str(folder))


def test_a_function_runs_in_its_folder_with_its_environment(tmp_path: Path) -> None:
    """A Python agent sees its task, its folder and the variables of its own run; one worker is
    used again; what it prints goes to the log and not into the result."""
    agent = python_agent(write_agent(tmp_path, AGENT), "echo")

    async def test(pool: AgentPool) -> list[AgentOutcome]:
        env = [agent_environment(f"http://h/r/{r}/v1", "key", "t1", r) for r in ("a", "b")]
        return [await pool.run({"task_id": "t1", "é": "ü"}, e) for e in env]

    first, second = with_pool(agent, test, log_path=tmp_path / "logs" / "agent.log")
    assert first.error is None
    assert first.result["task"] == {"task_id": "t1", "é": "ü"}
    assert first.result["cwd"] == str(tmp_path)
    assert [first.result["env"], second.result["env"]] == ["http://h/r/a/v1", "http://h/r/b/v1"]
    assert [first.result["run"], second.result["run"]] == ["a", "b"]
    assert first.result["pid"] == second.result["pid"] != os.getpid()
    assert first.started_s <= first.finished_s <= second.started_s
    assert "more noise" in (tmp_path / "logs" / "agent.log").read_text()


def test_an_async_function_is_awaited(tmp_path: Path) -> None:
    """An `async def` agent works like a plain one, task after task."""
    agent = python_agent(write_agent(tmp_path, AGENT), "later")
    assert [o.result for o in run_tasks(agent, {"n": 1}, {"n": 2})] == [2, 3]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raise", "ValueError: two lines"),
        ("exit", "SystemExit: 3"),
        ("die", "the agent's process died"),
        ("crash", "the agent's process died"),
        ("child_holds_on", "the agent's process died"),
        ("not json", "the agent's result cannot be written as JSON: Object of type set"),
        ("nan", "the agent's result cannot be written as JSON"),
        ("deep", "cannot be written as JSON: nested deeper than 128"),
        ("large", "cannot be written as JSON: its JSON has 50000002 bytes, more than"),
        ("digits", "the agent's result cannot be written as JSON: Exceeds the limit"),
    ],
)
def test_a_failure_is_an_outcome_and_the_next_task_runs(
    tmp_path: Path, kind: str, error: str
) -> None:
    """Whatever an agent does, its task has one line of error and the pool goes on working."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")
    bad, good = run_tasks(agent, {"kind": kind}, {"kind": "fine"}, num_workers=1)
    assert bad.error is not None
    assert error in bad.error
    assert bad.failure == ("record" if "written as JSON" in error else "agent")
    assert bad.result is None
    assert good.result == [None, str(tmp_path)]


def test_a_traceback_goes_to_the_log(tmp_path: Path) -> None:
    """The log holds the task and the traceback of its error."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")
    run_tasks(agent, {"kind": "raise"}, log_path=tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert "task t failed:" in log
    assert "in misbehave" in log


def test_an_agent_that_closes_its_stdout_has_a_result_all_the_same(tmp_path: Path) -> None:
    """And so has the next task of its worker."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")
    found = run_tasks(agent, {"kind": "stdout"}, {"kind": "fine"}, num_workers=1)
    assert [outcome.error for outcome in found] == [None, None]


def test_one_task_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    """Variables and working directory that a task changes are restored for the next one."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")
    _, after = run_tasks(agent, {"kind": "env"}, {"kind": "fine"}, num_workers=1)
    assert after.result == [None, str(tmp_path)]


def test_a_task_out_of_time_is_killed_with_its_children(tmp_path: Path) -> None:
    """After its time limit a task ends as an error, its processes are gone, and the seat is free
    for the next task."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")

    async def test(pool: AgentPool) -> tuple[AgentOutcome, AgentOutcome]:
        slow = await pool.run({"task_id": "t", "kind": "hang"}, {}, timeout_s=0.5)
        return slow, await pool.run({"task_id": "t", "kind": "fine"}, {}, timeout_s=30)

    slow, fine = with_pool(agent, test, num_workers=1)
    assert slow.error == "TimeoutError: the agent gave no result within 0.5 s"
    assert fine.error is None


def test_a_cancelled_task_frees_its_seat(tmp_path: Path) -> None:
    """Cancelling a run kills its worker; the pool then runs another task."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")

    async def test(pool: AgentPool) -> AgentOutcome:
        job = asyncio.create_task(pool.run({"task_id": "t", "kind": "hang"}, {}))
        await asyncio.sleep(0.3)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return await pool.run({"task_id": "t", "kind": "fine"}, {})

    assert with_pool(agent, test, num_workers=1).error is None


def test_closing_ends_what_runs_and_refuses_what_waits(tmp_path: Path) -> None:
    """A pool closes while a task hangs and others wait for its seat: nobody waits for ever."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")

    async def test(pool: AgentPool) -> list[Any]:
        task = {"task_id": "t", "kind": "hang"}
        jobs = [asyncio.create_task(pool.run(task, {})) for _ in range(3)]
        await asyncio.sleep(0.3)
        await pool.close()
        return await asyncio.gather(*jobs, return_exceptions=True)

    ran, *waited = with_pool(agent, test, num_workers=1)
    assert ran.error == "the agent was killed: its pool was closed"
    assert all(isinstance(w, RunError) for w in waited)


def test_many_workers_run_at_once(tmp_path: Path) -> None:
    """64 tasks that wait for each other end: every one has a worker of its own, and its own random
    numbers."""
    text = """
        import os, random, time

        def meet(task):
            open(os.path.join(task["folder"], f"here-{task['n']}"), "w").close()
            while len(os.listdir(task["folder"])) < 64:
                time.sleep(0.02)
            return random.random()
    """
    agent = Agent(python="meeting:meet", folder=str(write_agent(tmp_path, text, "meeting")))
    (tmp_path / "met").mkdir()

    async def test(pool: AgentPool) -> list[AgentOutcome]:
        task = {"task_id": "t", "folder": str(tmp_path / "met")}
        return await asyncio.gather(*[pool.run({**task, "n": n}, {}) for n in range(64)])

    outcomes = with_pool(agent, test, num_workers=64)
    assert [o.error for o in outcomes] == [None] * 64
    assert len({o.result for o in outcomes}) == 64


def test_large_tasks_and_results_pass(tmp_path: Path) -> None:
    """A task and a result of 5 MB go through."""
    agent = python_agent(write_agent(tmp_path, AGENT), "echo")
    (outcome,) = run_tasks(agent, {"text": "x" * 5_000_000})
    assert len(outcome.result["task"]["text"]) == 5_000_000


def test_an_agent_that_starts_threads_is_not_forked(tmp_path: Path) -> None:
    """A module that starts a thread at import gets a fresh process per worker, so that the thread
    lives in each; a worker that dies is replaced there too."""
    text = """
        import os, queue, threading
        asked, answered = queue.Queue(), queue.Queue()

        def serve():
            while True:
                answered.put(asked.get() + 1)

        threading.Thread(target=serve, daemon=True).start()

        def ask(task):
            if task["n"] < 0:
                os._exit(1)
            asked.put(task["n"])
            return answered.get()
    """
    agent = Agent(python="threaded:ask", folder=str(write_agent(tmp_path, text, "threaded")))
    one, dead, two = run_tasks(agent, {"n": 1}, {"n": -1}, {"n": 2}, num_workers=1)
    assert (one.result, two.result) == (2, 3)
    assert dead.error == "the agent's process died with code 1 while it ran this task"


def test_a_killed_nursery_is_replaced(tmp_path: Path) -> None:
    """When the process that forks workers is killed, later tasks still run."""
    agent = python_agent(write_agent(tmp_path, AGENT), "misbehave")

    async def test(pool: AgentPool) -> list[AgentOutcome]:
        outcomes = [await pool.run({"task_id": "t", "kind": "fine"}, {})]
        nursery = next(
            c for c in psutil.Process().children() if "agents.worker" in " ".join(c.cmdline())
        )
        nursery.send_signal(signal.SIGKILL)
        while nursery.is_running():
            await asyncio.sleep(0.02)
        for kind in ("die", "fine", "fine", "fine"):
            outcomes.append(await pool.run({"task_id": "t", "kind": kind}, {}))
        return outcomes

    outcomes = with_pool(agent, test, num_workers=1)
    assert outcomes[-1].error is None


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("my_agent:nothing", "AttributeError: module 'my_agent' has no attribute 'nothing'"),
        ("no_such:run", "ModuleNotFoundError: No module named 'no_such'"),
        ("my_agent:os", "TypeError: my_agent:os is a module, not a function"),
        ("early:run", "make the client inside the function"),
    ],
)
def test_an_agent_that_cannot_be_loaded_is_bad_input(
    tmp_path: Path, target: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong module or function, or a client made at import, are told before a task runs; the
    user's own OpenAI key never reaches an agent."""
    monkeypatch.setenv("OPENAI_API_KEY", "the user's own")
    write_agent(tmp_path, AGENT)
    write_agent(tmp_path, "import openai\nclient = openai.OpenAI()\n", "early")
    agent = Agent(python=target, folder=str(tmp_path))
    with pytest.raises(InputError) as caught:
        run_tasks(agent)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


COMMAND = """
    import json, os, sys, time
    task = json.load(sys.stdin)
    if task.get("kind") == "fail":
        sys.exit("bad day")
    if task.get("kind") == "hang":
        time.sleep(600)
    print("loading...")
    if task.get("kind") == "silent":
        sys.exit(0)
    if os.fork() == 0:
        time.sleep(600)
    print(json.dumps({"n": task["n"], "run": os.environ["SCEPSY_RUN_ID"], "cwd": os.getcwd()}))
"""


def test_a_command_is_given_json_and_gives_json(tmp_path: Path) -> None:
    """A command reads its task from stdin and its last line is the result; a child that it leaves
    behind neither delays the result nor survives it."""
    write_agent(tmp_path, COMMAND, "main")
    agent = Agent(command=("python", "main.py"), folder=str(tmp_path))

    async def test(pool: AgentPool) -> AgentOutcome:
        return await pool.run({"task_id": "t", "n": 5}, {"SCEPSY_RUN_ID": "r9"})

    outcome = with_pool(agent, test)
    assert outcome.result == {"n": 5, "run": "r9", "cwd": str(tmp_path)}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("fail", "the agent's command ended with code 1: bad day"),
        ("silent", "the agent's stdout does not end with one line of JSON: 'loading...'"),
        ("hang", "TimeoutError: the agent gave no result within 2 s"),
    ],
)
def test_a_commands_failure_is_an_outcome(tmp_path: Path, kind: str, error: str) -> None:
    """Exit code, missing result and time limit each give one line; stderr goes to the log."""
    write_agent(tmp_path, COMMAND, "main")
    agent = Agent(command=(sys.executable, "main.py"), folder=str(tmp_path))

    async def test(pool: AgentPool) -> AgentOutcome:
        return await pool.run({"task_id": "t7", "kind": kind}, {}, timeout_s=2)

    outcome = with_pool(agent, test, log_path=tmp_path / "log")
    assert outcome.error == error
    if kind == "fail":
        assert (tmp_path / "log").read_text() == "task t7:\nbad day\n"


@pytest.mark.parametrize("program", ["no-such-program-here", "./run.sh"])
def test_a_missing_command_is_bad_input(tmp_path: Path, program: str) -> None:
    """A program that is not there is told before a task runs."""
    with pytest.raises(InputError, match=f"agent.command: '{program}' is no program"):
        run_tasks(Agent(command=(program,), folder=str(tmp_path)))
