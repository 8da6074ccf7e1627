"""One array task: start the engine once, sweep the loads, return the points."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from scepsy_hpc.cluster.mps import Sharing
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import is_free, spaced_ports
from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.engines.staging import with_weights
from scepsy_hpc.engines.vllm import is_shared
from scepsy_hpc.errors import RunError
from scepsy_hpc.files import check, json_line, record, write_text
from scepsy_hpc.formats.parallelism import usable_memory_gib
from scepsy_hpc.formats.points import Point
from scepsy_hpc.profiling.hardware import Hardware, hardware_of
from scepsy_hpc.profiling.loads import SERVED_NAME, measure_loads
from scepsy_hpc.profiling.spec import SweepTask

START_ATTEMPTS = 2
# A rest of the GPU smaller than this is left idle: hardly a model fits into its memory.
MIN_NEIGHBOUR_PCT = 25


@dataclass(frozen=True, slots=True)
class SweepJob:
    """A task and the folders, seen by all nodes, for its logs and for its result."""

    task: SweepTask
    folder: Path
    result_path: Path
    site: Site = field(default_factory=Site)

    @property
    def points_path(self) -> Path:
        """Points so far, one JSON object a line; replaced after each point."""
        return self.folder / f"{self.task.task_id}.points.jsonl"


@record
class SweepResult:
    """What one task measured.

    ``neighbours_pct`` are the shares of the instances that kept the rest of the GPU busy;
    ``time_sliced`` says why no MPS held the shares, where it did not.
    """

    task_id: str
    engine_version: str
    points: tuple[Point, ...]
    driver: str | None = None
    neighbours_pct: tuple[int, ...] = ()
    time_sliced: str | None = None


def run_sweep(job: SweepJob) -> SweepResult:
    """Measure one task; the result is also left at ``result_path``, should nobody wait for it.

    Raises RunError, with the engine's last words where it was its fault.
    """
    result = asyncio.run(sweep(job))
    write_text(job.result_path, json_line(result))
    return result


async def sweep(job: SweepJob) -> SweepResult:
    """The same inside an event loop. The engine and its neighbours are stopped in any case."""
    task = job.task
    hardware = hardware_of(task)
    points: list[Point] = []

    def keep(point: Point) -> None:
        points.append(point)
        write_text(job.points_path, "".join(json_line(p) for p in points))

    neighbours_pct = neighbours_of(task)
    async with contextlib.AsyncExitStack() as stack:
        sharing = await stack.enter_async_context(shared(job, hardware))
        # One after the other: two engines that start together on a GPU mis-measure its memory.
        engine = await stack.enter_async_context(running(job, hardware, "engine", sharing))
        others = [
            await stack.enter_async_context(
                running(replace(job, task=part), hardware, f"neighbour{i}", sharing)
            )
            for i, part in enumerate(replace(task, gpu_share_pct=s) for s in neighbours_pct)
        ]
        reason = await _time_sliced(sharing, [engine, *others])
        version = await engine_version(engine)
        try:
            await measure_loads(task, engine, others, keep)
        except RunError as error:
            state = "" if engine.is_alive() else "; the engine died"
            raise RunError(
                f"{task.task_id}: {error}{state}; see {engine.config.log_path}"
            ) from None
    return SweepResult(
        task_id=task.task_id,
        engine_version=version,
        points=tuple(points),
        driver=hardware.driver,
        neighbours_pct=neighbours_pct,
        time_sliced=reason,
    )


def neighbours_of(task: SweepTask) -> tuple[int, ...]:
    """Shares of the instances that keep the rest of the GPU busy while a share is measured.

    As many of the same share as fit, and one on the rest where that holds the model. None for a
    simulated engine: its timing follows a bundle, whatever else runs.
    """
    if task.model.engine == "simulated":
        return ()
    share = task.gpu_share_pct
    same, rest = (share,) * (100 // share - 1), 100 % share
    room_gib = usable_memory_gib(task.gpu_memory_gib, rest, task.tp_degree)
    fits = (task.model.weights_gib or 0.0) < room_gib
    return (*same, rest) if fits and rest >= MIN_NEIGHBOUR_PCT else same


@contextlib.asynccontextmanager
async def shared(job: SweepJob, hardware: Hardware) -> AsyncIterator[Sharing | None]:
    """MPS for the GPUs of a task that measures a share of real ones; None for other tasks."""
    task = job.task
    if not is_shared(task.model.engine, task.gpu_type, task.gpu_share_pct):
        yield None
        return
    sharing = await asyncio.to_thread(Sharing.start, hardware.gpus)
    try:
        yield sharing
    finally:
        logs = job.folder / f"{task.task_id}-mps"
        await asyncio.to_thread(sharing.stop, keep_logs=logs)


async def _time_sliced(sharing: Sharing | None, engines: list[EngineProcess]) -> str | None:
    """Why an engine is not held to its share; None when all are, or none has to be."""
    if sharing is None:
        return None
    reasons = [await asyncio.to_thread(sharing.time_sliced, engine.pid) for engine in engines]
    return next((reason for reason in reasons if reason), None)


@contextlib.asynccontextmanager
async def running(
    job: SweepJob, hardware: Hardware, role: str, sharing: Sharing | None = None
) -> AsyncIterator[EngineProcess]:
    """An engine that is ready. One that lost the race for its port gets another, once."""
    mps = sharing.environment(hardware.gpus) if sharing else {}
    for attempt in range(START_ATTEMPTS):
        config = engine_config(job, hardware, role, spaced_ports(1)[0], mps)
        engine = EngineProcess.start(await with_weights(config))
        try:
            try:
                await engine.wait_ready(job.task.ready_timeout_s)
            except RunError:
                lost_port = not engine.is_alive() and not is_free(config.port)
                if attempt + 1 < START_ATTEMPTS and lost_port:
                    continue
                raise
            yield engine
            return
        finally:
            await engine.stop()


def engine_config(
    job: SweepJob, hardware: Hardware, role: str, port: int, mps_environment: dict[str, str]
) -> EngineConfig:
    """The instance that a task measures, or one of its neighbours."""
    task = job.task
    return EngineConfig(
        instance_id=f"{task.task_id}-{role}",
        engine=task.model.engine,
        model=task.model.model,
        served_names=(SERVED_NAME,),
        gpu_type=task.gpu_type,
        gpu_memory_gib=task.gpu_memory_gib,
        gpus=hardware.gpus,
        port=port,
        log_path=job.folder / f"{task.task_id}-{role}.log",
        tp_degree=task.tp_degree,
        gpu_share_pct=task.gpu_share_pct,
        engine_args=task.model.engine_args,
        # Other users of the node can reach the port.
        api_key=secrets.token_urlsafe(24),
        mps_environment=mps_environment,
        site=job.site,
    )


async def engine_version(engine: EngineProcess) -> str:
    """What the engine itself says it is. Raises RunError when it does not say."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            session.get(f"{engine.base_url}/version") as response,
        ):
            answer = check(await response.json(), dict[str, object], "/version")
            return str(answer["version"])
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        raise RunError(
            f"{engine.config.instance_id}: /version does not tell the engine's version: {error}"
        ) from None
