"""What the measurements on a GPU have in common: output, facts, engines on one GPU, bundles.

Each script takes an output folder, leaves ``OUT/<name>/`` and one archive ``OUT/<name>.tar.gz``,
and with ``--dry-run`` does the same with simulated engines, where there is no GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from models import write_models

from scepsy_hpc import __version__
from scepsy_hpc.bundles.library import save_bundle
from scepsy_hpc.bundles.published_sizes import published_kv_bytes_per_token, published_weights_gib
from scepsy_hpc.cluster.discovery import discover_local
from scepsy_hpc.cluster.mps import Sharing
from scepsy_hpc.engines import vllm
from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.files import to_plain
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.profiling.bundling import bundled
from scepsy_hpc.profiling.hardware import Hardware, hardware_of
from scepsy_hpc.profiling.load_generator import Lengths
from scepsy_hpc.profiling.spec import Loads, ModelSpec, ProfileSpec, SweepTask, Workload
from scepsy_hpc.profiling.sweep import SweepJob, SweepResult, running

SMALL, LARGE = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"
# Every measurement here fits; the cache, not the length, is what a share limits.
MAX_MODEL_LEN = 8192
DRY_TIME_SCALE = 0.01
DRY_BUNDLES = {m: f"h100_sxm/{m.replace('/', '__')}/vllm-0.24.0/token-grid" for m in (SMALL, LARGE)}
# What takes random weights is no part of a profile: speed is that of the real ones.
RANDOM_WEIGHTS = {"load_format": "dummy"}


@dataclass
class Bench:
    """One measurement under way."""

    name: str
    out: Path
    dry_run: bool
    started_s: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where everything of this measurement goes."""
        return self.out / self.name

    def say(self, text: str) -> None:
        """A line for who watches, also kept in the log."""
        line = f"[{time.monotonic() - self.started_s:6.1f} s] {text}"
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as log:
            log.write(line + "\n")

    def save(self, name: str, value: Any) -> None:
        """Write a JSON file; after each step, so that a run cut short keeps what it has."""
        text = json.dumps(to_plain(value), indent=1) + "\n"
        (self.folder / name).write_text(text)

    @cached_property
    def topology(self) -> Topology:
        """This machine; an H100 where it is only rehearsed."""
        if not self.dry_run:
            return discover_local()
        domain = Domain(gpus=(0,), link="nvlink")
        node = Node(name="gpu", gpu_type="h100_sxm", gpu_memory_gib=80.0, domains=(domain,))
        return Topology((node,))

    @cached_property
    def models(self) -> Path:
        """The folder of model folders; engines must be started in it."""
        return write_models(self.out.absolute() / "models")

    def model_spec(self, model: str, **engine_args: Any) -> ModelSpec:
        """How a model is served here."""
        if self.dry_run:
            args = {"timing_bundle": DRY_BUNDLES[model], "time_scale": DRY_TIME_SCALE}
            return ModelSpec(model=model, engine="simulated", engine_args=args)
        return ModelSpec(
            model=model,
            engine="vllm",
            engine_args={**RANDOM_WEIGHTS, "max_model_len": MAX_MODEL_LEN, **engine_args},
            weights_gib=published_weights_gib(model, "bf16"),
            kv_bytes_per_token=published_kv_bytes_per_token(model),
            licence="Apache-2.0",
        )

    def task(
        self,
        model: ModelSpec,
        shapes: Sequence[tuple[int, int]],
        loads: Loads,
        gpu_share_pct: int = 100,
    ) -> SweepTask:
        """One instance on the first GPU, to be measured at these token shapes and loads."""
        node = self.topology.nodes[0]
        return SweepTask(
            task_id=f"{model.model.rsplit('/', 1)[-1]}-share{gpu_share_pct}",
            model=model,
            gpu_type=node.gpu_type,
            gpu_memory_gib=node.gpu_memory_gib,
            link=None,
            tp_degree=1,
            gpu_share_pct=gpu_share_pct,
            lengths=tuple(Lengths(*shape) for shape in shapes),
            loads=loads,
            ready_timeout_s=300.0,
            seed=0,
            one_by_one=True,
        )

    def hardware(self, task: SweepTask) -> Hardware:
        """The first GPU that this process may use, checked to be of the task's type."""
        return hardware_of(
            task, {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
        )

    def job(self, task: SweepTask) -> SweepJob:
        """The task with the place of its logs."""
        return SweepJob(task, self.folder / "logs", self.folder / "logs" / f"{task.task_id}.json")

    def write_bundles(
        self, workload: str, measured: Sequence[tuple[SweepTask, SweepResult]]
    ) -> list[Bundle]:
        """Bundles of what was measured, below ``profiles/``; random weights are named as such."""
        spec = ProfileSpec(
            path=self.folder,
            topology=self.topology,
            workload=Workload(name=workload),
            time_min=None,
            tasks=tuple(task for task, _ in measured),
            skipped=(),
        )
        return [
            save_published(self.folder / "profiles", header, points, workload)
            for header, points in bundled(spec, measured)
        ]


def save_published(root: Path, header: Any, points: Sequence[Point], workload: str) -> Bundle:
    """Save a bundle without the argument that makes weights random, which its source then names."""
    args = {k: v for k, v in header.engine_args.items() if k not in RANDOM_WEIGHTS}
    source = header.source
    if args != header.engine_args:
        source += "; weights were random (load_format dummy)"
    return save_bundle(root, replace(header, engine_args=args, source=source), points, workload)


@contextlib.asynccontextmanager
async def engines_on_one_gpu(
    bench: Bench, tasks: Sequence[SweepTask], with_mps: bool = True
) -> AsyncIterator[tuple[list[EngineProcess], Sharing | None]]:
    """Engines that share the GPU, ready, started one after the other; MPS unless told otherwise."""
    hardware = bench.hardware(tasks[0])
    async with contextlib.AsyncExitStack() as stack:
        sharing = None
        if with_mps and not bench.dry_run:
            sharing = Sharing.start(hardware.gpus)
            stack.callback(sharing.stop, keep_logs=bench.folder / "logs" / "mps")
        engines = []
        for i, task in enumerate(tasks):
            job, since_s = bench.job(task), time.monotonic()
            engine = await stack.enter_async_context(running(job, hardware, f"{i}", sharing))
            engines.append(engine)
            took_s = time.monotonic() - since_s
            bench.say(f"{engine.config.instance_id} ready after {took_s:.1f} s")
        yield engines, sharing


def gpu_memory(bench: Bench) -> dict[str, Any] | None:
    """Memory of the first GPU in GiB, in all and by process id; None in a rehearsal."""
    if bench.dry_run:
        return None
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        clients = []
        for ask in (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetMPSComputeRunningProcesses",
        ):
            with contextlib.suppress(pynvml.NVMLError, AttributeError):
                clients += getattr(pynvml, ask)(handle)
    finally:
        pynvml.nvmlShutdown()
    by_pid = {str(p.pid): (p.usedGpuMemory or 0) / 2**30 for p in clients}
    return {"total": info.total / 2**30, "used": info.used / 2**30, "by_pid": by_pid}


def facts(bench: Bench) -> dict[str, Any]:
    """Machine, versions and date: a figure without them is worth nothing."""
    found: dict[str, Any] = {
        "measurement": bench.name,
        "command": sys.argv,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rehearsal": bench.dry_run,
        "scepsy_hpc": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "num_cpus": os.cpu_count(),
    }
    if not bench.dry_run:
        query = "name,uuid,memory.total,driver_version,compute_mode,clocks.max.sm,power.limit"
        found["gpu"] = said_by("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        versions = (
            "import torch, vllm; print(torch.__version__, torch.version.cuda, vllm.__version__)"
        )
        found["torch_cuda_vllm"] = said_by(vllm.python(), "-c", versions).splitlines()[-1:]
    return found


def said_by(*command: str, timeout_s: float = 120.0) -> str:
    """Output of a command, errors included; never raises: what is missing is a finding, too."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be run: {error}"
    return done.stdout.strip() + (f"\nexit code {done.returncode}" if done.returncode else "")


Measure = Callable[[Bench, argparse.Namespace], Coroutine[Any, Any, None]]


def run(
    name: str,
    doc: str | None,
    measure: Measure,
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    arguments: Sequence[str] | None = None,
) -> int:
    """The command line of a measurement; returns its exit code, the archive written in any case."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for results and archive")
    parser.add_argument("--dry-run", action="store_true", help="simulated engines, no GPU")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    bench = Bench(name, options.out.absolute(), options.dry_run)
    (bench.folder / "logs").mkdir(parents=True, exist_ok=True)
    before = os.getcwd()
    try:
        os.chdir(bench.models)
        bench.save("facts.json", facts(bench))
        asyncio.run(measure(bench, options))
        code = 0
    except ScepsyError as error:
        bench.say(f"error: {error}")
        code = 1
    finally:
        os.chdir(before)
        bench.say(f"wrote {archive(bench)}")
    return code


def archive(bench: Bench) -> Path:
    """Everything of the measurement in one file."""
    path = bench.out / f"{bench.name}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(bench.folder, arcname=bench.name)
    return path


def figures(point: Point) -> dict[str, Any]:
    """What is compared of a point."""
    kept = ("concurrency", "num_requests", "throughput_rps", "latency_mean_s", "latency_p95_s")
    return {key: getattr(point, key) for key in (*kept, "ttft_mean_s", "tpot_mean_s")}
