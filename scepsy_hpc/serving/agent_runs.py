"""Runs one attempt of a task: a free seat, the agent in its environment, the span of its run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import extended
from scepsy_hpc.formats.spans import Span, new_run_id
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving.batch import AttemptEnd
from scepsy_hpc.serving.dispatcher import Dispatcher
from scepsy_hpc.serving.start import Run
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool, agent_environment
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy
from scepsy_hpc.tracing.recorder import run_span

SAME_SIGNAL_S = 1.0


@dataclass(slots=True)
class AgentRuns:
    """The agents of a plan's workflows; ``start`` them, then ``run`` attempts.

    ``record`` takes the span of each.
    """

    hosted: Run
    dispatcher: Dispatcher
    proxy: RecordingProxy
    record: Callable[[Span], None]
    interrupted: asyncio.Event
    pools: dict[str, AgentPool] = field(default_factory=dict)
    seats: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    async def start(self, num_seats: int, stack: contextlib.AsyncExitStack) -> None:
        """Seats of each workflow's agent, until ``stack`` ends. Raises InputError and RunError."""
        for workflow in self.hosted.plan.workflows:
            if workflow.agent is None:
                where = self.hosted.folder.plan
                raise InputError(f"{where}: workflow {workflow.name} has no agent")
            log = self.hosted.folder.logs / f"agent-{workflow.name}.log"
            pool = AgentPool(workflow.agent, num_seats, log_path=log)
            self.pools[workflow.name] = await stack.enter_async_context(pool)
            self.seats[workflow.name] = asyncio.Semaphore(num_seats)

    async def run(self, task: Task, attempt: int) -> AttemptEnd:
        """Run the agent once. Its run's span is recorded whatever the end."""
        run_id = new_run_id(task.task_id, attempt)
        base_url, key = self.proxy.base_url(run_id), self.dispatcher.api_key
        environment = agent_environment(base_url, key, task.task_id, run_id, attempt)
        # A run starts when its agent does: waiting for a free worker is no part of it.
        async with self.seats[task.workflow]:
            self.dispatcher.workflow_of[run_id] = task.workflow
            started_s, end = now_s(), None
            try:
                limit_s = self.hosted.settings.task_timeout_s
                outcome = await self.pools[task.workflow].run(task.data, environment, limit_s)
                if outcome.error is not None:
                    await self._unless_we_end_too()
                end = outcome
                return extended(AttemptEnd, end, faulted=run_id in self.dispatcher.faulted)
            finally:
                cut = AgentOutcome(started_s, now_s())
                span = run_span(run_id, task.workflow, end or cut, None if end else "cancelled")
                self.record(span)
                self.dispatcher.workflow_of.pop(run_id, None)
                self.dispatcher.faulted.discard(run_id)

    async def _unless_we_end_too(self) -> None:
        """Return when the failure of a run is its own; else be cancelled, so nothing is recorded.

        Slurm's SIGTERM goes to every process of the job, and an agent or an engine may die of it
        before this process hears of its own.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.interrupted.wait(), SAME_SIGNAL_S)
            raise asyncio.CancelledError
