"""One run on the stage: the commands a user would give, and a view of what plays there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import traces
from batch_case import Case
from checker import check, ended_tasks

REPOSITORY = Path(__file__).resolve().parents[2]
SCEPSY = (sys.executable, "-m", "scepsy_hpc")
HOST_WORDS = "scepsy_hpc.cluster.jobs.entry"
POLL_S = 0.2
RESUME_PAUSE_S = 5.0
DONE_CODES = (0, 1)  # 1: some odd tasks are recorded as failed; the checker knows which may be


class Hung(Exception):
    """Something did not come to its end within the bound."""


@dataclass
class Stage:
    """One case with its commands; ``log`` says what was done to it and what it answered."""

    case: Case
    rng: Random
    words: tuple[str, ...] = ("--cluster", "local")
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    commands: list[subprocess.Popen[Any]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    started_s: float = float("-inf")
    on_host: tuple[str, ...] = ()
    bound_s: float = 120.0  # after a fault the batch runs again within so long

    # What a user does

    def say(self, what: str) -> None:
        """Note what happens, with the second."""
        self.log.append(f"{time.monotonic() - self.began_s:7.1f} {what}")

    def line(self) -> list[str]:
        """The command; with --resume where something stands in the folder already."""
        out = self.case.out
        resume = ["--resume"] if (out / "results.jsonl").exists() or list(out.glob("*.d")) else []
        given = ["run", str(self.case.plan), str(self.case.tasks), "-o", str(out)]
        return [*SCEPSY, *given, *self.words, *resume]

    def start(self) -> subprocess.Popen[Any]:
        """Give the command, on the host that ``on_host`` stands for."""
        line = [*self.on_host, *self.line()]
        number = len(self.commands)
        with (self.case.folder / f"command-{number}.log").open("wb") as log:
            command = self.popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.commands.append(command)
        self.started_s = time.monotonic()
        self.say(f"command {number}: {'resume' if '--resume' in line else 'run'}")
        return command

    def popen(self, line: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program as the user of this run."""
        base = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OPENAI"))}
        env = base | {"PYTHONPATH": str(REPOSITORY)} | self.own_environment()
        return subprocess.Popen(line, env=env, start_new_session=True, **options)

    def own_environment(self) -> dict[str, str]:
        """What marks everything that this run starts."""
        folder = self.case.folder
        return {traces.MARK: self.mark, "TMPDIR": str(folder / "tmp")} | self.environment

    def running(self) -> list[subprocess.Popen[Any]]:
        """Commands that have not ended; the codes of those that have are noted."""
        for number in range(len(self.codes), len(self.commands)):
            code = self.commands[number].poll()
            if code is None:
                break
            self.codes.append(code)
            self.say(f"command {number} ended with {code}: {self._last_words(number)}")
        return [one for one in self.commands if one.poll() is None]

    def _last_words(self, number: int) -> str:
        text = (self.case.folder / f"command-{number}.log").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-300:]

    def keep_going(self) -> None:
        """Resume where the last command has ended and tasks are left, as a user would."""
        soon = time.monotonic() - self.started_s < RESUME_PAUSE_S
        if not self.running() and not soon and not self.is_complete():
            self.start()

    # What it looks at

    def is_complete(self) -> bool:
        """Whether the last command says so and nothing is missing."""
        if not self.commands or self.commands[-1].poll() not in DONE_CODES:
            return False
        return check(self.case.tasks, self.case.out / "results.jsonl", self.case.witness).lost == 0

    def until(self, holds: Callable[[], bool], what: str, bound_s: float) -> None:
        """Wait, and keep the batch going meanwhile. Raises Hung."""
        until_s = time.monotonic() + bound_s
        while not holds():
            if time.monotonic() > until_s:
                raise Hung(f"waited {bound_s:g} s for {what}")
            self.keep_going()
            time.sleep(POLL_S)

    def num_ended(self) -> int:
        """Tasks that an agent ran to its end, recorded or not."""
        return len(ended_tasks(self.case.witness))

    def status(self) -> dict[str, Any]:
        """status.json as it is now; empty while there is none."""
        try:
            found = json.loads((self.case.out / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_running(self) -> bool:
        """Whether the batch is being worked off now."""
        return self.status().get("state") == "running" and self.lead() is not None

    def lead(self) -> psutil.Process | None:
        """The process that leads the batch: of the newest start, the rank that the status names."""
        rank = str(self.status().get("lead") or 0)
        hosts = [p for p in traces.marked(self.mark) if _is_host(traces.words_of(p))]
        leads = [p for p in hosts if traces.variable_of(p, "SLURM_PROCID", rank) == rank]
        return max(leads, key=_created_s, default=None)

    def nursery(self) -> psutil.Process | None:
        """The process that forks agents; the lead starts another one only when it needs one."""
        lead = self.lead()
        found = [p for p in self._agents() if lead and traces.parent_of(p) == lead]
        return max(found, key=_created_s, default=None)

    def workers(self) -> list[psutil.Process]:
        """Agents at work or waiting for a task, also those whose nursery is gone."""
        nursery = self.nursery()
        return [p for p in self._agents() if p != nursery]

    def _agents(self) -> list[psutil.Process]:
        return [p for p in traces.marked(self.mark) if "agents.worker" in traces.words_of(p)]

    def engines(self) -> list[psutil.Process]:
        """Leaders of the process groups of engines that are ready, by the nodes' own reports."""
        attempt = str(self.status().get("attempt", ""))
        found = []
        for path in (self.case.out / "private" / "attempts" / attempt / "engines").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                report = json.loads(path.read_text())
                if report.get("state") == "ready":
                    found.append(psutil.Process(report["pid"]))
        return sorted(found, key=lambda process: process.pid)

    def stop_all(self) -> None:
        """End every command and what it started, whatever its state."""
        for command in self.commands:
            if command.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGKILL)
        traces.end_all(self.mark)
        for command in self.commands:
            command.wait()


def _is_host(words: str) -> bool:
    """Not srun, whose command line ends with the host's."""
    return HOST_WORDS in words and "python" in words.partition(" ")[0]


def _created_s(process: psutil.Process) -> float:
    try:
        return process.create_time()
    except psutil.Error:
        return 0.0
