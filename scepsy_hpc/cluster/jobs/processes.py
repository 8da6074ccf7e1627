"""Tasks as processes of this machine, or as steps of the allocation we are in; a few at a time."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils as submitit_utils

from scepsy_hpc.cluster.jobs import slurm
from scepsy_hpc.cluster.jobs.entry import entry_command, quoted_command
from scepsy_hpc.cluster.jobs.tasks import (
    Board,
    Jobs,
    Resources,
    TaskOutcome,
    collect,
    run_task,
)
from scepsy_hpc.cluster.site import Site, gpu_options
from scepsy_hpc.errors import InputError

POLL_S = 0.1
CANCEL_S = 15.0

Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Launched:
    """A task that was started: its process, where each rank writes, what the launcher said."""

    job_id: str
    popen: subprocess.Popen[bytes]
    paths: tuple[submitit_utils.JobPaths, ...]
    log_path: Path | None = None

    def lost(self, code: int) -> str:
        """Why ranks have no result."""
        said = self.log_path.read_text(errors="replace").strip() if self.log_path else ""
        what = f"process {self.popen.pid} ended without a result (exit code {code})"
        return f"{what}: {said}" if said else what


class ProcessJobs(Jobs):
    """Starts tasks as places become free: a place is a set of GPUs, or just a turn."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[Any],
        launch: Callable[[int, Any, Sequence[int]], Launched],
        places: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(folder, len(arguments))
        self._arguments, self._launch = arguments, launch
        self._free = list(places)
        self._waiting = list(range(len(arguments)))
        self._running: dict[int, tuple[Launched, Sequence[int]]] = {}
        self._ids: list[str] = []
        self._cancelled = False
        self._fill()

    @property
    def ids(self) -> list[str]:
        """Ids of the tasks started so far."""
        return list(self._ids)

    def cancel(self) -> None:
        """Interrupt what runs, drop what waits."""
        self._cancelled = True
        until = time.monotonic() + CANCEL_S
        while self._alive() and time.monotonic() < until:
            # submitit's controller needs one, srun wants several in a row.
            for popen in self._alive():
                popen.send_signal(signal.SIGINT)
            time.sleep(0.3)
        for popen in self._alive():
            popen.kill()

    def _work_off(self, board: Board) -> None:
        while True:
            for i, (launched, place) in list(self._running.items()):
                code = launched.popen.poll()
                if code is None:
                    continue
                outcome = collect(i, launched.job_id, launched.paths, launched.lost(code))
                assert outcome is not None
                del self._running[i]
                self._free.append(place)
                board.add(outcome)
            self._fill()
            for i in self._waiting if self._cancelled else ():
                board.add(TaskOutcome(i, "", (None,), ("cancelled before it started",)))
            board.tell("")
            if not board.open:
                return
            time.sleep(POLL_S)

    def _fill(self) -> None:
        while self._waiting and self._free and not self._cancelled:
            i, place = self._waiting.pop(0), self._free.pop(0)
            launched = self._launch(i, self._arguments[i], place)
            self._running[i] = (launched, place)
            self._ids.append(launched.job_id)

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [job.popen for job, _ in self._running.values() if job.popen.poll() is None]


def local_jobs(
    folder: Path,
    function: Function,
    arguments: Sequence[Any],
    resources: Resources,
    local_gpus: Sequence[int],
) -> ProcessJobs:
    """Tasks as local processes. ``local_gpus`` are shared out; a rank stands for a node."""

    def launch(index: int, argument: Any, place: Sequence[int]) -> Launched:
        executor = submitit.LocalExecutor(folder, python=entry_command(shlex.quote(sys.executable)))
        executor.update_parameters(
            timeout_min=resources.time_min,
            tasks_per_node=resources.num_nodes,
            gpus_per_node=len(place),
            visible_gpus=tuple(place),
            signal_delay_s=min(90, resources.time_min * 15),
        )
        job = executor.submit(run_task, function, argument)
        paths = tuple(job.task(rank).paths for rank in range(job.num_tasks))
        return Launched(job.job_id, job._process, paths)

    wanted = resources.gpus_per_node * resources.num_nodes
    if wanted and local_gpus:
        if wanted > len(local_gpus):
            raise InputError(
                f"--cluster local: a task needs {wanted} GPUs, this machine gives {len(local_gpus)}"
            )
        places = [
            local_gpus[i : i + wanted] for i in range(0, len(local_gpus) - wanted + 1, wanted)
        ]
    else:
        places = [()]
    return ProcessJobs(folder, arguments, launch, places)


def here_jobs(
    folder: Path, function: Function, arguments: Sequence[Any], resources: Resources, site: Site
) -> ProcessJobs:
    """Tasks as srun steps of the allocation we are in. Raises InputError outside one."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        raise InputError(
            "--cluster here: SLURM_JOB_ID is not set, so this is no Slurm allocation; use "
            "--cluster slurm on a login node or --cluster local"
        )

    def launch(index: int, argument: Any, place: Sequence[int]) -> Launched:
        own = folder / f"task{index}"
        own.mkdir(mode=0o700)
        paths = tuple(
            submitit_utils.JobPaths(own, job_id=job_id, task_id=rank)
            for rank in range(resources.num_nodes)
        )
        delayed = submitit_utils.DelayedSubmission(run_task, function, argument)
        delayed.set_timeout(resources.time_min, 0)
        delayed.dump(paths[0].submitted_pickle)
        environ = slurm.environment_for_step(os.environ) | {"SUBMITIT_EXECUTOR": "slurm"}
        with (own / "srun.log").open("wb") as log:
            popen = subprocess.Popen(
                step_command(own, resources, site),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return Launched(job_id, popen, paths, own / "srun.log")

    num_gpus = _gpus_here() * int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    wanted = resources.gpus_per_node * resources.num_nodes
    num_places = max(1, num_gpus // wanted) if wanted else 1
    return ProcessJobs(folder, arguments, launch, [()] * num_places)


def step_command(folder: Path, resources: Resources, site: Site) -> list[str]:
    """The srun line of one task inside this allocation: everything stated, nothing inherited."""
    # Without the site's name for the type: a job that asked for plain GPUs would not know it.
    asked = gpu_options(site, resources.gpu_type, resources.gpus_per_node)
    gpus = {"gres": f"gpu:{resources.gpus_per_node}" if asked else "none"}
    options = {
        "nodes": resources.num_nodes,
        "ntasks": resources.num_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus_per_task,
        "mem": 0,  # shares the job's memory instead of taking all of it from the next step
        "output": folder / "%j_%t_log.out",
        "error": folder / "%j_%t_log.err",
    } | gpus
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    command = shlex.split(quoted_command(slurm.python_command(site), folder))
    kill = slurm.OUTLIVES_TASKS if resources.no_kill else ()
    return [
        *("srun", "--exact", "--unbuffered", *flags, *kill, *site.srun),
        *command,
    ]


def _gpus_here() -> int:
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return int(count) if count.isdigit() else len([gpu for gpu in visible.split(",") if gpu])
