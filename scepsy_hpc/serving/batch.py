"""Works a batch off: at most so many runs in flight, or Poisson arrivals; every end is recorded.

What infrastructure broke is tried again up to a limit, then left unrecorded for a later start. What
an agent did wrong is tried again as often as the user asked, then recorded as failed. Nothing waits
in a seat: a task that is to run again goes back into the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from scepsy_hpc.formats.limits import Unrecordable, short_error
from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.formats.status import TaskCounts
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving.ledger_writer import LedgerWriter
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.tracing.agents.pool import AgentOutcome
from scepsy_hpc.tracing.clock import now_s

SAME_SIGNAL_S = 1.0
"""Slurm's SIGTERM goes to every process of a job: agents may die of it before this one hears."""
LAST_WORDS_S = 10.0
"""How long the records of what had ended are waited for when a batch is cut short."""
KEPT_LENGTHS = 1000
_LOOK_S = 1.0


class RunsTask(Protocol):
    """Runs one attempt of a task to its end."""

    def __call__(self, task: Task, attempt: int, /) -> Awaitable[AgentOutcome]: ...


@dataclass(slots=True)
class _Tried:
    """A task and its attempts of this start; failures by who is to blame."""

    task: Task
    num_attempts: int = 0
    num_infra: int = 0
    num_own: int = 0
    first_s: float = 0.0


