"""One process a node: hosts the node's engines; one of them also places, dispatches and leads.

The nodes meet in the attempt folder on the shared file system; nothing else is assumed of the
cluster (no MPI, no ssh, no Slurm command on the compute node).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.cluster.jobs.tasks import rank
from scepsy_hpc.cluster.leftovers import HOST_MARK, end_processes, marked
from scepsy_hpc.formats.plan import load_plan
from scepsy_hpc.serving.beats import beat
from scepsy_hpc.serving.member import Member
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.settings import load_settings
from scepsy_hpc.serving.start import Run, Start

KILLED = 128 + signal.SIGTERM
MANY_FILES = 65_536


@dataclass(slots=True)
class Interruption:
    """Which signal, if any, asked this process to end; sets both events."""

    stopping: asyncio.Event
    happened: asyncio.Event
    number: int | None = None

    def __call__(self, number: int) -> None:
        """Note the first signal."""
        self.number = self.number or number
        self.happened.set()
        self.stopping.set()


def host(start: Start) -> None:
    """Host this node until the batch ends or someone stops the run; what submitit executes.

    Raises RunError. A job that Slurm terminates leaves no result: whether it is over or starts
    again is for the queue to say.
    """
    rank_here, num_ranks = (0, 1) if start.pretended else rank()
    folder = RunFolder(Path(start.root))
    # A requeued job is a new attempt: it must not meet the endpoints of the one that was killed.
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    attempt = folder.attempt(f"{start.attempt}-{restarts}")
    plan, settings = load_plan(folder.plan), load_settings(folder.settings)
    name = socket.gethostname()
    run = Run(folder, attempt, plan, settings, name, rank_here, num_ranks, start.pretended)
    _allow_many_files()
    # What this process starts inherits it: by it is found what outlives engines and agents.
    mark = os.environ[HOST_MARK] = uuid.uuid4().hex
    try:
        asyncio.run(_host(run, mark))
    finally:
        del os.environ[HOST_MARK]


async def _host(run: Run, mark: str) -> None:
    interruption = Interruption(asyncio.Event(), asyncio.Event())
    _on_signals(interruption)
    beating = asyncio.create_task(beat(run.attempt, run.rank))
    try:
        await Member(run, interruption.stopping, interruption.happened).take_part()
    finally:
        beating.cancel()
        left = await end_processes(lambda: marked(HOST_MARK, mark))
        if left:
            print(f"processes {sorted(p.pid for p in left)} survive SIGKILL", file=sys.stderr)
    if interruption.number == signal.SIGTERM and not run.pretended:
        sys.exit(KILLED)


def _allow_many_files() -> None:
    """Each run in flight takes a few descriptors; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MANY_FILES:
        wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _on_signals(act: Callable[[int], object]) -> None:
    """End in order on what Slurm sends before SIGKILL; in a thread (debug) signals stay as is."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, act, number)
