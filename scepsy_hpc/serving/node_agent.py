"""Hosts the instances of one node: starts them, watches them, restarts what died, stops all.

Instances that share a GPU start one after the other: two that start together mis-measure each
other's memory. The state of each is a small file that the dispatcher reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from scepsy_hpc.cluster import gpu_types
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import spaced_ports
from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.planning.plan import Deployment
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder, write_json

MAX_STARTS = 4


@dataclass(frozen=True, slots=True)
class Hosting:
    """What every instance of a run has in common."""

    folder: RunFolder
    attempt: AttemptFolder
    deployments: dict[str, Deployment]
    host: str
    ready_timeout_s: float
    starts_at_once: int = 2


class NodeAgent:
    """Engines of one node (or, on one machine, of all its pretended nodes)."""

    def __init__(self, hosting: Hosting, instances: Sequence[PlacedInstance]) -> None:
        """Take the instances placed on this node; nothing starts yet."""
        self.hosting = hosting
        self.instances = tuple(instances)
        self._processes: dict[str, EngineProcess] = {}
        self._starting = asyncio.Semaphore(hosting.starts_at_once)

    async def run(self, stopping: asyncio.Event) -> None:
        """Start everything and keep it alive until ``stopping`` is set; then stop everything."""
        keepers = [asyncio.create_task(self._keep_all(group)) for group in _sharing(self.instances)]
        waiter = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait([waiter, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()  # A keeper never returns: if it is here, it raises.
        finally:
            waiter.cancel()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, waiter, return_exceptions=True)
            await asyncio.gather(*(p.stop() for p in self._processes.values()))
            for placed in self.instances:
                self._report(placed, "stopped")

    async def _keep_all(self, group: Sequence[PlacedInstance]) -> None:
        """Start the instances of one GPU in turn, then watch them."""
        starts = {placed.instance.id: 0 for placed in group}
        while True:
            for placed in group:
                name = placed.instance.id
                process = self._processes.get(name)
                if process is not None and process.is_alive():
                    continue
                if starts[name] >= MAX_STARTS:
                    continue
                starts[name] += 1
                await self._start(placed, starts[name])
            await asyncio.sleep(0.5)

    async def _start(self, placed: PlacedInstance, number: int) -> None:
        name = placed.instance.id
        previous = self._processes.pop(name, None)
        if previous is not None:
            self._report(placed, "restarting", starts=number)
            await previous.stop()  # The rest of its process group still holds the GPU.
            await asyncio.sleep(min(2.0 ** (number - 2), 10.0))
        async with self._starting:
            self._report(placed, "starting", starts=number)
            try:
                process = EngineProcess.start(self._config(placed, number))
                self._processes[name] = process
                await process.wait_ready(self.hosting.ready_timeout_s)
            except ScepsyError as error:
                with contextlib.suppress(KeyError):
                    await self._processes.pop(name).stop()
                state = "failed" if number >= MAX_STARTS else "restarting"
                self._report(placed, state, starts=number, error=str(error))
                return
        self._report(placed, "ready", starts=number, base_url=process.base_url, pid=process.pid)

    def _config(self, placed: PlacedInstance, number: int) -> EngineConfig:
        instance = placed.instance
        deployment = self.hosting.deployments[instance.llm]
        known = gpu_types.known(deployment.gpu_type)
        log = self.hosting.folder.logs / f"{instance.id}.{number}.log"
        return EngineConfig(
            instance_id=instance.id,
            engine=deployment.engine,
            model=deployment.model,
            served_names=(instance.llm,),
            gpu_type=deployment.gpu_type,
            gpu_memory_gib=known.memory_gib if known else deployment.memory_gib or 16.0,
            gpus=placed.gpus,
            port=spaced_ports(1, self.hosting.host)[0],
            log_path=log,
            tp_degree=deployment.tp_degree,
            gpu_share_pct=instance.gpu_share_pct,
            host=self.hosting.host,
            engine_args=deployment.engine_args,
            api_key=self.hosting.folder.key.read_text().strip(),
        )

    def _report(self, placed: PlacedInstance, state: str, **more: object) -> None:
        report = {
            "instance": placed.instance.id,
            "llm": placed.instance.llm,
            "host": placed.host,
            "gpus": list(placed.gpus),
            "state": state,
            "since_s": time.time(),
            **more,
        }
        write_json(self.hosting.attempt.engine(placed.instance.id), report)


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
