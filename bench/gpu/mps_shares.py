"""Part 2: engines on shares of one GPU under MPS, neighbours idle and busy; time-slicing beside it.

Each split is its own set of engine starts and takes 2 to 4 minutes: `--splits 50/50` alone, say.
`100` is one engine alone; a trailing `s` (`50/50s`) leaves MPS out. Points beside busy neighbours
under MPS become bundles; `interference` is how much slower a busy neighbour makes an engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gpu_bench
from gpu_bench import Bench, engines_on_one_gpu, figures, gpu_memory

from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.formats.points import Point
from scepsy_hpc.profiling.load_generator import warm_up
from scepsy_hpc.profiling.loads import busy, client_of, closed
from scepsy_hpc.profiling.spec import Loads, SweepTask
from scepsy_hpc.profiling.sweep import SweepResult, engine_version

DEFAULT_SPLITS = ("100", "50/50", "25/75", "30/30/40", "50/50s")


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the engines on the GPU, and whether MPS holds them."""

    name: str
    shares_pct: tuple[int, ...]
    mps: bool

    @classmethod
    def parse(cls, text: str) -> Split:
        """``25/75`` or, without MPS, ``25/75s``."""
        shares = tuple(int(part) for part in text.removesuffix("s").split("/"))
        if not all(0 < share <= 100 for share in shares) or sum(shares) > 100:
            raise argparse.ArgumentTypeError(f"{text}: shares must be 1 to 100, at most 100 in all")
        return cls(text, shares, not text.endswith("s") and shares != (100,))


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Every split in turn; what is measured is saved after each."""
    rows: list[dict[str, Any]] = []
    measured: list[tuple[SweepTask, SweepResult]] = []
    memory: dict[str, Any] = {}
    for split in options.splits:
        bench.say(f"split {split.name}")
        await measure_split(bench, split, options, rows, measured, memory)
        bench.save("points.json", rows)
        bench.save("memory.json", memory)
        bench.save("interference.json", interference(rows))
        if measured:
            bench.write_bundles("mps-shares", measured)
    for row in interference(rows):
        bench.say(f"{row['split']} {row['model']} {row['share']}%: {row['slowdown']}")


async def measure_split(
    bench: Bench,
    split: Split,
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    measured: list[tuple[SweepTask, SweepResult]],
    memory: dict[str, Any],
) -> None:
    """Start the engines of one split; measure each with the others idle, then busy."""
    loads = Loads(concurrency=options.concurrency, requests_per_point=16, limit_s=options.limit_s)
    specs = [bench.model_spec(model) for model in options.models]
    tasks = [
        bench.task(specs[i % len(specs)], [options.shape], loads, share)
        for i, share in enumerate(split.shares_pct)
    ]
    async with engines_on_one_gpu(bench, tasks, split.mps) as (engines, sharing):
        sliced = [sharing.time_sliced(e.pid) if sharing else None for e in engines]
        memory[split.name] = {"ready": gpu_memory(bench)}
        for i, (task, engine) in enumerate(zip(tasks, engines, strict=True)):
            others = [e for j, e in enumerate(engines) if j != i]
            seen = {(t.model.model, t.gpu_share_pct) for t in tasks[:i]}
            if (task.model.model, task.gpu_share_pct) in seen:
                continue  # an equal one was measured
            found = await idle_and_busy(bench, task, engine, others)
            memory[split.name]["loaded"] = gpu_memory(bench)
            rows += [
                {
                    "split": split.name,
                    "model": task.model.model,
                    "share": task.gpu_share_pct,
                    "neighbours": state,
                    "mps": split.mps,
                    "time_sliced": sliced[i],
                    "in_flight": in_flight,
                    **figures(point),
                }
                for state, points in found.items()
                for in_flight, point in zip(loads.concurrency, points, strict=True)
            ]
            beside = found.get("busy") or found["idle"]
            if split.mps or split.shares_pct == (100,):
                neighbours = tuple(t.gpu_share_pct for j, t in enumerate(tasks) if j != i)
                version = await engine_version(engine)
                driver = bench.hardware(task).driver
                result = SweepResult(
                    task_id=f"{split.name}-{i}",
                    engine_version=version,
                    points=tuple(beside),
                    driver=driver,
                    neighbours_pct=neighbours,
                    time_sliced=sliced[i],
                )
                measured.append((task, result))


async def idle_and_busy(
    bench: Bench, task: SweepTask, engine: EngineProcess, others: Sequence[EngineProcess]
) -> dict[str, list[Point]]:
    """Points of one engine by the state of its neighbours, alternating at each load."""
    found: dict[str, list[Point]] = {"idle": [], "busy": []} if others else {"idle": []}
    async with client_of(engine, task.lengths, task.seed) as client:
        await warm_up(client, task.loads.warmup_requests)
        for concurrency in task.loads.concurrency:
            for state, points in found.items():
                loaded = others if state == "busy" else ()
                async with busy(loaded, task.lengths, concurrency, f"beside {concurrency}"):
                    point = await closed(task, client, concurrency)
                points.append(point)
                latency_ms = 1e3 * point.latency_mean_s
                bench.say(
                    f"  {task.task_id}, neighbours {state}, {concurrency} in flight: "
                    f"{point.throughput_rps:.2f}/s, {latency_ms:.0f} ms"
                )
    return found


def interference(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Latency beside busy neighbours over that beside idle ones, by load, of each engine."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    idle = {_key(r): r["latency_mean_s"] for r in rows if r["neighbours"] == "idle"}
    for row in rows:
        if row["neighbours"] != "busy" or _key(row) not in idle:
            continue
        engine = _key(row)[:-1]
        entry = found.setdefault(
            engine, {k: row[k] for k in ("split", "model", "share")} | {"slowdown": {}}
        )
        ratio = row["latency_mean_s"] / idle[_key(row)]
        entry["slowdown"][row["in_flight"]] = round(ratio, 3)
    return list(found.values())


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["split"], row["model"], row["share"], row["in_flight"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which splits, models, loads."""
    splits = [Split.parse(text) for text in DEFAULT_SPLITS]
    parser.add_argument("--splits", nargs="+", type=Split.parse, default=splits)
    parser.add_argument(
        "--models", nargs="+", default=[gpu_bench.LARGE], help="one for all engines, or in turn"
    )
    parser.add_argument("--shape", nargs=2, type=int, default=(1024, 128), metavar=("IN", "OUT"))
    parser.add_argument("--concurrency", nargs="+", type=int, default=(1, 4, 16, 48))
    parser.add_argument("--limit-s", type=float, default=8.0, help="for each point")


if __name__ == "__main__":
    sys.exit(gpu_bench.run("mps_shares", __doc__, measure, add_arguments))
