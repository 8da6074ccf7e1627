"""Part 4: an engine is killed under MPS while its neighbour serves: who lives, what is free again.

Two engines at half a GPU each, both under load. SIGKILL goes to all processes of one (`group`), or
to the process that holds the GPU alone (`core`). About 3 minutes for both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gpu_bench
import psutil
from gpu_bench import Bench, engines_on_one_gpu, gpu_memory

from scepsy_hpc.cluster.mps import Sharing
from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.errors import RunError
from scepsy_hpc.profiling.loads import client_of
from scepsy_hpc.profiling.spec import Loads, SweepTask
from scepsy_hpc.profiling.sweep import running

SHAPE = (512, 64)


@dataclass(slots=True)
class Tally:
    """Calls that were answered and calls that failed, with the first failure."""

    ok: int = 0
    failed: int = 0
    first_error: str | None = None


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Each way of killing in turn, on fresh engines."""
    found = {}
    for kind in options.kinds:
        if kind == "core" and bench.dry_run:
            continue  # a simulated engine is one process
        found[kind] = await kill_one(bench, kind, options)
        bench.save("faults.json", found)
        bench.say(f"{kind}: {found[kind]['verdict']}")


async def kill_one(bench: Bench, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Two engines under load; one is killed, then started again. What was seen at each step."""
    spec = bench.model_spec(options.model, enforce_eager=True)
    task = bench.task(spec, [SHAPE], Loads(concurrency=(8,)), 50)
    async with engines_on_one_gpu(bench, [task, task]) as (engines, sharing):
        victim, neighbour = engines
        seen: dict[str, Any] = {"before": state(bench, sharing, neighbour)}
        async with tallied(neighbour, options.concurrency) as calls:
            async with tallied(victim, options.concurrency):
                await asyncio.sleep(options.seconds)
                kill(victim, kind)
                killed_s = time.monotonic()
            seen["calls_before"] = (calls.ok, calls.failed)
            calls.ok = calls.failed = 0
            await asyncio.sleep(options.seconds)
            seen["calls_after"] = (calls.ok, calls.failed)
            seen["neighbour_error"] = calls.first_error
        await victim.stop()
        seen["victim_gone_s"] = time.monotonic() - killed_s
        seen["after"] = state(bench, sharing, neighbour)
        seen["restart"] = await restart(bench, task, sharing)
        seen["end"] = state(bench, sharing, neighbour)
    seen["verdict"] = verdict(seen)
    return seen


def kill(engine: EngineProcess, kind: str) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    if kind == "group":
        os.killpg(engine.pid, signal.SIGKILL)
        return
    for process in psutil.Process(engine.pid).children(recursive=True):
        if "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()):
            process.kill()
            return
    raise RunError(f"{engine.config.instance_id}: no process called EngineCore to kill")


@contextlib.asynccontextmanager
async def tallied(engine: EngineProcess, concurrency: int) -> AsyncIterator[Tally]:
    """Calls in flight meanwhile, counted; a call that fails is counted, not raised."""
    tally = Tally()
    async with client_of(engine, [gpu_bench.Lengths(*SHAPE)], 0) as client:

        async def work() -> None:
            while True:
                try:
                    await client.call()
                    tally.ok += 1
                except RunError as error:
                    tally.failed += 1
                    tally.first_error = tally.first_error or str(error)
                    await asyncio.sleep(0.2)

        workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
        try:
            yield tally
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def state(bench: Bench, sharing: Sharing | None, neighbour: EngineProcess) -> dict[str, Any]:
    """What can be seen from outside."""
    found: dict[str, Any] = {
        "neighbour_alive": neighbour.is_alive(),
        "neighbour_time_sliced": sharing.time_sliced(neighbour.pid) if sharing else None,
        "memory": gpu_memory(bench),
    }
    daemon = sharing.daemon if sharing else None
    if daemon is not None:
        try:
            found["mps_servers"] = daemon.ask("get_server_list").split()
            found["mps_clients"] = sorted(daemon.clients())
        except RunError as error:
            found["mps_error"] = str(error)
    return found


async def restart(bench: Bench, task: SweepTask, sharing: Sharing | None) -> dict[str, Any]:
    """Start an engine in the victim's place; whether it serves, and after how long."""
    since_s = time.monotonic()
    hardware = bench.hardware(task)
    try:
        async with running(bench.job(task), hardware, "again", sharing) as engine:
            ready_s = time.monotonic() - since_s
            sliced = sharing.time_sliced(engine.pid) if sharing else None
            return {"works": True, "ready_s": ready_s, "time_sliced": sliced}
    except RunError as error:
        return {"works": False, "error": str(error)}


def verdict(seen: dict[str, Any]) -> str:
    """One line for a person."""
    answered, failed = seen["calls_after"]
    lives = seen["after"]["neighbour_alive"] and answered > 0
    neighbour = f"the neighbour {'lives' if lives else 'died'} ({answered} calls, {failed} failed)"
    again = "restart works" if seen["restart"]["works"] else "restart fails"
    before, after = seen["before"]["memory"], seen["after"]["memory"]
    freed = f", {before['used'] - after['used']:.1f} GiB free again" if before and after else ""
    return f"{neighbour}; {again}{freed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to kill, and how long to look."""
    parser.add_argument("--kinds", nargs="+", choices=("group", "core"), default=["group", "core"])
    parser.add_argument("--model", default=gpu_bench.SMALL)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="under load, before and after")


if __name__ == "__main__":
    sys.exit(gpu_bench.run("faults", __doc__, measure, add_arguments))
