"""Part 2b: memory of engines that share a GPU: which limits let them start, which do not, and how.

Every trial starts one or two engines of the small model under MPS and takes about a minute;
`--trials` runs some of them alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gpu_bench
from gpu_bench import Bench, gpu_memory

from scepsy_hpc.cluster.mps import Sharing
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import spaced_ports
from scepsy_hpc.engines.process import EngineProcess, last_lines
from scepsy_hpc.errors import RunError
from scepsy_hpc.profiling.spec import Loads
from scepsy_hpc.profiling.sweep import engine_config

PINNED = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
UUID = "{uuid}"


@dataclass(frozen=True, slots=True)
class Trial:
    """Engines to start on one GPU; ``environment`` and ``engine_args`` hold for each of them."""

    what: str
    shares_pct: tuple[int, ...]
    together: bool = False
    model: str = gpu_bench.SMALL
    environment: Mapping[str, str] = field(default_factory=dict)
    engine_args: Mapping[str, Any] = field(default_factory=dict)


TRIALS = {
    "halves": Trial("two halves, one after the other", (50, 50)),
    "too-much": Trial("60% beside 60%: the second must be refused", (60, 60)),
    "together": Trial("two halves started at once", (50, 50), together=True),
    "fixed-cache": Trial(
        "a cache of fixed size", (50, 50), engine_args={"kv_cache_memory_bytes": "4G"}
    ),
    "no-room": Trial("weights that do not fit the share", (10,), model=gpu_bench.LARGE),
    "pinned-above": Trial("MPS limit above the budget", (50, 50), environment={PINNED: "0=44G"}),
    "pinned-below": Trial("MPS limit below the budget", (50, 50), environment={PINNED: "0=16G"}),
    "pinned-by-uuid": Trial(
        "MPS limit below the budget, GPU by UUID", (50,), environment={PINNED: f"{UUID}=16G"}
    ),
}


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Every trial in turn."""
    found = {}
    for name in options.trials:
        found[name] = await attempt(bench, name, TRIALS[name])
        bench.save("memory_limits.json", found)
        ends = [e["error"] or "ready" for e in found[name]["engines"]]
        bench.say(f"{name}: {'; '.join(end.splitlines()[0] for end in ends)}")


async def attempt(bench: Bench, name: str, trial: Trial) -> dict[str, Any]:
    """Start the engines of a trial; what became of each, and the GPU's memory."""
    # Compiling changes nothing about memory limits, and takes most of a start.
    spec = bench.model_spec(trial.model, enforce_eager=True, **trial.engine_args)
    tasks = [
        bench.task(spec, [(64, 8)], Loads(concurrency=(1,)), share) for share in trial.shares_pct
    ]
    hardware = bench.hardware(tasks[0])
    before = gpu_memory(bench)
    sharing = None if bench.dry_run else Sharing.start(hardware.gpus)
    ports = spaced_ports(len(tasks))
    engines: list[EngineProcess] = []
    try:
        configs = [
            engine_config(
                bench.job(task),
                hardware,
                f"{name}{i}",
                ports[i],
                environment_of(trial, sharing, hardware.gpus),
            )
            for i, task in enumerate(tasks)
        ]
        if trial.together:
            ends = await asyncio.gather(*(started(bench, c, engines) for c in configs))
        else:
            ends = [await started(bench, config, engines) for config in configs]
        after = gpu_memory(bench)
        sliced = [sharing.time_sliced(e.pid) if sharing else None for e in engines]
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))
        if sharing is not None:
            sharing.stop(keep_logs=bench.folder / "logs" / f"mps-{name}")
    return {
        "what": trial.what,
        "shares": trial.shares_pct,
        "memory": {"before": before, "after": after},
        "time_sliced": sliced,
        "engines": list(ends),
    }


async def started(
    bench: Bench, config: EngineConfig, engines: list[EngineProcess]
) -> dict[str, Any]:
    """Start one engine, note it in ``engines``; how that ended."""
    since_s, error = time.monotonic(), None
    engine = EngineProcess.start(config)
    engines.append(engine)
    try:
        await engine.wait_ready(180.0)
    except RunError as failure:
        error = reason_in(last_lines(config.log_path, 200)) or str(failure)
        with contextlib.suppress(RunError):
            await engine.stop()  # what is left of it would take memory from the next
    return {
        "share": config.gpu_share_pct,
        "error": error,
        "took_s": time.monotonic() - since_s,
        "memory": gpu_memory(bench),
    }


def environment_of(trial: Trial, sharing: Sharing | None, gpus: tuple[str, ...]) -> dict[str, str]:
    """MPS and the trial's own variables, the GPU's UUID filled in."""
    mps = sharing.environment(gpus) if sharing else {}
    uuid = mps.get("CUDA_VISIBLE_DEVICES", "GPU-0")
    return mps | {key: value.replace(UUID, uuid) for key, value in trial.environment.items()}


def reason_in(lines: list[str]) -> str | None:
    """The line of a log that a Python error ends with, for a person to read."""
    ends = [line for line in lines if "Error: " in line or "out of memory" in line.lower()]
    own = [line for line in ends if "See root cause above" not in line]
    return own[-1].strip() if own else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which trials."""
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))


if __name__ == "__main__":
    sys.exit(gpu_bench.run("memory_limits", __doc__, measure, add_arguments))
