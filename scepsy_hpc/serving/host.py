"""One process a node: hosts the node's engines; rank 0 also places, dispatches and leads the batch.

The nodes meet in the attempt folder on the shared file system; nothing else is assumed of the
cluster (no MPI, no ssh, no Slurm command on the compute node).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.cluster import executors
from scepsy_hpc.errors import RunError
from scepsy_hpc.planning.plan import Instance, Plan, load_plan
from scepsy_hpc.serving.allocation import (
    GrantedNode,
    PlacedInstance,
    place_on,
    pretended_nodes,
    this_node,
)
from scepsy_hpc.serving.lead import Lead
from scepsy_hpc.serving.node_agent import Hosting, NodeAgent
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder, read_json, write_json
from scepsy_hpc.serving.settings import RunSettings, load_settings

LOST_LEAD_S = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of the job is given. ``pretended``: this machine acts for every node."""

    root: str
    attempt: str
    pretended: bool


@dataclass(frozen=True, slots=True)
class Seat:
    """Where this process sits: its rank, how many there are, whether nodes are pretended."""

    rank: int
    num_ranks: int
    pretended: bool


def host(start: Start) -> dict[str, Any]:
    """Host this node until the batch ends or someone stops the run; what submitit executes.

    Returns the last status. Raises RunError.
    """
    rank, num_ranks = executors.rank()
    seat = Seat(0, 1, True) if start.pretended else Seat(rank, num_ranks, False)
    folder = RunFolder(Path(start.root))
    # A requeued job is a new attempt: it must not meet the endpoints of the one that was killed.
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return asyncio.run(_host(folder, folder.attempt(f"{start.attempt}-{restarts}"), seat))


async def _host(folder: RunFolder, attempt: AttemptFolder, seat: Seat) -> dict[str, Any]:
    plan, settings = load_plan(folder.plan), load_settings(folder.settings)
    stopping, interrupted = asyncio.Event(), asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        stopping.set()

    _on_signals(interrupt)
    hostname = socket.gethostname()
    if seat.pretended:
        nodes = local_nodes(plan, hostname)
    else:
        nodes = (this_node(seat.rank, hostname),)
        write_json(attempt.node(seat.rank), _report(nodes[0]))
    if seat.rank > 0:
        await _follow(folder, attempt, plan, settings, nodes[0], stopping)
        return {"rank": seat.rank}
    if not seat.pretended:
        nodes = await _gather(attempt, seat.num_ranks, settings.nodes_timeout_s)
    placed = place_on(plan, nodes)
    bind = _bind_address([node.host for node in nodes], hostname)
    write_json(attempt.placement, [_placed_report(p) for p in placed])
    own = placed if seat.pretended else tuple(p for p in placed if p.rank == 0)
    agent = NodeAgent(_hosting(folder, attempt, plan, settings, bind), own)
    lead = Lead(folder, attempt, plan, settings, placed, interrupted)
    try:
        await _both(agent.run(stopping), lead.run(), stopping)
    finally:
        write_json(attempt.stop, {"since_s": time.time()})
        lead.write_status("ended" if not interrupted.is_set() else "interrupted")
    return lead.status()


def local_nodes(plan: Plan, hostname: str) -> tuple[GrantedNode, ...]:
    """Nodes when one machine acts for all: its real GPUs for real engines, else as planned."""
    real = any(d.engine == "vllm" and d.gpu_type != "cpu_slice" for d in plan.llms.values())
    if not real:
        return pretended_nodes(plan, hostname)
    from scepsy_hpc.cluster.discovery import discover_local

    node = discover_local().nodes[0]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    keep = None if allowed is None else set(allowed.split(","))
    domains = tuple(
        tuple(str(g) for g in domain.gpus if keep is None or str(g) in keep)
        for domain in node.domains
    )
    return (GrantedNode(0, hostname, tuple(d for d in domains if d)),)


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


