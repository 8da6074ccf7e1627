"""What rank 0 does beside hosting: waits for engines, dispatches, works the batch off or serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.tasks import load_tasks
from scepsy_hpc.serving.addresses import LOOPBACK
from scepsy_hpc.serving.agent_runs import AgentRuns
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.batch import Batch
from scepsy_hpc.serving.dispatcher import dispatcher_of
from scepsy_hpc.serving.engine_view import EngineView
from scepsy_hpc.serving.job_end import job_end_of
from scepsy_hpc.serving.ledger_writer import LedgerWriter, open_writer
from scepsy_hpc.serving.log_room import keep_logs_bounded
from scepsy_hpc.serving.measured import MeasuredRun, measured_of
from scepsy_hpc.serving.run_folder import write_json
from scepsy_hpc.serving.span_log import SpanLog
from scepsy_hpc.serving.start import Run
from scepsy_hpc.serving.status import LiveStatus
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy

# Under Poisson arrivals nothing else limits how many agents' processes there are.
MAX_AGENTS = 1024
_LOOK_S = 0.3
_T = TypeVar("_T")


class Lead:
    """One start of a run as rank 0 leads it; ``status`` says how far it is."""

    def __init__(
        self,
        run: Run,
        placed: Sequence[PlacedInstance],
        interrupted: asyncio.Event,
        address: str = LOOPBACK,
    ) -> None:
        """``address`` is where the dispatcher listens. Nothing starts before ``run``."""
        self._run, self._interrupted, self._address = run, interrupted, address
        self._engines = EngineView(run.attempt, placed, run.settings.node_lost_s, run.rank)
        key = run.folder.key.read_text().strip()
        self._dispatcher = dispatcher_of(run.plan, key, run.settings.ready_timeout_s)
        self._proxy = RecordingProxy(
            self._dispatcher,
            self._record,
            api_key=key,
            workflow_of=self._dispatcher.workflow_of.get,
        )
        self._spans = SpanLog(run.folder.spans)
        self._writer: LedgerWriter | None = None
        self._trouble = ""
        routes = self._dispatcher.routes
        self.status = LiveStatus(run, self._engines, routes, interrupted)
        self.status.more_alerts = self._alerts
        self._end = job_end_of(run, os.environ)

    async def run(self) -> None:
        """Return when the batch is worked off or the run is stopped. Raises RunError."""
        async with contextlib.AsyncExitStack() as stack:
            background = [
                asyncio.create_task(self._engines.follow(self._dispatcher.routes)),
                asyncio.create_task(self.status.keep()),
                asyncio.create_task(keep_logs_bounded(self._agent_logs)),
                asyncio.create_task(self.status.say_when_interrupted()),
            ]
            stack.push_async_callback(_cancel, background)
            # What can fail at once goes before the long wait for engines.
            batch = None if self._run.settings.serve else await self._prepare_batch(stack)
            await self._wait_for_engines()
            if self._is_stopped() or (batch is None and not self._run.settings.serve):
                return
            self._spans.open()
            stack.callback(self._spans.close)
            await self._proxy.start(self._address)
            stack.push_async_callback(self._proxy.stop)
            self.status.url = self._proxy.base_url("RUN_ID")
            if batch is None:
                await self._serve()
            else:
                await self._work_off(batch)

    async def _prepare_batch(self, stack: contextlib.AsyncExitStack) -> Batch | None:
        """Tasks, ledger and agents; None where stopped before. Raises InputError and RunError."""
        folder, settings = self._run.folder, self._run.settings
        tasks = load_tasks(folder.tasks, tuple(w.name for w in self._run.plan.workflows))
        attempt, retry_round = self._run.attempt.root.name, settings.retry_round
        opened = await self._unless_stopped(
            open_writer(folder.results, attempt, retry_round, self._say_trouble)
        )
        if opened is None:
            return None
        self._writer = writer = await stack.enter_async_context(opened)
        agents = AgentRuns(self._run, self._dispatcher, self._proxy, self._record)
        await agents.start(min(settings.max_runs_in_flight or MAX_AGENTS, len(tasks)), stack)
        batch = Batch(tasks, writer, agents.run, settings, self._interrupted)
        batch.has_time = lambda: self._end.has_room(batch.lengths_s())
        self.status.batch = batch
        return batch

    async def _wait_for_engines(self) -> None:
        """Until every LLM is served, or no time is left. Raises RunError when one never will be."""
        llms = tuple(self._run.plan.llms)
        while not self._is_stopped() and not self._end.is_over():
            if self._engines.is_hosted(llms):
                return
            if reason := self._engines.dead(llms):
                raise RunError(f"{reason}\nNo task was run")
            await asyncio.sleep(_LOOK_S)

    async def _unless_stopped(self, opening: Coroutine[Any, Any, _T]) -> _T | None:
        """What comes of it; None where the run is stopped before."""
        job = asyncio.create_task(opening)
        while not job.done():
            if self._is_stopped():
                await _cancel([job])
                return None
            await asyncio.wait([job], timeout=_LOOK_S)
        return job.result()

    def _is_stopped(self) -> bool:
        return self._interrupted.is_set() or self._run.attempt.is_stopped()

    async def _serve(self) -> None:
        self.status.write("serving")
        while not self._is_stopped():
            await asyncio.sleep(_LOOK_S)

    async def _work_off(self, batch: Batch) -> None:
        """Until nothing is left, someone stops the run, or an LLM is gone (RunError)."""
        self.status.write("running")
        working, reason = asyncio.create_task(batch.run()), None
        while not working.done():
            reason = self._engines.dead(tuple(self._run.plan.llms))
            if reason or self._is_stopped() or self._end.is_over():
                batch.is_out_of_time = batch.is_out_of_time or self._end.is_over()
                working.cancel()  # Once: what is unrecorded runs again with --resume.
                await asyncio.wait([working])
                break
            await asyncio.wait([working], timeout=_LOOK_S)
        cut_short = self._is_stopped() or (batch.is_out_of_time and batch.num_left)
        self.status.state = self.status.last_state() if cut_short else "ending"
        if batch.num_ok + batch.num_failed:  # else those of the last start stay
            self._write_measured()
        if reason:
            raise RunError(reason)
        if not working.cancelled():
            working.result()

    def _record(self, span: Span) -> None:
        self._dispatcher.saw(span)
        self._spans.write(span)

    def _agent_logs(self) -> list[Path]:
        return list(self._run.folder.logs.glob("agent-*.log"))

    def _write_measured(self) -> None:
        """Figures of this start's runs, by workflow; a run without them has not failed."""
        spans, names = self._spans.since_open(), [w.name for w in self._run.plan.workflows]
        if not spans:
            return
        with contextlib.suppress(OSError, InputError):
            figures = {name: found for name in names if (found := measured_of(spans, name))}
            measured = MeasuredRun(since_s=self.status.started_s, workflows=figures)
            write_json(self._run.folder.measured, measured)

    def _say_trouble(self, text: str) -> None:
        self._trouble = text

    def _alerts(self) -> tuple[str, ...]:
        """What a person should know of the batch, beside its engines."""
        batch, found = self.status.batch, [self._trouble] if self._trouble else []
        if self._writer is not None:
            found += self._writer.alerts()
        if batch is not None:
            found += batch.alerts()
            if batch.is_out_of_time and batch.num_left:
                found.append(
                    f"the time limit is near: no new tasks begin, {batch.num_left} are left for "
                    "the next start (--resume)"
                )
        return (*found, *self._spans.alerts())


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
