"""The points of one engine that is ready: each load in turn, neighbours under the same load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.formats.points import Point
from scepsy_hpc.profiling.load_generator import (
    Client,
    Lengths,
    background_load,
    closed_loop,
    open_loop,
    warm_up,
)
from scepsy_hpc.profiling.spec import SweepTask
from scepsy_hpc.profiling.steady import closed_point, open_point, open_window
from scepsy_hpc.tracing.proxy.router import CallTarget

SERVED_NAME = "profiled"
# Saturation: throughput rose by no more than this, twice in a row, while latency rose.
MIN_GAIN = 0.02
NUM_FLAT_POINTS = 2

OnPoint = Callable[[Point], None]


async def measure_loads(
    task: SweepTask, engine: EngineProcess, others: Sequence[EngineProcess], keep: OnPoint
) -> None:
    """Give ``keep`` every point of the task, shape by shape. Raises RunError.

    No two clients draw the same prompts: the engine's cache would have them.
    """
    shapes = [(one,) for one in task.lengths] if task.one_by_one else [task.lengths]
    for number, lengths in enumerate(shapes):
        seed = f"{task.seed}/{number}"
        async with client_of(engine, lengths, seed) as client:
            await warm_up(client, task.loads.warmup_requests)
            await _sweep_closed(task, client, others, lengths, seed, keep)
            await _sweep_open(task, client, others, lengths, seed, keep)


async def _sweep_closed(
    task: SweepTask,
    client: Client,
    others: Sequence[EngineProcess],
    lengths: Sequence[Lengths],
    seed: str,
    keep: OnPoint,
) -> None:
    """From the smallest load on, until more brings nothing."""
    before: list[Point] = []
    for concurrency in sorted(set(task.loads.concurrency)):
        async with busy(others, lengths, concurrency, f"{seed}/beside {concurrency}"):
            point = await closed(task, client, concurrency)
        point = replace(point, saturated=is_flat(before, point))
        keep(point)
        before.append(point)
        if is_saturated(before):
            break


async def closed(task: SweepTask, client: Client, concurrency: int) -> Point:
    """The point at ``concurrency`` calls in flight. Raises RunError."""
    loads = task.loads
    window = await closed_loop(client, concurrency, loads.requests_per_point, loads.limit_s)
    return closed_point(window, concurrency, task.at)


async def _sweep_open(
    task: SweepTask,
    client: Client,
    others: Sequence[EngineProcess],
    lengths: Sequence[Lengths],
    seed: str,
    keep: OnPoint,
) -> None:
    for rate_rps in sorted(set(task.loads.arrival_rate_rps)):
        most = max(task.loads.concurrency, default=1)
        async with busy(others, lengths, most, f"{seed}/beside {rate_rps} rps"):
            calls = await open_loop(client, rate_rps, task.loads.requests_per_point, task.seed)
        open_part = open_window(calls)
        if open_part is not None:
            keep(open_point(open_part, rate_rps, task.at))


@contextlib.asynccontextmanager
async def busy(
    engines: Sequence[EngineProcess], lengths: Sequence[Lengths], concurrency: int, seed: int | str
) -> AsyncIterator[None]:
    """Keep engines under a closed load meanwhile. Raises RunError when one of them fails."""
    async with contextlib.AsyncExitStack() as stack:
        loads = []
        for i, engine in enumerate(engines):
            client = await stack.enter_async_context(client_of(engine, lengths, f"{seed}/{i}"))
            loads.append(asyncio.ensure_future(background_load(client, concurrency)))
        try:
            yield
            for load in loads:
                if load.done():
                    load.result()
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)


def client_of(engine: EngineProcess, lengths: Sequence[Lengths], seed: int | str) -> Client:
    """What sends the calls of a measurement."""
    target = CallTarget(engine.base_url, SERVED_NAME, api_key=engine.config.api_key)
    return Client(target, lengths, seed, engine.config.engine_args.get("runner") == "pooling")


def is_flat(before: list[Point], point: Point) -> bool:
    """Whether more calls in flight brought no more throughput, only more latency."""
    if not before:
        return False
    most_rps = max(p.throughput_rps for p in before)
    no_gain = point.throughput_rps <= most_rps * (1 + MIN_GAIN)
    return no_gain and point.latency_mean_s > before[-1].latency_mean_s


def is_saturated(points: list[Point]) -> bool:
    """Whether the last points are all flat, so that higher loads would teach nothing."""
    last = points[-NUM_FLAT_POINTS:]
    return len(last) == NUM_FLAT_POINTS and all(point.saturated for point in last)
