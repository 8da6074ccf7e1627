"""Hosts the instances of one node: starts and watches them, restarts what died or hung, stops all.

Instances that share a GPU start one after the other: two that start together mis-measure each
other's memory. The state of each is a small file that the dispatcher reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.cluster import gpu_types
from scepsy_hpc.cluster.gpu_memory import wait_for_memory
from scepsy_hpc.cluster.mps import Sharing
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import spaced_ports
from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.engines.staging import with_weights
from scepsy_hpc.engines.vllm import is_shared, memory_utilization, takes_gpus
from scepsy_hpc.errors import InputError, RunError, ScepsyError
from scepsy_hpc.formats.status import Death, EngineState
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.deaths import death_of
from scepsy_hpc.serving.engine_view import EngineReport
from scepsy_hpc.serving.log_room import drop_old_logs, keep_logs_bounded
from scepsy_hpc.serving.patience import patience_of
from scepsy_hpc.serving.run_folder import read_json, write_json
from scepsy_hpc.serving.start import Run
from scepsy_hpc.serving.watch import Watch

MAX_STARTS = 4
# After so long in service a death counts as the first again: a run may last for days.
STEADY_S = 600.0
LOOK_S = 0.5
FIRST_PAUSE_S = 1.0
TRAFFIC_S = 5.0


@dataclass(slots=True)
class Kept:
    """What is known of one instance; ``starts`` counts all, ``starts_in_row`` those in a row.

    ``time_sliced`` says why no MPS holds it to its share of a GPU; None where it is, or needs none.
    ``hung`` says why its process was killed, once it was. ``unreported``: the disk took no report.
    """

    placed: PlacedInstance
    state: EngineState = "waiting"
    process: EngineProcess | None = None
    starts: int = 0
    starts_in_row: int = 0
    ready_since_s: float | None = None
    error: str = ""
    time_sliced: str | None = None
    suspect_since_s: float | None = None
    hung: str | None = None
    last_death: Death | None = None
    watching: asyncio.Task[None] | None = None
    unreported: bool = False


class NodeAgent:
    """Engines of one node (or, on one machine, of all its pretended nodes)."""

    def __init__(self, run: Run, instances: Sequence[PlacedInstance], address: str) -> None:
        """Take the instances placed on this node, to listen on ``address``; nothing starts yet."""
        self._run, self._address = run, address
        self._kept = [[Kept(placed) for placed in group] for group in _sharing(instances)]
        self._starting = asyncio.Semaphore(run.settings.starts_at_once)
        self._ports: dict[str, int] = {}  # by instance: two that start together take two ports
        self._mps: Sharing | None = None
        self._traffic: dict[str, float] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Start everything and keep it alive until ``stopping`` is set; then stop everything.

        Raises RunError when an engine's process cannot be ended.
        """
        await self._start_mps()
        keepers = [asyncio.create_task(self._keep_all(group)) for group in self._kept]
        keepers.append(asyncio.create_task(keep_logs_bounded(self._logs)))
        keepers.append(asyncio.create_task(self._read_traffic()))
        waiter = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait([waiter, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()  # A keeper never returns: if it is here, it raises.
        finally:
            for task in (waiter, *keepers):
                task.cancel()
            await asyncio.gather(waiter, *keepers, return_exceptions=True)
            await self._stop_all()

    async def _stop_all(self) -> None:
        every = [kept for group in self._kept for kept in group]
        for kept in every:
            self._end_watch(kept)
        running = [kept.process for kept in every if kept.process is not None]
        ends = await asyncio.gather(*(p.stop() for p in running), return_exceptions=True)
        for kept in every:
            if kept.state != "failed":
                self._report(kept, "stopped")
        if self._mps is not None:
            logs = self._run.folder.logs / f"mps-{every[0].placed.host}"
            await asyncio.to_thread(self._mps.stop, keep_logs=logs)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _start_mps(self) -> None:
        """One MPS daemon for the GPUs of this node of which instances hold parts, if there are."""
        parts = [kept for group in self._kept for kept in group if self._holds_part(kept)]
        if parts:
            gpus = dict.fromkeys(gpu for kept in parts for gpu in kept.placed.gpus)
            self._mps = await asyncio.to_thread(Sharing.start, tuple(gpus))

    def _holds_part(self, kept: Kept) -> bool:
        instance = kept.placed.instance
        deployment = self._run.plan.llms[instance.llm]
        return is_shared(deployment.engine, deployment.gpu_type, instance.gpu_share_pct)

    async def _keep_all(self, group: Sequence[Kept]) -> None:
        """Start the instances of one GPU in turn, then watch them."""
        while True:
            for kept in group:
                if kept.unreported:
                    self._report(kept, kept.state)
                alive = kept.process is not None and kept.process.is_alive()
                if kept.watching is not None and kept.watching.done():
                    kept.watching.result()
                if not alive and kept.state != "failed":
                    await self._start(kept)
            await asyncio.sleep(LOOK_S)

    async def _read_traffic(self) -> None:
        """Keep what the lead says of bytes from each engine; its clock is never compared."""
        while True:
            with contextlib.suppress(InputError):
                told = read_json(self._run.attempt.traffic, dict[str, float])
                self._traffic = told or self._traffic
            await asyncio.sleep(TRAFFIC_S)

    async def _watch(self, kept: Kept, process: EngineProcess) -> None:
        """Name an engine that shows no sign of work, then kill it: its keeper starts it again."""
        name, llm = kept.placed.instance.id, kept.placed.instance.llm
        patience = patience_of(self._run.plan, llm, self._run.settings.hung_after_s)
        watch = Watch(process.config, process.base_url, patience, lambda: self._traffic.get(name))
        looking = asyncio.create_task(watch.run())
        try:
            while not looking.done() and watch.verdict != "hung":
                self._judge(kept, watch)
                await asyncio.wait([looking], timeout=LOOK_S)
            if looking.done():
                looking.result()  # It never returns: if it is here, it raises.
            if process.is_alive():
                kept.hung = f"hung and killed: {watch.evidence}"
                process.kill()
        finally:
            looking.cancel()

    def _judge(self, kept: Kept, watch: Watch) -> None:
        if watch.verdict == "suspect" and kept.state == "ready":
            kept.suspect_since_s, kept.error = time.time(), watch.evidence
            self._report(kept, "suspect")
        elif watch.verdict == "sound" and kept.state == "suspect":
            kept.suspect_since_s, kept.error = None, ""
            self._report(kept, "ready")

    def _end_watch(self, kept: Kept) -> None:
        if kept.watching is not None:
            kept.watching.cancel()
            kept.watching = None

    async def _start(self, kept: Kept) -> None:
        """Start an instance, or start it again; the failure of a start is noted, not raised."""
        try:
            await self._clear_away(kept)
            pause_s = pause_before_start_s(kept.starts_in_row)
            if pause_s is None:
                self._report(kept, "failed")
                return
            await asyncio.sleep(pause_s)
            async with self._starting:
                crowded = await self._wait_for_memory(kept) if kept.starts else None
                kept.starts += 1
                kept.starts_in_row += 1
                kept.error = "\n".join(filter(None, (kept.error, crowded)))
                self._report(kept, "starting")
                config = await with_weights(self._config(kept))
                kept.process = EngineProcess.start(config)
                await kept.process.wait_ready(self._run.settings.ready_timeout_s)
                if self._mps is not None and self._holds_part(kept):
                    pid = kept.process.pid
                    kept.time_sliced = await asyncio.to_thread(self._mps.time_sliced, pid)
        except ScepsyError as error:
            kept.error = str(error)
            # What is wrong with the plan does not get better by trying.
            if isinstance(error, InputError) or pause_before_start_s(kept.starts_in_row) is None:
                await self._give_up(kept)
            else:
                self._report(kept, "restarting")
            return
        kept.ready_since_s, kept.error = time.monotonic(), ""
        self._report(kept, "ready")
        kept.watching = asyncio.create_task(self._watch(kept, kept.process))

    async def _give_up(self, kept: Kept) -> None:
        """Free the GPU of an instance that will not be started again."""
        self._report(kept, "failed")
        if kept.process is not None:
            with contextlib.suppress(RunError):  # the end of the run tries again, and raises
                await kept.process.stop()
                kept.process = None

    async def _clear_away(self, kept: Kept) -> None:
        """End what is left of the previous start: the rest of its group still holds the GPU."""
        self._end_watch(kept)
        previous = kept.process
        if previous is None:
            return
        if kept.ready_since_s is not None:
            self._note_death(kept, previous)
            if time.monotonic() - kept.ready_since_s > STEADY_S:
                kept.starts_in_row = 0
            kept.ready_since_s = None
        self._report(kept, "restarting")
        try:
            await previous.stop()
        except RunError:
            kept.starts_in_row += 1  # else what cannot be killed would be tried for ever
            raise
        kept.process = None

    def _logs(self) -> list[Path]:
        """Logs that engines of this node write now."""
        processes = (kept.process for group in self._kept for kept in group)
        return [process.config.log_path for process in processes if process is not None]

    def _note_death(self, kept: Kept, previous: EngineProcess) -> None:
        """Of an engine in service: how it ended, and the last that it said."""
        name, log = kept.placed.instance.id, previous.config.log_path
        how, kept.hung, kept.suspect_since_s = kept.hung or previous.end, None, None
        kept.last_death = death_of(how, log)
        kept.error = f"{name} died in service ({how}); see {log}"

    async def _wait_for_memory(self, kept: Kept) -> str | None:
        """What holds the memory that this engine had, if after a while anything does."""
        config = self._config(kept)
        if config.engine != "vllm" or not takes_gpus(config.engine, config.gpu_type):
            return None
        needed, limit_s = memory_utilization(config), self._run.settings.gpu_free_s
        return await wait_for_memory(config.gpus, needed, limit_s)

    def _config(self, kept: Kept) -> EngineConfig:
        placed, instance = kept.placed, kept.placed.instance
        deployment = self._run.plan.llms[instance.llm]
        known = gpu_types.known(deployment.gpu_type)
        moved = f".term{placed.term}" if placed.term else ""
        log = self._run.folder.logs / f"{instance.id}{moved}.{kept.starts}.log"
        drop_old_logs(log.parent, instance.id)
        taken = [port for name, port in self._ports.items() if name != instance.id]
        self._ports[instance.id] = spaced_ports(1, self._address, avoid=taken)[0]
        return EngineConfig(
            instance_id=instance.id,
            engine=deployment.engine,
            model=deployment.model,
            served_names=(instance.llm,),
            gpu_type=deployment.gpu_type,
            gpu_memory_gib=known.memory_gib if known else deployment.memory_gib or 16.0,
            gpus=placed.gpus,
            port=self._ports[instance.id],
            log_path=log,
            tp_degree=deployment.tp_degree,
            gpu_share_pct=instance.gpu_share_pct,
            host=self._address,
            engine_args=deployment.engine_args,
            api_key=self._run.folder.key.read_text().strip(),
            mps_environment=self._mps.environment(placed.gpus) if self._mps else {},
            site=self._run.site,
        )

    def _report(self, kept: Kept, state: EngineState) -> None:
        placed, process, kept.state = kept.placed, kept.process, state
        report = EngineReport(
            id=placed.instance.id,
            llm=placed.instance.llm,
            host=placed.host,
            gpus=placed.gpus,
            state=state,
            starts=kept.starts,
            error=kept.error,
            time_sliced=kept.time_sliced,
            suspect_since_s=kept.suspect_since_s,
            last_death=kept.last_death,
            base_url=process.base_url if process else "",
            pid=process.pid if process else None,
        )
        try:
            write_json(self._run.attempt.engine(report.id, placed.term), report)
            kept.unreported = False
        except (OSError, InputError):
            kept.unreported = (
                True  # A full disk is no reason to end engines; said at the next look.
            )


def pause_before_start_s(starts_in_row: int) -> float | None:
    """Seconds to wait before a start that follows so many in a row; None to give up."""
    if starts_in_row >= MAX_STARTS:
        return None
    return FIRST_PAUSE_S * 2.0 ** (starts_in_row - 1) if starts_in_row else 0.0


def _sharing(instances: Sequence[PlacedInstance]) -> list[list[PlacedInstance]]:
    """Groups of instances joined by a common GPU of the same rank."""
    groups: list[tuple[set[tuple[int, str]], list[PlacedInstance]]] = []
    for placed in instances:
        gpus = {(placed.rank, gpu) for gpu in placed.gpus}
        touching = [group for group in groups if group[0] & gpus]
        merged = gpus.union(*(group[0] for group in touching))
        members = [member for group in touching for member in group[1]] + [placed]
        groups = [group for group in groups if group not in touching] + [(merged, members)]
    return [members for _, members in groups]
