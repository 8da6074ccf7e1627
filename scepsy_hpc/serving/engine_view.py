"""What rank 0 knows of the engines of all nodes: their own reports, and which nodes went silent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.beats import Pulse
from scepsy_hpc.serving.routing import Routes
from scepsy_hpc.serving.run_folder import AttemptFolder, read_json

LOOK_S = 0.5
GONE = ("failed", "lost")


class EngineView:
    """Reports of all instances, looked at twice a second while ``follow`` runs."""

    def __init__(
        self, attempt: AttemptFolder, placed: Sequence[PlacedInstance], node_lost_s: float
    ) -> None:
        """Ranks other than this one (0) are lost when silent for ``node_lost_s``."""
        self._attempt = attempt
        self._placed = {p.instance.id: p for p in placed}
        ranks = {p.rank for p in placed} - {0}
        # Nodes that this machine only pretends to be have no process whose life could be missed.
        real = [rank for rank in ranks if attempt.node(rank).exists()]
        self._pulses = {rank: Pulse(attempt, rank, node_lost_s) for rank in real}
        self.reports: dict[str, dict[str, Any]] = {}
        self.look()

    def look(self) -> None:
        """Read every report once."""
        lost = {rank for rank, pulse in self._pulses.items() if pulse.is_lost()}
        for name, placed in self._placed.items():
            # A report that cannot be read just now is the same as before.
            report = read_json(self._attempt.engine(name)) or self.reports.get(name)
            report = report or {"state": "waiting", "llm": placed.instance.llm, "starts": 0}
            gone = placed.rank in lost and report["state"] != "failed"
            self.reports[name] = report | {"state": "lost"} if gone else report

    async def follow(self, routes: Routes) -> None:
        """Keep the reports and ``routes`` fresh, until cancelled."""
        while True:
            self.look()
            routes.update(self.endpoints())
            await asyncio.sleep(LOOK_S)

    def endpoints(self) -> dict[str, tuple[str, str]]:
        """Deployment and base URL of every instance that is ready."""
        return {
            name: (report["llm"], report["base_url"])
            for name, report in self.reports.items()
            if report["state"] == "ready"
        }

    def is_hosted(self, llms: Sequence[str]) -> bool:
        """Every LLM has a ready instance, and no instance is still in its first start.

        Instances that failed once may join later; nobody waits for them.
        """
        ready = {report["llm"] for report in self.reports.values() if report["state"] == "ready"}
        tried = all(
            report["state"] in ("ready", "restarting", *GONE) or report["starts"] > 1
            for report in self.reports.values()
        )
        return tried and ready >= set(llms)

    def dead(self, llms: Sequence[str]) -> str | None:
        """Why an LLM will never answer again: all its instances are given up or lost; or None."""
        for llm in llms:
            mine = {n: r for n, r in self.reports.items() if r["llm"] == llm}
            if all(report["state"] in GONE for report in mine.values()):
                return f"{llm}: {_count(len(mine))}, {self._reason(mine)}"
        return None

    def _reason(self, reports: dict[str, dict[str, Any]]) -> str:
        for name, report in reports.items():
            if report.get("error"):
                return f"first error: {report['error']}"
            if report["state"] == "lost":
                return f"{name}: its node {self._placed[name].host} shows no sign of life"
        return "no reason is known"

    def alerts(self) -> list[str]:
        """What a person should know at the end: instances gone or time-sliced, one line each."""
        gone = [
            f"{name} on {self._placed[name].host}: {report['state']} after {report['starts']} "
            f"starts{_first_line(report.get('error'))}"
            for name, report in self.reports.items()
            if report["state"] in GONE
        ]
        sliced = [
            f"{name} on {self._placed[name].host}: time-sliced, not held to its "
            f"{self._placed[name].instance.gpu_share_pct}% of the GPU: {report['time_sliced']}"
            for name, report in self.reports.items()
            if report.get("time_sliced")
        ]
        return gone + sliced

    def states(self) -> list[dict[str, Any]]:
        """Each instance as `status.json` shows it."""
        return [
            {
                "id": name,
                "llm": placed.instance.llm,
                "host": placed.host,
                "gpus": list(placed.gpus),
                "state": self.reports[name]["state"],
                "starts": self.reports[name]["starts"],
                "error": _first_line(self.reports[name].get("error"), ""),
                "time_sliced": self.reports[name].get("time_sliced"),
            }
            for name, placed in self._placed.items()
        ]


def _count(number: int) -> str:
    return "its only instance is gone" if number == 1 else f"all its {number} instances are gone"


def _first_line(text: str | None, before: str = ": ") -> str:
    return before + text.splitlines()[0] if text else ""
