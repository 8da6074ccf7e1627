"""Runs agents: a Python function in long-lived workers, or a command once per task.

Python workers are forked from one process that has imported the agent already: 64 of them cost
one import. A pool of the standard library breaks as a whole when one worker dies, and none hands
each task its own environment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import RunError, ScepsyError
from scepsy_hpc.formats.limits import short_error
from scepsy_hpc.formats.results import FailureClass
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.command import check_command, run_command
from scepsy_hpc.tracing.agents.nursery import Answer, Nursery, Worker, died
from scepsy_hpc.tracing.clock import now_s


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """How one task ended: ``error`` is None, or one line with type and message.

    ``failure`` then says whose it is: the agent's, or of what runs it (its worker was killed,
    memory ran out), or that the result cannot be recorded.

    It started when its worker was ready: to start that one is start-up, no part of a run.
    ``cpu_s``: CPU seconds of its processes; None where it was killed or died.
    """

    started_s: float
    finished_s: float
    result: Any = None
    error: str | None = None
    cpu_s: float | None = None
    failure: FailureClass | None = None


def agent_environment(
    base_url: str, api_key: str, task_id: str, run_id: str, attempt: int = 1
) -> dict[str, str]:
    """What an agent is told about its run."""
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": api_key,
        "SCEPSY_TASK_ID": task_id,
        "SCEPSY_RUN_ID": run_id,
        "SCEPSY_ATTEMPT": str(attempt),
    }


class AgentPool:
    """Runs up to ``num_workers`` tasks at once; an async context manager.

    A Python agent is `function(task) -> result`, plain or async, called with the workflow's folder
    as working directory and first import path and with its variables in ``os.environ``. A worker
    that dies or runs out of time is killed with all it started, and replaced. What agents print,
    and the tracebacks of their errors, goes to ``log_path``, or nowhere.
    """

    def __init__(self, agent: Agent, num_workers: int, log_path: Path | None = None) -> None:
        """Nothing starts before ``start``."""
        self._agent, self._log_path = agent, log_path
        self._seats = asyncio.Semaphore(num_workers)
        self._nursery: Nursery | None = None
        self._nursery_lock = asyncio.Lock()
        self._idle: list[Worker] = []
        self._jobs: set[asyncio.Task[AgentOutcome]] = set()
        self._closing: set[asyncio.Task[Any]] = set()
        self._closed = asyncio.Event()

    async def start(self) -> None:
        """Import the agent's module or find its command. Raises InputError."""
        if self._agent.python is not None:
            self._nursery = await Nursery.start(self._agent, self._log_path)
        else:
            check_command(self._agent)

    async def __aenter__(self) -> AgentPool:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close."""
        await self.close()

    async def run(
        self, task: dict[str, Any], env: dict[str, str], timeout_s: float | None = None
    ) -> AgentOutcome:
        """Run one task; waits for a free worker. ``timeout_s`` counts from its start.

        An agent's failure is an outcome, not an exception. Cancelling this kills the worker.
        Raises RunError when the pool was closed before the task began.
        """
        async with self._seats:
            if self._closed.is_set():
                raise RunError("the agent pool is closed")
            started_s = now_s()
            job = asyncio.create_task(self._attempt(task, env, timeout_s))
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            try:
                return await job
            except asyncio.CancelledError:
                if not self._closed.is_set() or _is_being_cancelled():
                    raise
                killed = "the agent was killed: its pool was closed"
                return AgentOutcome(started_s, now_s(), error=killed, failure="infra")

    async def _attempt(
        self, task: dict[str, Any], env: dict[str, str], timeout_s: float | None
    ) -> AgentOutcome:
        started_s = now_s()
        try:
            nursed = self._agent.python is not None
            worker = await self._ready_worker(timeout_s) if nursed else None
            started_s = now_s()
            async with asyncio.timeout(timeout_s):
                if worker is None:
                    reply = await run_command(self._agent, task, env, self._log_path)
                else:
                    reply = await self._in_worker(worker, task, env)
        except TimeoutError:
            reply = {"error": f"TimeoutError: the agent gave no result within {timeout_s:g} s"}
        except (ScepsyError, OSError) as error:
            reply = {"error": str(error), "failure": "infra"}
        return _outcome(started_s, reply)

    async def _ready_worker(self, timeout_s: float | None) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            if not worker.is_dead:  # killed while it waited
                return worker
            self._end(worker)
        async with asyncio.timeout(timeout_s):
            return await self._new_worker()

    async def _in_worker(
        self, worker: Worker, task: dict[str, Any], env: dict[str, str]
    ) -> dict[str, Any]:
        answer = None
        try:
            answer = await worker.run(task, env)
            if answer.is_usable:
                return answer.reply
            return answer.reply | await self._why_died(worker, answer)
        finally:
            if answer is not None and answer.is_usable:
                self._idle.append(worker)
            else:
                self._end(worker)

    async def _why_died(self, worker: Worker, answer: Answer) -> dict[str, Any]:
        """What to say of a worker that gave no answer."""
        if answer.reply:
            return {}
        if not await worker.has_died():
            return {"error": "the agent closed the connection to the process that runs it"}
        # One order at a time: its answer must not be taken for that to another one.
        async with self._nursery_lock:
            code = await worker.exit_code()
        return died(code)

    async def _new_worker(self) -> Worker:
        # Not to be cancelled half-way: a worker whose birth nobody awaits would be lost.
        birth = asyncio.create_task(self._give_birth())
        try:
            return await asyncio.shield(birth)
        except asyncio.CancelledError:
            self._closing.add(birth)
            birth.add_done_callback(self._adopt)
            raise

    def _adopt(self, birth: asyncio.Task[Worker]) -> None:
        self._closing.discard(birth)
        if not birth.cancelled() and birth.exception() is None:
            self._idle.append(birth.result())

    async def _give_birth(self) -> Worker:
        async with self._nursery_lock:
            nursery, self._nursery = self._nursery, None
            if nursery is not None:
                with contextlib.suppress(RunError):  # it was killed: a new one is tried
                    return await self._worker_of(nursery)
            return await self._worker_of(await Nursery.start(self._agent, self._log_path))

    async def _worker_of(self, nursery: Nursery) -> Worker:
        try:
            if not nursery.may_fork:
                return nursery.take_over()
            worker = await nursery.fork()
        except RunError:
            self._later(nursery.close())
            raise
        self._nursery = nursery
        return worker

    def _end(self, worker: Worker) -> None:
        worker.end()
        if not worker.nursery.may_fork:
            self._later(worker.nursery.close())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Kill every worker; tasks that still run end with an error."""
        self._closed.set()
        for job in self._jobs:
            job.cancel()
        while self._jobs or self._closing:
            await asyncio.wait(self._jobs | self._closing)
        while self._idle:
            self._end(self._idle.pop())
        if self._nursery is not None:
            self._later(self._nursery.close())
            self._nursery = None
        while self._closing:
            await asyncio.wait(set(self._closing))


def _outcome(started_s: float, reply: dict[str, Any]) -> AgentOutcome:
    error, cpu_s = reply.get("error"), reply.get("cpu_s")
    if error is None:
        return AgentOutcome(started_s, now_s(), reply.get("result"), cpu_s=cpu_s)
    failure = reply.get("failure", "agent")
    return AgentOutcome(started_s, now_s(), None, short_error(error), cpu_s, failure)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
