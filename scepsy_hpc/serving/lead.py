"""What rank 0 does beside hosting: waits for engines, dispatches, works the batch off, reports."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Sequence
from typing import Any, TextIO

from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.files import json_line, to_plain
from scepsy_hpc.planning.plan import Plan
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.batch import Attempt, Batch
from scepsy_hpc.serving.dispatcher import Dispatcher, follow_engines, ready_endpoints, routes_of
from scepsy_hpc.serving.ledger import Ledger
from scepsy_hpc.serving.measured import measure
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder, read_json, write_json
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.tracing.agents import AgentPool, agent_environment
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy import RecordingProxy
from scepsy_hpc.tracing.spans import Span, load_spans
from scepsy_hpc.tracing.tasks import load_tasks

MAX_AGENTS = 256


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
    ) -> None:
        """Nothing starts before ``run``."""
        self.folder, self.attempt, self.plan, self.settings = folder, attempt, plan, settings
        self._placed = {p.instance.id: p for p in placed}
        self._interrupted = interrupted
        self._batch: Batch | None = None
        self._pools: dict[str, AgentPool] = {}
        self._spans: TextIO | None = None
        self._state, self._started_s = "starting", time.time()
        self._url: str | None = None
        self._proxy: RecordingProxy
        self._dispatcher = Dispatcher(
            routes_of(plan), folder.key.read_text().strip(), settings.ready_timeout_s
        )
        if len(plan.workflows) == 1:
            self._dispatcher.default_workflow = plan.workflows[0].name

    async def run(self) -> None:
        """Return when the batch is worked off or the run is stopped. Raises RunError."""
        routes = self._dispatcher.routes
        async with contextlib.AsyncExitStack() as stack:
            background = [
                asyncio.create_task(follow_engines(routes, self.attempt, list(self._placed))),
                asyncio.create_task(self._beat()),
            ]
            stack.push_async_callback(_cancel, background)
            await self._wait_for_engines()
            self._spans = stack.enter_context(self.folder.spans.open("a", encoding="utf-8"))
            self._proxy = RecordingProxy(
                self._dispatcher,
                self._record,
                api_key=self._dispatcher.api_key,
                workflow_of=self._dispatcher.workflow_of.get,
            )
            await stack.enter_async_context(self._proxy)
            self._url = self._proxy.base_url("RUN_ID")
            if self.settings.serve:
                await self._serve()
            else:
                await self._work_off(stack)

    async def _wait_for_engines(self) -> None:
        """Until every instance is ready or given up on. Raises RunError when an LLM has none."""
        while not self._stopped():
            reports = {name: read_json(self.attempt.engine(name)) for name in self._placed}
            states = [report["state"] if report else "none" for report in reports.values()]
            if all(state in ("ready", "failed") for state in states):
                break
            await asyncio.sleep(0.3)
        if self._stopped():
            return
        ready = {llm for llm, _ in ready_endpoints(self.attempt, list(self._placed)).values()}
        for llm in self.plan.llms:
            if llm not in ready:
                errors = [r.get("error") for r in reports.values() if r and r["llm"] == llm]
                raise RunError(
                    f"{llm}: none of its {len(errors)} instances became ready; no task was run. "
                    f"First error: {next((e for e in errors if e), 'none')}"
                )

    def _stopped(self) -> bool:
        return self._interrupted.is_set() or self.attempt.stop.exists()

    async def _serve(self) -> None:
        self._state = "serving"
        while not self._stopped():
            await asyncio.sleep(0.3)

    async def _work_off(self, stack: contextlib.AsyncExitStack) -> None:
        names = tuple(workflow.name for workflow in self.plan.workflows)
        tasks = load_tasks(self.folder.tasks, names)
        ledger = stack.enter_context(contextlib.closing(Ledger(self.folder.results)))
        pace = self.settings.pace
        num_workers = min(pace.max_runs_in_flight or MAX_AGENTS, len(tasks), MAX_AGENTS)
        for workflow in self.plan.workflows:
            if workflow.agent is None:
                raise InputError(f"{self.folder.plan}: workflow {workflow.name} has no agent")
            pool = AgentPool(workflow.agent, num_workers, log_path=self._agent_log(workflow.name))
            self._pools[workflow.name] = await stack.enter_async_context(pool)
        self._batch = Batch(tasks, ledger, self._attempt, pace, self.settings.max_attempts)
        self._state = "running"
        working = asyncio.create_task(self._batch.run())
        while not working.done():
            if self._stopped():
                self._batch.drain()
                working.cancel()  # What is unrecorded runs again with --resume.
            await asyncio.wait([working], timeout=0.3)
        if not working.cancelled():
            working.result()
        self._state = "ending"
        self._write_measured(names)

    def _agent_log(self, name: str) -> Any:
        return self.folder.logs / f"agent-{name}.log"

    async def _attempt(self, task: dict[str, Any], attempt: int) -> Attempt:
        """Run the agent once; its run span is recorded whatever happens."""
        name, run_id = task["workflow"], f"{task['task_id']}.{attempt}.{uuid.uuid4().hex[:6]}"
        self._dispatcher.workflow_of[run_id] = name
        environment = agent_environment(
            self._proxy.base_url(run_id),
            self._dispatcher.api_key,
            task["task_id"],
            run_id,
            attempt,
        )
        limit_s = self.settings.task_timeout_s
        started_s, status = now_s(), "cancelled"
        try:
            outcome = await self._pools[name].run(task, environment, limit_s)
            status = "ok" if outcome.error is None else "failed"
            faulted = run_id in self._dispatcher.faulted
            return Attempt(
                outcome.started_s, outcome.finished_s, outcome.result, outcome.error, faulted
            )
        finally:
            self._record(
                Span(
                    run_id=run_id,
                    span_id=f"{run_id}.run",
                    kind="run",
                    start_s=started_s,
                    end_s=now_s(),
                    status=status,
                    workflow=name,
                )
            )
            self._dispatcher.workflow_of.pop(run_id, None)
            self._dispatcher.faulted.discard(run_id)

    def _record(self, span: Span) -> None:
        self._dispatcher.saw(span)
        if self._spans is not None and not self._spans.closed:
            self._spans.write(json_line(span))
            self._spans.flush()

    def _write_measured(self, names: Sequence[str]) -> None:
        """Figures of this attempt's runs, by workflow."""
        if not self.folder.spans.exists() or not self.folder.spans.stat().st_size:
            return
        spans = [s for s in load_spans(self.folder.spans) if s.start_s >= self._started_s - 1.0]
        figures = {name: to_plain(found) for name in names if (found := measure(spans, name))}
        write_json(self.folder.measured, {"since_s": self._started_s, "workflows": figures})

    async def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            write_json(self.attempt.heartbeat, count)
            self.write_status(self._state)
            await asyncio.sleep(1.0)

    def write_status(self, state: str) -> None:
        """Rewrite ``status.json``."""
        self._state = state
        write_json(self.folder.status, self.status())

    def status(self) -> dict[str, Any]:
        """Progress as plain data; times are Unix seconds."""
        return {
            "state": self._state,
            "updated_s": time.time(),
            "started_s": self._started_s,
            "attempt": self.attempt.root.name,
            "url": self._url,
            "tasks": self._task_counts(),
            "instances": [self._instance(name) for name in self._placed],
        }

    def _task_counts(self) -> dict[str, int] | None:
        batch = self._batch
        if batch is None:
            return None
        ended = batch.num_ok + batch.num_failed
        return {
            "total": batch.num_total,
            "recorded_before": batch.num_skipped,
            "ok": batch.num_ok,
            "failed": batch.num_failed,
            "in_flight": len(batch.in_flight),
            "waiting": batch.num_total - batch.num_skipped - ended - len(batch.in_flight),
            "retried": batch.num_retried,
        }

    def _instance(self, name: str) -> dict[str, Any]:
        report = read_json(self.attempt.engine(name)) or {"state": "none"}
        route = self._dispatcher.routes.instances.get(name)
        return {
            "id": name,
            "llm": self._placed[name].instance.llm,
            "host": self._placed[name].host,
            "gpus": list(self._placed[name].gpus),
            "state": report["state"],
            "starts": report.get("starts", 0),
            "error": report.get("error"),
            "calls_in_flight": route.in_flight if route else 0,
            "num_calls": route.num_calls if route else 0,
        }


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
