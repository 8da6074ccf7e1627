"""Runs one attempt of a task: a free seat, the agent in its environment, the span of its run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Span, new_run_id
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving.dispatcher import Dispatcher
from scepsy_hpc.serving.start import Run
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool, agent_environment
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy
from scepsy_hpc.tracing.recorder import run_span


@dataclass(slots=True)
class AgentRuns:
    """The agents of a plan's workflows; ``start`` them, then ``run`` attempts.

    ``record`` takes the span of each.
    """

    hosted: Run
    dispatcher: Dispatcher
    proxy: RecordingProxy
    record: Callable[[Span], None]
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

    async def run(self, task: Task, attempt: int) -> AgentOutcome:
        """Run the agent once. Its run's span is recorded whatever the end.

        An agent that failed beside a fault of an engine that it called is not to blame.
        """
        run_id = new_run_id(task.task_id, attempt)
        base_url, key = self.proxy.base_url(run_id), self.dispatcher.api_key
        environment = agent_environment(base_url, key, task.task_id, run_id, attempt)
        # A run starts when its agent does: waiting for a free worker is no part of it.
        async with self.seats[task.workflow]:
            self.dispatcher.workflow_of[run_id] = task.workflow
            started_s, end = now_s(), None
            try:
                limit_s = self.hosted.settings.task_timeout_s
                end = await self.pools[task.workflow].run(task.data, environment, limit_s)
                if end.failure == "agent" and self.dispatcher.met_fault(run_id):
                    return replace(end, failure="infra")
                return end
            finally:
                cut = AgentOutcome(started_s, now_s())
                span = run_span(run_id, task.workflow, end or cut, None if end else "cancelled")
                self.record(span)
                self.dispatcher.forget(run_id)
