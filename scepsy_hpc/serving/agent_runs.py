"""Runs one attempt of a task: a free seat, the agent in its environment, the span of its run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span, new_run_id
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving.batch import AttemptEnd
from scepsy_hpc.serving.dispatcher import Dispatcher
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool, agent_environment
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy
from scepsy_hpc.tracing.recorder import run_span

SAME_SIGNAL_S = 1.0


class AgentRuns:
    """The agents of a plan's workflows; ``start`` them, then ``run`` attempts."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        proxy: RecordingProxy,
        record: Callable[[Span], None],
        interrupted: asyncio.Event,
        timeout_s: float | None,
    ) -> None:
        """``timeout_s`` limits an attempt; ``record`` takes the span of each."""
        self._dispatcher, self._proxy, self._record = dispatcher, proxy, record
        self._interrupted, self._timeout_s = interrupted, timeout_s
        self._pools: dict[str, AgentPool] = {}
        self._seats: dict[str, asyncio.Semaphore] = {}

    async def start(
        self, plan: Plan, folder: RunFolder, num_seats: int, stack: contextlib.AsyncExitStack
    ) -> None:
        """Seats of each workflow's agent, until ``stack`` ends. Raises InputError and RunError."""
        for workflow in plan.workflows:
            if workflow.agent is None:
                raise InputError(f"{folder.plan}: workflow {workflow.name} has no agent")
            log = folder.logs / f"agent-{workflow.name}.log"
            pool = AgentPool(workflow.agent, num_seats, log_path=log)
            self._pools[workflow.name] = await stack.enter_async_context(pool)
            self._seats[workflow.name] = asyncio.Semaphore(num_seats)

    async def run(self, task: Task, attempt: int) -> AttemptEnd:
        """Run the agent once. Its run's span is recorded whatever the end."""
        run_id = new_run_id(task.task_id, attempt)
        base_url, key = self._proxy.base_url(run_id), self._dispatcher.api_key
        environment = agent_environment(base_url, key, task.task_id, run_id, attempt)
        # A run starts when its agent does: waiting for a free worker is no part of it.
        async with self._seats[task.workflow]:
            self._dispatcher.workflow_of[run_id] = task.workflow
            started_s, end = now_s(), None
            try:
                pool = self._pools[task.workflow]
                outcome = await pool.run(task.data, environment, self._timeout_s)
                if outcome.error is not None:
                    await self._unless_we_end_too()
                end = outcome
                faulted = run_id in self._dispatcher.faulted
                return AttemptEnd(
                    end.started_s, end.finished_s, end.result, end.error, faulted=faulted
                )
            finally:
                cut = AgentOutcome(started_s, now_s())
                span = run_span(run_id, task.workflow, end or cut, None if end else "cancelled")
                self._record(span)
                self._dispatcher.workflow_of.pop(run_id, None)
                self._dispatcher.faulted.discard(run_id)

    async def _unless_we_end_too(self) -> None:
        """Return when the failure of a run is its own; else be cancelled, so nothing is recorded.

        Slurm's SIGTERM goes to every process of the job, and an agent or an engine may die of it
        before this process hears of its own.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), SAME_SIGNAL_S)
            raise asyncio.CancelledError
