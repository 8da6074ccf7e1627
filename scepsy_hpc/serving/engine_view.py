"""What the lead knows of the engines of all nodes: their own reports, and which went silent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import extended, record
from scepsy_hpc.formats.status import EngineStatus, InstanceStatus
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.beats import Pulse
from scepsy_hpc.serving.routing import Routes
from scepsy_hpc.serving.run_folder import AttemptFolder, read_json, write_json

TELL_S = 5.0
_LOOK_S = 0.5
GONE = ("failed", "lost")
# Nothing that was sent there will be answered.
GIVEN_UP = ("restarting", *GONE)


@record
class EngineReport(EngineStatus):
    """What its node says of one instance, in a file of the attempt; ``error`` is all of it.

    ``base_url`` and ``pid`` (process id, group and session) are there while it has a process.
    """

    base_url: str = ""
    pid: int | None = None


class EngineView:
    """Reports of all instances, looked at twice a second while ``follow`` runs."""

    def __init__(
        self,
        attempt: AttemptFolder,
        placed: Sequence[PlacedInstance],
        node_lost_s: float,
        rank: int = 0,
    ) -> None:
        """Ranks other than this one (``rank``) are lost when silent for ``node_lost_s``."""
        self._attempt = attempt
        self._placed = {p.instance.id: p for p in placed}
        self._told_s = float("-inf")
        ranks = {p.rank for p in placed} - {rank}
        # Nodes that this machine only pretends to be have no process whose life could be missed.
        real = [rank for rank in ranks if attempt.node(rank).exists()]
        self._pulses = {rank: Pulse(attempt, rank, node_lost_s) for rank in real}
        self.reports = {name: _report_of(one) for name, one in self._placed.items()}
        self.look()

    def look(self) -> None:
        """Read every report once."""
        lost = {rank for rank, pulse in self._pulses.items() if pulse.is_lost()}
        for name, placed in self._placed.items():
            # A report that cannot be read just now is the same as before.
            report = self._read(placed) or self.reports[name]
            gone = placed.rank in lost and report.state != "failed"
            self.reports[name] = replace(report, state="lost") if gone else report

    def _read(self, placed: PlacedInstance) -> EngineReport | None:
        return read_json(self._attempt.engine(placed.instance.id, placed.term), EngineReport)

    async def follow(self, routes: Routes) -> None:
        """Keep the reports and ``routes`` fresh, until cancelled.

        Calls in flight on an instance that was given up are cut, so that others take them.
        """
        while True:
            self.look()
            routes.update(self.endpoints())
            routes.cut(name for name, one in self.reports.items() if one.state in GIVEN_UP)
            # A disk that is full now is tried again.
            with contextlib.suppress(OSError, InputError):
                self._tell(routes)
            await asyncio.sleep(_LOOK_S)

    def _tell(self, routes: Routes) -> None:
        """Let every node know which of its engines sends bytes: it need not ask those."""
        found = {
            name: one.wire.last_byte_s
            for name, one in routes.instances.items()
            if one.wire.last_byte_s is not None
        }
        if found and time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            write_json(self._attempt.traffic, found)

    def endpoints(self) -> dict[str, tuple[str, str]]:
        """Deployment and base URL of every instance that is ready."""
        return {
            name: (report.llm, report.base_url)
            for name, report in self.reports.items()
            if report.state == "ready"
        }

    def is_hosted(self, llms: Sequence[str]) -> bool:
        """Every LLM has a ready instance, and no instance is still in its first start.

        Instances that failed once may join later; nobody waits for them.
        """
        ready = {report.llm for report in self.reports.values() if report.state == "ready"}
        tried = all(
            report.state in ("ready", "suspect", *GIVEN_UP) or report.starts > 1
            for report in self.reports.values()
        )
        return tried and ready >= set(llms)

    def dead(self, llms: Sequence[str]) -> str | None:
        """Why an LLM will never answer again: all its instances are given up or lost; or None."""
        for llm in llms:
            mine = {n: r for n, r in self.reports.items() if r.llm == llm}
            if all(report.state in GONE for report in mine.values()):
                return f"{llm}: {_count(len(mine))}, {self._reason(mine)}"
        return None

    def _reason(self, reports: dict[str, EngineReport]) -> str:
        for name, report in reports.items():
            if report.error:
                return f"first error: {report.error}"
            if report.state == "lost":
                return f"{name}: its node {report.host} shows no sign of life"
        return "no reason is known"

    def alerts(self) -> tuple[str, ...]:
        """What a person should know at the end: instances gone or time-sliced, one line each."""
        gone = [
            f"{name} on {report.host}: {report.state} after {report.starts} "
            f"starts{_first_line(report.error)}"
            for name, report in self.reports.items()
            if report.state in GONE
        ]
        sliced = [
            f"{name} on {report.host}: time-sliced, not held to its "
            f"{self._placed[name].instance.gpu_share_pct}% of the GPU: {report.time_sliced}"
            for name, report in self.reports.items()
            if report.time_sliced
        ]
        return (*gone, *sliced)

    def states(self, routes: Routes) -> tuple[InstanceStatus, ...]:
        """Each instance as `status.json` shows it, with the calls that ``routes`` counts."""
        return tuple(
            extended(
                InstanceStatus,
                report,
                error=_first_line(report.error, ""),
                calls_in_flight=route.in_flight if route else 0,
                num_calls=route.num_calls if route else 0,
            )
            for report in self.reports.values()
            for route in [routes.instances.get(report.id)]
        )


def _report_of(placed: PlacedInstance) -> EngineReport:
    """What is known of an instance of which no node has said anything."""
    instance = placed.instance
    return EngineReport(id=instance.id, llm=instance.llm, host=placed.host, gpus=placed.gpus)


def _count(number: int) -> str:
    return "its only instance is gone" if number == 1 else f"all its {number} instances are gone"


def _first_line(text: str, before: str = ": ") -> str:
    return before + text.splitlines()[0] if text else ""
