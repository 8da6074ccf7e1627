"""What rank 0 does beside hosting: waits for engines, dispatches, works the batch off or serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from scepsy_hpc.errors import RunError
from scepsy_hpc.files import json_line
from scepsy_hpc.formats.spans import Span, load_spans
from scepsy_hpc.formats.tasks import load_tasks
from scepsy_hpc.serving.addresses import LOOPBACK
from scepsy_hpc.serving.agent_runs import AgentRuns
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.batch import Batch
from scepsy_hpc.serving.dispatcher import dispatcher_of
from scepsy_hpc.serving.engine_view import EngineView
from scepsy_hpc.serving.ledger import Ledger, cut_torn_line
from scepsy_hpc.serving.measured import MeasuredRun, measured_of
from scepsy_hpc.serving.run_folder import write_json
from scepsy_hpc.serving.start import Run
from scepsy_hpc.serving.status import LiveStatus
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy

# Under Poisson arrivals nothing else limits how many agents' processes there are.
MAX_AGENTS = 1024
_LOOK_S = 0.3


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
        self._spans: TextIO | None = None
        routes = self._dispatcher.routes
        self.status = LiveStatus(run, self._engines, routes, interrupted)

    async def run(self) -> None:
        """Return when the batch is worked off or the run is stopped. Raises RunError."""
        async with contextlib.AsyncExitStack() as stack:
            background = [
                asyncio.create_task(self._engines.follow(self._dispatcher.routes)),
                asyncio.create_task(self.status.keep()),
                asyncio.create_task(self.status.say_when_interrupted()),
            ]
            stack.push_async_callback(_cancel, background)
            # What can fail at once goes before the long wait for engines.
            batch = None if self._run.settings.serve else await self._prepare_batch(stack)
            await self._wait_for_engines()
            if self._is_stopped():
                return
            self._spans = stack.enter_context(_open_spans(self._run.folder.spans))
            await self._proxy.start(self._address)
            stack.push_async_callback(self._proxy.stop)
            self.status.url = self._proxy.base_url("RUN_ID")
            if batch is None:
                await self._serve()
            else:
                await self._work_off(batch)

    async def _prepare_batch(self, stack: contextlib.AsyncExitStack) -> Batch:
        """Tasks, ledger and agents. Raises InputError and RunError."""
        folder, settings = self._run.folder, self._run.settings
        tasks = load_tasks(folder.tasks, tuple(w.name for w in self._run.plan.workflows))
        ledger = stack.enter_context(contextlib.closing(Ledger(folder.results)))
        agents = AgentRuns(
            self._run, self._dispatcher, self._proxy, self._record, self._interrupted
        )
        await agents.start(min(settings.max_runs_in_flight or MAX_AGENTS, len(tasks)), stack)
        batch = Batch(tasks, ledger, agents.run, settings)
        self.status.batch = batch
        return batch

    async def _wait_for_engines(self) -> None:
        """Until every LLM is served. Raises RunError when one never will be."""
        llms = tuple(self._run.plan.llms)
        while not self._is_stopped():
            if self._engines.is_hosted(llms):
                return
            if reason := self._engines.dead(llms):
                raise RunError(f"{reason}\nNo task was run")
            await asyncio.sleep(_LOOK_S)

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
            if reason or self._is_stopped():
                working.cancel()  # Once: what is unrecorded runs again with --resume.
                await asyncio.wait([working])
                break
            await asyncio.wait([working], timeout=_LOOK_S)
        self.status.state = self.status.last_state() if self._is_stopped() else "ending"
        if batch.num_ok + batch.num_failed:  # else those of the last start stay
            self._write_measured()
        if reason:
            raise RunError(reason)
        if not working.cancelled():
            working.result()

    def _record(self, span: Span) -> None:
        self._dispatcher.saw(span)
        if self._spans is not None and not self._spans.closed:
            self._spans.write(json_line(span))
            self._spans.flush()

    def _write_measured(self) -> None:
        """Figures of this start's runs, by workflow."""
        if not self._run.folder.spans.stat().st_size:
            return
        since_s = self.status.started_s
        spans = [s for s in load_spans(self._run.folder.spans) if s.start_s >= since_s - 1.0]
        names = [workflow.name for workflow in self._run.plan.workflows]
        figures = {name: found for name in names if (found := measured_of(spans, name))}
        write_json(self._run.folder.measured, MeasuredRun(since_s=since_s, workflows=figures))


def _open_spans(path: Path) -> TextIO:
    if path.exists():
        cut_torn_line(path)
    return path.open("a", encoding="utf-8")


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
