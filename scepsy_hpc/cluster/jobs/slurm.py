"""Slurm from the outside: a clean environment, sbatch parameters, and states from squeue alone.

Neither sacct nor scontrol is needed: small clusters lack the one, compute nodes the other.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm import slurm as submitit_slurm

from scepsy_hpc.cluster.jobs.entry import quoted_command
from scepsy_hpc.cluster.jobs.tasks import Resources
from scepsy_hpc.cluster.site import Site, expanded, gpu_options, job_container, job_python
from scepsy_hpc.errors import InputError

# Says where Slurm is, not what a job is like.
_KEEP = ("SLURM_CONF", "SLURM_JWT")
# A user's standing choice; kept where site.yaml does not choose, as it would win over the script.
_USER_CHOICE = ("account", "partition", "qos", "constraint", "reservation")
# Inside an allocation srun needs to know its job, but not the shape of the step that called it.
_STEP_SHAPE = (
    "SLURM_ARRAY_",
    "SLURM_CPUS_PER_",
    "SLURM_CPU_BIND",
    "SLURM_DISTRIBUTION",
    "SLURM_GPUS",
    "SLURM_GTIDS",
    "SLURM_LAUNCH_",
    "SLURM_LOCALID",
    "SLURM_MEM_",
    "SLURM_NODEID",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_SRUN_",
    "SLURM_STEP",
    "SLURM_TASK",
    "SLURM_THREADS_PER_CORE",
    "SLURM_TRES_",
    "SLURM_UMASK",
    "SRUN_",
    "SUBMITIT_",
)
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)


def environment_for_sbatch(environ: Mapping[str, str], site: Site) -> dict[str, str]:
    """The environment without what an enclosing job left in it, which would reshape a new job."""
    chosen = {name for name in _USER_CHOICE if getattr(site, name, None) is None}
    kept_choices = {f"SBATCH_{name.upper()}" for name in chosen}
    dropped = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_")
    return {
        key: value
        for key, value in environ.items()
        if key in _KEEP or key in kept_choices or not key.startswith(dropped)
    }


def environment_for_step(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for an srun inside this allocation, without the shape of our own step."""
    return {key: value for key, value in environ.items() if not key.startswith(_STEP_SHAPE)}


# A step that goes on when a node or one of its processes dies, whatever slurm.conf says of that.
OUTLIVES_TASKS = ("--no-kill", "--kill-on-bad-exit=0", "--wait=0")


def sbatch_parameters(need: Resources, site: Site, name: str) -> dict[str, Any]:
    """Parameters for submitit's SlurmExecutor. One task a node."""
    no_kill = OUTLIVES_TASKS if need.no_kill else ()
    extra = {key.lstrip("-").replace("_", "-"): value for key, value in site.sbatch.items()}
    if need.no_kill:
        extra["no-kill"] = True
    found = {
        "job_name": name,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        # An integer of minutes: the only form in which submitit's own idea of the limit agrees.
        "time": need.time_min,
        "nodes": need.num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": need.cpus_per_task,
        "mem": f"{int(need.mem_gib * 1024)}M" if need.mem_gib else None,
        "array_parallelism": site.array_parallelism or 256,
        "dependency": need.dependency,
        "signal_delay_s": min(90, need.time_min * 15),
        "additional_parameters": {k: v for k, v in extra.items() if v is not False} or None,
        "setup": list(site.setup) or None,
        "srun_args": [f"--cpus-per-task={need.cpus_per_task}", *no_kill, *site.srun],
        "wckey": None,
    }
    return found | gpu_options(site, need.gpu_type, need.gpus_per_node)


def python_command(site: Site) -> str:
    """The Python of the jobs, in the site's image where jobs run in one; quoted for a shell."""
    box = job_container(site)
    if box and site.container:
        return shlex.join([*box, site.container.python])
    return shlex.quote(expanded(job_python(site) or sys.executable, "python"))


def sbatch_text(folder: Path, site: Site, parameters: Mapping[str, Any], num_tasks: int) -> str:
    """What would be given to sbatch: submitit's own text. Needs no Slurm on this machine."""
    command = quoted_command(python_command(site), folder)
    array = {"map_count": num_tasks} if num_tasks > 1 else {}
    text: str = submitit_slurm._make_sbatch_string(
        command=command, folder=folder, **parameters, **array
    )
    return text


def require_slurm() -> None:
    """Raises InputError when this machine cannot submit."""
    missing = [name for name in ("sbatch", "squeue", "srun") if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"--cluster slurm: {', '.join(missing)} not found on this machine; run on a login "
            "node, or use --cluster here inside an allocation, or --cluster local"
        )


@dataclass(frozen=True, slots=True)
class QueueView:
    """What squeue said: states by job id; ``known`` is False when it did not answer."""

    known: bool
    states: Mapping[str, str]
    note: str = ""


def ask_squeue(
    words: Iterable[str], site: Site, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """What squeue says, without a head. Raises OSError and subprocess.TimeoutExpired."""
    return subprocess.run(
        ["squeue", "-h", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment_for_sbatch(os.environ, site),
    )


def squeue(job_ids: Iterable[str], site: Site, timeout_s: float = 30.0) -> QueueView:
    """States of jobs and of array members (``12``, ``12_3``), as long as Slurm remembers them."""
    masters = sorted({job_id.split("_")[0] for job_id in job_ids})
    words = ["-r", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(masters)]
    try:
        done = ask_squeue(words, site, timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return QueueView(False, {}, f"squeue does not answer: {error}")
    if done.returncode != 0 and "invalid job id" not in done.stderr.lower():
        return QueueView(False, {}, f"squeue does not answer: {done.stderr.strip()[:200]}")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    reasons = {reason for _, state, reason in rows if state == "PENDING" and reason != "None"}
    return QueueView(True, {job_id: state for job_id, state, _ in rows}, ", ".join(sorted(reasons)))
