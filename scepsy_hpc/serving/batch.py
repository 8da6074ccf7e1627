"""Works a batch off: at most so many runs in flight, or Poisson arrivals; every end is recorded.

A task whose attempt failed after an engine fault runs again (at least once semantics); a task
whose agent failed by itself is recorded as failed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.formats.status import TaskCounts
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving.ledger import Ledger
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.tracing.agents.pool import AgentOutcome


@dataclass(frozen=True, slots=True)
class AttemptEnd(AgentOutcome):
    """How one attempt ended; Unix seconds. ``faulted``: an engine fault may be the reason."""

    faulted: bool = False


class RunsTask(Protocol):
    """Runs one attempt of a task to its end."""

    def __call__(self, task: Task, attempt: int, /) -> Awaitable[AttemptEnd]: ...


class Batch:
    """One batch; ``run`` works it off."""

    def __init__(
        self, tasks: Sequence[Task], ledger: Ledger, run_task: RunsTask, settings: RunSettings
    ) -> None:
        """Take what the ledger has not recorded yet, in file order.

        ``settings`` say how runs enter: closed, or Poisson at a rate.
        """
        done = ledger.recorded
        self.todo = [task for task in tasks if task.task_id not in done]
        self.num_total = len(tasks)
        self.num_skipped = self.num_total - len(self.todo)
        self.in_flight: set[str] = set()
        self.num_ok = self.num_failed = self.num_retried = 0
        self._ledger, self._run_task, self._settings = ledger, run_task, settings
        self._draining = asyncio.Event()
        self._broken: BaseException | None = None

    @property
    def num_left(self) -> int:
        """Tasks without a record."""
        return len(self.todo) - self.num_ok - self.num_failed

    def counts(self) -> TaskCounts:
        """How far it is."""
        return TaskCounts(
            total=self.num_total,
            recorded_before=self.num_skipped,
            ok=self.num_ok,
            failed=self.num_failed,
            in_flight=len(self.in_flight),
            waiting=self.num_left - len(self.in_flight),
            retried=self.num_retried,
        )

    async def run(self) -> None:
        """Return when every admitted run has ended. Cancelled runs leave no record.

        What a run raises (a full disk, say) ends the batch and is raised here.
        """
        jobs: set[asyncio.Task[None]] = set()
        try:
            async for task in self._admitted(jobs):
                job = asyncio.create_task(self._work_off(task))
                jobs.add(job)
                job.add_done_callback(lambda job: self._ended(job, jobs))
            while jobs:
                await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        if self._broken is not None:
            raise self._broken

    def _ended(self, job: asyncio.Task[None], jobs: set[asyncio.Task[None]]) -> None:
        jobs.discard(job)
        if not job.cancelled() and job.exception() is not None:
            self._broken = self._broken or job.exception()
            self._draining.set()  # admit no more

    async def _admitted(self, jobs: set[asyncio.Task[None]]) -> AsyncIterator[Task]:
        chance = random.Random(self._settings.seed)
        next_s = time.monotonic()
        for task in self.todo:
            if self._settings.rate_rps:
                next_s += chance.expovariate(self._settings.rate_rps)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), next_s - time.monotonic())
            limit = self._settings.max_runs_in_flight
            while limit and len(jobs) >= limit:
                await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            if self._draining.is_set():
                return
            yield task

    async def _work_off(self, task: Task) -> None:
        first_s = 0.0
        self.in_flight.add(task.task_id)
        try:
            for attempt in range(1, self._settings.max_attempts + 1):
                end = await self._run_task(task, attempt)
                first_s = end.started_s if attempt == 1 else first_s
                if end.error is None or not end.faulted or attempt == self._settings.max_attempts:
                    break
                self.num_retried += 1
                await asyncio.sleep(min(2.0 ** (attempt - 1), 10.0))
            self._record(task.task_id, attempt, first_s, end)
        finally:
            self.in_flight.discard(task.task_id)

    def _record(self, task_id: str, attempts: int, first_s: float, end: AttemptEnd) -> None:
        ok = end.error is None
        self._ledger.append(
            TaskResult(
                task_id=task_id,
                status="ok" if ok else "failed",
                attempts=attempts,
                started_s=first_s,
                finished_s=end.finished_s,
                result=end.result if ok else None,
                error=end.error,
            )
        )
        self.num_ok += ok
        self.num_failed += not ok
