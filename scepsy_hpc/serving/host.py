"""One process a node: hosts the node's engines; rank 0 also places, dispatches and leads the batch.

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
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scepsy_hpc.cluster.jobs.tasks import rank
from scepsy_hpc.errors import RunError, ScepsyError
from scepsy_hpc.formats.plan import load_plan
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.serving.addresses import LOOPBACK, node_address, own_address
from scepsy_hpc.serving.allocation import (
    GrantedNode,
    PlacedInstance,
    local_nodes,
    place_on,
    this_node,
)
from scepsy_hpc.serving.beats import Pulse, beat
from scepsy_hpc.serving.chain import cancel, followers, is_over_for_good, keep_chain
from scepsy_hpc.serving.lead import Lead
from scepsy_hpc.serving.ledger import Superseded
from scepsy_hpc.serving.made_by import check_made_by
from scepsy_hpc.serving.node_agent import NodeAgent
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder, read_json, write_json
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
    asyncio.run(_host(run))
    if rank_here == 0 and is_over_for_good(folder):
        cancel(followers(folder, start.number))


async def _host(run: Run) -> None:
    interruption = Interruption(asyncio.Event(), asyncio.Event())
    _on_signals(interruption)
    beating = asyncio.create_task(beat(run.attempt, run.rank))
    try:
        if run.rank == 0:
            await _lead(run, interruption)
        else:
            await _follow(run, interruption.stopping)
    finally:
        beating.cancel()
    if interruption.number == signal.SIGTERM and not run.pretended:
        sys.exit(KILLED)


async def _lead(run: Run, interruption: Interruption) -> None:
    """What rank 0 does: place, dispatch, lead the batch, and host its own instances."""
    attempt = run.attempt
    lead = None
    try:
        nodes = await _nodes(run)
        placed = place_on(run.plan, nodes)
        address = node_address([node.host for node in nodes], run.host)
        write_json(attempt.placement, placed)
        own = placed if run.pretended else tuple(p for p in placed if p.rank == 0)
        # Clients of a hosted plan sit on other machines; agents sit here.
        reachable = run.settings.serve and not run.pretended
        listen = own_address() if reachable else LOOPBACK
        lead = Lead(run, placed, interruption.happened, listen)
        agent = NodeAgent(run, own, address)
        await _both(agent.run(interruption.stopping), lead.run(), interruption.stopping)
    except Superseded:
        raise  # the folder's status is its successor's
    except Exception as error:
        last = lead.status.now() if lead else RunStatus(attempt=attempt.root.name)
        reason = str(error) if isinstance(error, ScepsyError) else repr(error)
        write_json(run.folder.status, replace(last, state="failed", error=reason).plain())
        raise
    finally:
        write_json(attempt.stop, {"since_s": time.time()})
    lead.status.write(lead.status.last_state())


async def _nodes(run: Run) -> tuple[GrantedNode, ...]:
    if run.pretended:
        return local_nodes(run.plan, run.host)
    own = this_node(0, run.host)
    write_json(run.attempt.node(0), own)
    return await _gather(run.attempt, run.num_ranks, run.settings.nodes_timeout_s)


async def _both(
    hosting: Coroutine[Any, Any, None], leading: Coroutine[Any, Any, None], stopping: asyncio.Event
) -> None:
    """Run both; when one ends or fails, stop the other, wait for it, and raise the first error."""
    tasks = {asyncio.create_task(hosting), asyncio.create_task(leading)}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stopping.set()
    if pending:
        _, late = await asyncio.wait(pending, timeout=60)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    for task in (*done, *pending):
        if not task.cancelled():
            task.result()


async def _follow(run: Run, stopping: asyncio.Event) -> None:
    """What every rank but the first does: wait for the placement, host, end with the lead."""
    attempt, rank = run.attempt, run.rank
    write_json(attempt.node(rank), this_node(rank, run.host))
    until_s = time.monotonic() + run.settings.nodes_timeout_s
    while (placed := read_json(attempt.placement, tuple[PlacedInstance, ...])) is None:
        if time.monotonic() > until_s or attempt.is_stopped() or stopping.is_set():
            return
        await asyncio.sleep(0.3)
    own = tuple(p for p in placed if p.rank == rank)
    address = node_address([p.host for p in placed], run.host)
    agent = NodeAgent(run, own, address)
    watching = asyncio.create_task(_until_stopped(run, stopping))
    try:
        await agent.run(stopping)
    finally:
        watching.cancel()


async def _until_stopped(run: Run, stopping: asyncio.Event) -> None:
    """Set ``stopping`` when the lead has ended or been silent for long.

    A user's wish to stop is the lead's to obey: the batch ends before the engines do.
    """
    lead = Pulse(run.attempt, 0, run.settings.node_lost_s)
    while not run.attempt.stop.exists() and not lead.is_lost():
        await asyncio.sleep(0.5)
    stopping.set()


async def _gather(
    attempt: AttemptFolder, num_ranks: int, timeout_s: float
) -> tuple[GrantedNode, ...]:
    until_s = time.monotonic() + timeout_s
    while True:
        reports = [read_json(attempt.node(rank), GrantedNode) for rank in range(num_ranks)]
        if all(reports):
            break
        if time.monotonic() > until_s:
            missing = [rank for rank, report in enumerate(reports) if not report]
            raise RunError(
                f"ranks {missing} of {num_ranks} did not report within {timeout_s:g} s; is "
                f"{attempt.root} on a file system that every node shares? Nothing was run"
            )
        await asyncio.sleep(0.3)
    return tuple(report for report in reports if report)


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