class Batch:
    """One batch; ``run`` works it off."""

    def __init__(
        self,
        tasks: Sequence[Task],
        writer: LedgerWriter,
        run_task: RunsTask,
        settings: RunSettings,
        interrupted: asyncio.Event | None = None,
    ) -> None:
        """Take what is not recorded yet, or failed before this round of retries, in file order.

        ``settings`` say how runs enter: closed, or Poisson at a rate. ``has_time`` may be set: it
        is asked before each admission; once it says no, nothing begins any more.
        """
        ledger = writer.ledger
        self.todo = [task for task in tasks if ledger.is_open(task.task_id)]
        self.num_total = len(tasks)
        self.num_skipped = self.num_total - len(self.todo)
        self.in_flight: dict[str, float] = {}  # since when, monotonic
        self.given_up: dict[str, str] = {}
        self.num_ok = self.num_failed = self.num_retried = 0
        self.has_time: Callable[[], bool] = lambda: True
        self.is_out_of_time = False
        records = ledger.merged.records.values()
        lengths = (found.duration_s for found in records if found.status == "ok")
        self._lengths = deque(lengths, maxlen=KEPT_LENGTHS)
        self._writer, self._run_task, self._settings = writer, run_task, settings
        self._interrupted = interrupted or asyncio.Event()
        self._fresh = deque(self.todo)
        self._again: list[tuple[float, int, _Tried]] = []
        self._number = itertools.count()
        self._attempts: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._broken: BaseException | None = None
        self._chance = random.Random(settings.seed)
        self._arrival_s = time.monotonic() + self._until_next_s()

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
            waiting=self.num_left - len(self.in_flight) - len(self.given_up),
            retried=self.num_retried,
            given_up=len(self.given_up),
        )

    def lengths_s(self) -> list[float]:
        """How long tasks took, of those in flight how long they take already."""
        here_s = time.monotonic()
        return [*self._lengths, *(here_s - since_s for since_s in self.in_flight.values())]

    def alerts(self) -> tuple[str, ...]:
        """Tasks that infrastructure kept from ending, by name."""
        if not self.given_up:
            return ()
        first, error = next(iter(self.given_up.items()))
        names = ", ".join(itertools.islice(self.given_up, 5))
        more = ", ..." if len(self.given_up) > 5 else ""
        return (
            f"{len(self.given_up)} tasks met faults of engines or nodes "
            f"{self._settings.max_attempts} times and are not recorded: {names}{more} "
            f"(--resume runs them); of {first}: {error}",
        )

    async def run(self) -> None:
        """Return when every admitted run has ended. Cancelled runs leave no record.

        What makes records impossible ends the batch and is raised here.
        """
        try:
            while (tried := await self._next()) is not None:
                self._begin(tried)
        finally:
            await self._end_all()
        if self._broken is not None:
            raise self._broken

    async def _end_all(self) -> None:
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        if self._endings:
            await asyncio.wait(self._endings, timeout=LAST_WORDS_S)
        for ending in self._endings:
            ending.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def _next(self) -> _Tried | None:
        """The next to begin, as soon as it may; None at the end."""
        while True:
            self._changed.clear()
            self._broken = self._broken or self._writer.superseded
            if self._broken:
                return None
            if self._fresh or self._again:
                self.is_out_of_time = self.is_out_of_time or not self.has_time()
            busy = self._attempts or self._endings
            if not self.is_out_of_time and (tried := self._due()):
                return tried
            if not busy and (self.is_out_of_time or not (self._fresh or self._again)):
                return None
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which may lose that this is cancelled.
                async with asyncio.timeout(self._pause_s()):
                    await self._changed.wait()

    def _due(self) -> _Tried | None:
        """Who may begin now, a task that runs again first."""
        limit, here_s = self._settings.max_runs_in_flight, time.monotonic()
        if self._writer.is_stalled or (limit and len(self.in_flight) >= limit):
            return None
        if self._again and self._again[0][0] <= here_s:
            return heapq.heappop(self._again)[2]
        if not self._fresh or self._arrival_s > here_s:
            return None
        self._arrival_s += self._until_next_s()
        return _Tried(self._fresh.popleft())

    def _until_next_s(self) -> float:
        rate_rps = self._settings.rate_rps
        return self._chance.expovariate(rate_rps) if rate_rps else 0.0

    def _pause_s(self) -> float:
        moments = [self._again[0][0]] if self._again else []
        moments += [self._arrival_s] if self._fresh and self._settings.rate_rps else []
        left_s = min(moments, default=float("inf")) - time.monotonic()
        return min(left_s, _LOOK_S) if left_s > 0 else _LOOK_S

    def _begin(self, tried: _Tried) -> None:
        tried.num_attempts += 1
        self.in_flight[tried.task.task_id] = time.monotonic()
        job = asyncio.create_task(self._attempt(tried))
        self._attempts.add(job)
        job.add_done_callback(lambda job: self._ended(job, self._attempts))

    async def _attempt(self, tried: _Tried) -> None:
        """In its seat until its agent has ended; what follows is no longer in the way."""
        begun_s = now_s()
        try:
            end = await self._run_task(tried.task, tried.num_attempts)
        except Exception as error:  # ours: whatever it is, the others go on
            end = AgentOutcome(begun_s, now_s(), error=repr(error), failure="infra")
        finally:
            self.in_flight.pop(tried.task.task_id, None)
        ending = asyncio.create_task(self._conclude(tried, end))
        self._endings.add(ending)
        ending.add_done_callback(lambda job: self._ended(job, self._endings))

    def _ended(self, job: asyncio.Task[None], jobs: set[asyncio.Task[None]]) -> None:
        jobs.discard(job)
        if not job.cancelled() and job.exception() is not None:
            self._broken = self._broken or job.exception()
        self._changed.set()

    async def _conclude(self, tried: _Tried, end: AgentOutcome) -> None:
        """Record what ended, or let it run again."""
        if tried.num_attempts == 1:
            tried.first_s = end.started_s
        if end.error is None:
            self._lengths.append(end.finished_s - end.started_s)
            await self._record(tried, end)
        elif end.failure == "infra":
            tried.num_infra += 1
            if tried.num_infra < self._settings.max_attempts:
                self._run_again(tried, tried.num_infra)
            else:
                self.given_up[tried.task.task_id] = short_error(end.error)
        elif not await self._is_our_end():
            tried.num_own += 1
            if tried.num_own <= self._settings.retries:
                self._run_again(tried, tried.num_own)
            else:
                await self._record(tried, end)

    async def _is_our_end(self) -> bool:
        """Whether a failure may come of the signal that ends this process, too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAME_SIGNAL_S):
                await self._interrupted.wait()
        return self._interrupted.is_set()

    def _run_again(self, tried: _Tried, number: int) -> None:
        due_s = time.monotonic() + pause_before_attempt_s(number)
        heapq.heappush(self._again, (due_s, next(self._number), tried))
        self.num_retried += 1

    async def _record(self, tried: _Tried, end: AgentOutcome) -> None:
        found = _result_of(tried, end)
        try:
            await self._writer.record(found)
        except Unrecordable as error:
            reason = f"the agent's result cannot be recorded: {error}"
            found = _result_of(tried, _with_error(end, reason))
            await self._writer.record(found)
        self.num_ok += found.status == "ok"
        self.num_failed += found.status == "failed"


def pause_before_attempt_s(num_failed: int) -> float:
    """Seconds until a task runs again that failed so often."""
    return float(min(2.0 ** (num_failed - 1), 30.0))


def _with_error(end: AgentOutcome, reason: str) -> AgentOutcome:
    return AgentOutcome(end.started_s, end.finished_s, error=reason, failure="record")


def _result_of(tried: _Tried, end: AgentOutcome) -> TaskResult:
    ok = end.error is None
    blamed: Literal["agent", "record"] = "record" if end.failure == "record" else "agent"
    return TaskResult(
        task_id=tried.task.task_id,
        status="ok" if ok else "failed",
        attempts=tried.num_attempts,
        started_s=tried.first_s,
        finished_s=end.finished_s,
        result=end.result if ok else None,
        error=None if ok else short_error(end.error or ""),
        error_class=None if ok else blamed,
    )
