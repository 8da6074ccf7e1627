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
from scepsy_hpc.serving.chain import cancel, followers, is_over_for_good, keep_chain
from scepsy_hpc.serving.made_by import check_made_by
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
    folder.require_own()
    # The package may have been upgraded while the job waited, or between two of its starts.
    check_made_by(folder)
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempt = folder.attempt(start.attempt_name(restarts))
    plan, settings = load_plan(folder.plan), load_settings(folder.settings)
    if start.number and (attempt.asked.exists() or is_over_for_good(folder)):
        return  # nothing is left for a job that was queued in case something would be
    name = socket.gethostname()
    ranks = (rank_here, num_ranks, start.pretended)
    run = Run(folder, attempt, plan, settings, name, *ranks, start.site)
    _allow_many_files()
    if rank_here == 0 and not settings.serve and not start.pretended:
        note = keep_chain(folder, host, start.number)
        if note is not None:
            print(f"scepsy: {note}", file=sys.stderr, flush=True)
    # What this process starts inherits it: by it is found what outlives engines and agents.
    mark = os.environ[HOST_MARK] = uuid.uuid4().hex
    try:
        asyncio.run(_host(run, mark))
    finally:
        del os.environ[HOST_MARK]
    if is_over_for_good(folder):
        cancel(followers(folder, start.number))


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
