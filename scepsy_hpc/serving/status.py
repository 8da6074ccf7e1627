"""What ``status.json`` says of a run that is led from here, and when it is written."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.status import RunState, RunStatus
from scepsy_hpc.serving.batch import Batch
from scepsy_hpc.serving.engine_view import EngineView
from scepsy_hpc.serving.routing import Routes
from scepsy_hpc.serving.run_folder import write_json
from scepsy_hpc.serving.start import Run
from scepsy_hpc.serving.terms import is_over

WRITE_S = 1.0


@dataclass(slots=True)
class LiveStatus:
    """The status of one start; ``url`` and ``batch`` are set when they are there.

    Nothing is written before ``write`` or ``keep``.
    """

    run: Run
    engines: EngineView
    routes: Routes
    interrupted: asyncio.Event
    started_s: float = field(default_factory=time.time)
    state: RunState = "starting"
    url: str | None = None
    batch: Batch | None = None
    more_alerts: Callable[[], tuple[str, ...]] = tuple

    def now(self) -> RunStatus:
        """How far the run is."""
        return RunStatus(
            state=self.state,
            attempt=self.run.attempt.root.name,
            started_s=self.started_s,
            url=self.url,
            tasks=self.batch.counts() if self.batch else None,
            instances=self.engines.states(self.routes),
            alerts=(*self._takeover(), *self.engines.alerts(), *self.more_alerts()),
            lead=self.run.rank,
            last_lead=self.run.last_lead,
        )

    def _takeover(self) -> tuple[str, ...]:
        return (self.run.last_lead.how,) if self.run.last_lead else ()

    def write(self, state: RunState) -> None:
        """Look at the engines once more and rewrite the file.

        Once another rank leads, the file is that one's. A disk that is full now is tried again;
        the ledger is what must not fail.
        """
        self.state = state
        if is_over(self.run.attempt, self.run.term):
            return
        with contextlib.suppress(OSError, InputError):
            self.engines.look()
            write_json(self.run.folder.status, self.now().plain())

    def last_state(self) -> RunState:
        """How it ended: `ended`, or what cut it short: `stopped` by the user, `interrupted`."""
        if self.batch is not None and self.batch.num_left == 0:
            return "ended"
        if self.run.attempt.asked.exists():
            return "stopped"
        if self.batch is not None and self.batch.is_out_of_time:
            return "interrupted"
        return "interrupted" if self.interrupted.is_set() else "ended"

    async def keep(self) -> None:
        """Rewrite the file about every second, until cancelled."""
        while True:
            self.write(self.state)
            await asyncio.sleep(WRITE_S)

    async def say_when_interrupted(self) -> None:
        """At once: whoever sent the signal may send SIGKILL within a second."""
        await self.interrupted.wait()
        self.write(self.last_state())
