"""What rank 0 does beside hosting: waits for engines, dispatches, works the batch off, reports."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.files import json_line, to_plain
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span, load_spans, new_run_id
from scepsy_hpc.formats.tasks import load_tasks
from scepsy_hpc.serving.addresses import LOOPBACK
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.batch import AttemptEnd, Batch
from scepsy_hpc.serving.dispatcher import Dispatcher, routes_of
from scepsy_hpc.serving.engine_view import EngineView
from scepsy_hpc.serving.ledger import Ledger, cut_torn_line
from scepsy_hpc.serving.measured import MeasuredRun, measured_of
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder, no_status, write_json
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.tracing.agents.pool import AgentPool, agent_environment
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy

# Under Poisson arrivals nothing else limits how many agents' processes there are.
MAX_AGENTS = 1024
SAME_SIGNAL_S = 1.0


class Lead:
    """The batch side of one run."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: AttemptFolder,
        plan: Plan,
        settings: RunSettings,
        placed: Sequence[PlacedInstance],
        interrupted: asyncio.Event,
        address: str = LOOPBACK,
    ) -> None:
        """``address`` is where the dispatcher listens. Nothing starts before ``run``."""
        self.folder, self.attempt, self.plan, self.settings = folder, attempt, plan, settings
        self._engines = EngineView(attempt, placed, settings.node_lost_s)
        self._interrupted = interrupted
        self._batch: Batch | None = None
        self._pools: dict[str, AgentPool] = {}
        self._seats: dict[str, asyncio.Semaphore] = {}
        self._spans: TextIO | None = None
        self._state, self._started_s = "starting", time.time()
        self._url: str | None = None
        self._address = address
        self._proxy: RecordingProxy
        self._dispatcher = Dispatcher(
            routes_of(plan), folder.key.read_text().strip(), settings.ready_timeout_s
        )
        if len(plan.workflows) == 1:
            self._dispatcher.default_workflow = plan.workflows[0].name

    async def run(self) -> None:
        """Return when the batch is worked off or the run is stopped. Raises RunError."""
        async with contextlib.AsyncExitStack() as stack:
            background = [
                asyncio.create_task(self._engines.follow(self._dispatcher.routes)),
                asyncio.create_task(self._keep_status()),
                asyncio.create_task(self._say_when_interrupted()),
            ]
            stack.push_async_callback(_cancel, background)
            # What can fail at once goes before the long wait for engines.
            batch = None if self.settings.serve else await self._prepare_batch(stack)
            await self._wait_for_engines()
            if self._is_stopped():
                return
            self._spans = stack.enter_context(_open_spans(self.folder.spans))
            self._proxy = RecordingProxy(
                self._dispatcher,
                self._record,
                api_key=self._dispatcher.api_key,
                workflow_of=self._dispatcher.workflow_of.get,
            )
            await self._proxy.start(self._address)
            stack.push_async_callback(self._proxy.stop)
            self._url = self._proxy.base_url("RUN_ID")
            if batch is None:
                await self._serve()
            else:
                await self._work_off(batch)

    async def _prepare_batch(self, stack: contextlib.AsyncExitStack) -> Batch:
        """Tasks, ledger and agents. Raises InputError and RunError."""
        names = tuple(workflow.name for workflow in self.plan.workflows)
        tasks = load_tasks(self.folder.tasks, names)
        ledger = stack.enter_context(contextlib.closing(Ledger(self.folder.results)))
        pace = self.settings.pace
        num_seats = min(pace.max_runs_in_flight or MAX_AGENTS, len(tasks))
        for workflow in self.plan.workflows:
            if workflow.agent is None:
                raise InputError(f"{self.folder.plan}: workflow {workflow.name} has no agent")
            log = self.folder.logs / f"agent-{workflow.name}.log"
            pool = AgentPool(workflow.agent, num_seats, log_path=log)
            self._pools[workflow.name] = await stack.enter_async_context(pool)
            self._seats[workflow.name] = asyncio.Semaphore(num_seats)
        self._batch = Batch(tasks, ledger, self._attempt, pace, self.settings.max_attempts)
        return self._batch

    async def _wait_for_engines(self) -> None:
        """Until every LLM is served. Raises RunError when one never will be."""
        llms = tuple(self.plan.llms)
        while not self._is_stopped():
            if self._engines.is_hosted(llms):
                return
            if reason := self._engines.dead(llms):
                raise RunError(f"{reason}\nNo task was run")
            await asyncio.sleep(0.3)

    def _is_stopped(self) -> bool:
        return self._interrupted.is_set() or self.attempt.is_stopped()

    async def _serve(self) -> None:
        self.write_status("serving")
        while not self._is_stopped():
            await asyncio.sleep(0.3)

    async def _work_off(self, batch: Batch) -> None:
        """Until nothing is left, someone stops the run, or an LLM is gone (RunError)."""
        self.write_status("running")
        working, reason = asyncio.create_task(batch.run()), None
        while not working.done():
            reason = self._engines.dead(tuple(self.plan.llms))
            if reason or self._is_stopped():
                working.cancel()  # Once: what is unrecorded runs again with --resume.
                await asyncio.wait([working])
                break
            await asyncio.wait([working], timeout=0.3)
        self._state = self.last_state() if self._is_stopped() else "ending"
        self._write_measured()
        if reason:
            raise RunError(reason)
        if not working.cancelled():
            working.result()

    def last_state(self) -> str:
        """How it ended: `ended`, or what cut it short: `stopped` by the user, `interrupted`."""
        batch = self._batch
        if batch is not None and batch.num_left == 0:
            return "ended"
        if self.attempt.asked.exists():
            return "stopped"
        return "interrupted" if self._interrupted.is_set() else "ended"

    async def _attempt(self, task: dict[str, Any], attempt: int) -> AttemptEnd:
        """Run the agent once."""
        name, run_id = task["workflow"], new_run_id(task["task_id"], attempt)
        environment = agent_environment(
            self._proxy.base_url(run_id),
            self._dispatcher.api_key,
            task["task_id"],
            run_id,
            attempt,
        )
        # A run starts when its agent does: waiting for a free worker is no part of it.
        async with self._seats[name]:
            self._dispatcher.workflow_of[run_id] = name
            started_s, status = now_s(), "cancelled"
            try:
                limit_s = self.settings.task_timeout_s
                end = await self._pools[name].run(task, environment, limit_s)
                if end.error is not None:
                    await self._unless_we_end_too()
                status = "ok" if end.error is None else "failed"
                faulted = run_id in self._dispatcher.faulted
                return AttemptEnd(started_s, end.finished_s, end.result, end.error, faulted)
            finally:
                self._record_run(run_id, name, started_s, status)
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

    def _record_run(self, run_id: str, workflow: str, started_s: float, status: str) -> None:
        """Its span is recorded whatever the end."""
        span = Span(
            run_id=run_id,
            span_id=f"{run_id}.run",
            kind="run",
            start_s=started_s,
            end_s=now_s(),
            status=status,
            workflow=workflow,
        )
        self._record(span)

    def _record(self, span: Span) -> None:
        self._dispatcher.saw(span)
        if self._spans is not None and not self._spans.closed:
            self._spans.write(json_line(span))
            self._spans.flush()

    def _write_measured(self) -> None:
        """Figures of this attempt's runs, by workflow."""
        if not self.folder.spans.stat().st_size:
            return
        spans = [s for s in load_spans(self.folder.spans) if s.start_s >= self._started_s - 1.0]
        names = [workflow.name for workflow in self.plan.workflows]
        figures = {name: found for name in names if (found := measured_of(spans, name))}
        measured = MeasuredRun(since_s=self._started_s, workflows=figures)
        write_json(self.folder.measured, to_plain(measured))

    async def _keep_status(self) -> None:
        while True:
            # A disk that is full now is tried again; the ledger is what must not fail.
            with contextlib.suppress(OSError, InputError):
                self.write_status(self._state)
            await asyncio.sleep(1.0)

    async def _say_when_interrupted(self) -> None:
        # At once: whoever sent the signal may send SIGKILL within a second.
        await self._interrupted.wait()
        self.write_status(self.last_state())

    def write_status(self, state: str) -> None:
        """Rewrite ``status.json``."""
        self._state = state
        self._engines.look()
        write_json(self.folder.status, self.status())

    def status(self) -> dict[str, Any]:
        """Progress as plain data; times are Unix seconds."""
        routes = self._dispatcher.routes.instances
        instances = self._engines.states()
        for entry in instances:
            route = routes.get(entry["id"])
            entry["calls_in_flight"] = route.in_flight if route else 0
            entry["num_calls"] = route.num_calls if route else 0
        return {
            **no_status(self.attempt.root.name),
            "state": self._state,
            "started_s": self._started_s,
            "url": self._url,
            "tasks": self._task_counts(),
            "instances": instances,
            "alerts": self._engines.alerts(),
        }

    def _task_counts(self) -> dict[str, int] | None:
        batch = self._batch
        if batch is None:
            return None
        return {
            "total": batch.num_total,
            "recorded_before": batch.num_skipped,
            "ok": batch.num_ok,
            "failed": batch.num_failed,
            "in_flight": len(batch.in_flight),
            "waiting": batch.num_left - len(batch.in_flight),
            "retried": batch.num_retried,
        }


def _open_spans(path: Path) -> TextIO:
    if path.exists():
        cut_torn_line(path)
    return path.open("a", encoding="utf-8")


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