async def _follow(
    folder: RunFolder,
    attempt: AttemptFolder,
    plan: Plan,
    settings: RunSettings,
    node: GrantedNode,
    stopping: asyncio.Event,
) -> None:
    """What every rank but the first does: wait for the placement, host, end with the lead."""
    until_s = time.monotonic() + settings.nodes_timeout_s
    while (placement := read_json(attempt.placement)) is None:
        if time.monotonic() > until_s or attempt.stop.exists() or stopping.is_set():
            return
        await asyncio.sleep(0.3)
    placed = tuple(_placed(entry) for entry in placement)
    own = tuple(p for p in placed if p.rank == node.rank)
    bind = _bind_address([p.host for p in placed], node.host)
    agent = NodeAgent(_hosting(folder, attempt, plan, settings, bind), own)
    watching = asyncio.create_task(_until_stopped(attempt, stopping))
    try:
        await agent.run(stopping)
    finally:
        watching.cancel()


async def _until_stopped(attempt: AttemptFolder, stopping: asyncio.Event) -> None:
    """Set ``stopping`` when the stop mark appears, or when the lead has been silent for long."""
    last, seen_s = None, time.monotonic()
    while not attempt.stop.exists():
        beat = read_json(attempt.heartbeat)
        if beat is not None and beat != last:
            last, seen_s = beat, time.monotonic()
        if time.monotonic() - seen_s > LOST_LEAD_S:
            break
        await asyncio.sleep(0.5)
    stopping.set()


async def _gather(
    attempt: AttemptFolder, num_ranks: int, timeout_s: float
) -> tuple[GrantedNode, ...]:
    until_s = time.monotonic() + timeout_s
    while True:
        reports = [read_json(attempt.node(rank)) for rank in range(num_ranks)]
        if all(reports):
            break
        if time.monotonic() > until_s:
            missing = [rank for rank, report in enumerate(reports) if not report]
            raise RunError(
                f"ranks {missing} of {num_ranks} did not report within {timeout_s:g} s; is "
                f"{attempt.root} on a file system that every node shares? Nothing was run"
            )
        await asyncio.sleep(0.3)
    return tuple(
        GrantedNode(r["rank"], r["host"], tuple(tuple(d) for d in r["domains"]))
        for r in reports
        if r
    )


def _bind_address(hosts: list[str], own: str) -> str:
    """Loopback when everything is on one machine, else this node's own address."""
    if all(name == own for name in hosts):
        return "127.0.0.1"
    try:
        return socket.gethostbyname(own)
    except OSError:
        raise RunError(f"node {own}: its own name does not resolve; other nodes need it") from None


def _hosting(
    folder: RunFolder, attempt: AttemptFolder, plan: Plan, settings: RunSettings, bind: str
) -> Hosting:
    return Hosting(
        folder=folder,
        attempt=attempt,
        deployments=plan.llms,
        host=bind,
        ready_timeout_s=settings.ready_timeout_s,
        starts_at_once=settings.starts_at_once,
    )


def _report(node: GrantedNode) -> dict[str, Any]:
    return {"rank": node.rank, "host": node.host, "domains": [list(d) for d in node.domains]}


def _placed_report(placed: PlacedInstance) -> dict[str, Any]:
    instance = placed.instance
    return {
        "id": instance.id,
        "llm": instance.llm,
        "node": instance.node,
        "planned_gpus": list(instance.gpus),
        "gpu_share_pct": instance.gpu_share_pct,
        "rank": placed.rank,
        "host": placed.host,
        "gpus": list(placed.gpus),
    }


def _placed(entry: dict[str, Any]) -> PlacedInstance:
    instance = Instance(
        id=entry["id"],
        llm=entry["llm"],
        node=entry["node"],
        gpus=tuple(entry["planned_gpus"]),
        gpu_share_pct=entry["gpu_share_pct"],
    )
    return PlacedInstance(instance, entry["rank"], entry["host"], tuple(entry["gpus"]))


def _on_signals(act: Callable[[], object]) -> None:
    """End in order on what Slurm sends before SIGKILL; in a thread (debug) signals stay as is."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, act)
