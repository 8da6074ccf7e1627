"""What is missing on this machine or site, and the fix."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from scepsy_hpc.cluster import cpu_slices
from scepsy_hpc.cluster.discovery import discover_local
from scepsy_hpc.cluster.site import Site, job_python, load_site
from scepsy_hpc.engines import vllm
from scepsy_hpc.engines.vllm import interpreter_of
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.report.doctor_site import site_checks
from scepsy_hpc.report.findings import Check, Finding, call, findings_of, said_last

MIN_DISK_GIB = 5.0


def examine(site_path: Path | None = None, results: Path | None = None) -> list[Finding]:
    """Look at this machine, and at what a site wants of it; nothing is changed.

    ``results`` is where results of this site will lie. Raises InputError for a bad site file.
    """
    site = load_site(site_path)
    found = findings_of(_CHECKS, site)
    if site_path is not None:
        found += findings_of(site_checks(site, results or Path.cwd()), site)
    return found


def _python(site: Site) -> str:
    return f"{'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"


def _gpus(site: Site) -> str:
    node = discover_local().nodes[0]
    groups = ", ".join(f"{len(d.gpus)} by {d.link}" for d in node.domains)
    return f"{len(node.gpus)} x {node.gpu_type} ({node.gpu_memory_gib:g} GiB), joined: {groups}"


def _vllm(site: Site) -> str:
    box = site.container
    if box and (box.wraps == "jobs" or shutil.which(box.runtime) is None):
        return f"in {box.image}; the job that looks at a node looks there"
    interpreter = interpreter_of(site) if box else [job_python(site) or vllm.python()]
    return f"{vllm.installed_version(*interpreter)} ({' '.join(interpreter)})"


def _mps(site: Site) -> str:
    path = shutil.which("nvidia-cuda-mps-control")
    if path is None:
        raise InputError("nvidia-cuda-mps-control is not on PATH")
    return path


def _slurm(site: Site) -> str:
    lacking = [name for name in ("sbatch", "squeue", "sinfo", "srun") if shutil.which(name) is None]
    if lacking:
        raise InputError(f"not on PATH: {', '.join(lacking)}")
    # Some versions of sinfo read slurm.conf first and then say nothing of themselves.
    return call("sinfo", "--version").stdout.strip() or str(shutil.which("sbatch"))


def _partitions(site: Site) -> str:
    if shutil.which("sinfo") is None:
        raise InputError("cannot be asked without sinfo")
    done = call("sinfo", "-h", "-o", "%R %G")
    if done.returncode != 0:
        raise RunError(
            f"{said_last(done)}; check SLURM_CONF and that the controller is up (`scontrol ping`)"
        )
    rows = dict(line.partition(" ")[::2] for line in done.stdout.splitlines() if line.strip())
    if site.partition and site.partition not in rows:
        raise RunError(
            f"{site.partition!r} is not among: {', '.join(rows)}; correct `partition` in the site "
            "file"
        )
    return ", ".join(f"{name} ({gres})" for name, gres in rows.items())


def _agents(site: Site) -> str:
    lacking = [name for name in ("openai", "bm25s") if importlib.util.find_spec(name) is None]
    if lacking:
        raise InputError(f"not installed: {', '.join(lacking)}")
    return "openai, bm25s"


def _local_disk(site: Site) -> str:
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    free_gib = shutil.disk_usage(folder).free / 2**30
    found = f"{free_gib:.0f} GiB free in {folder}"
    if free_gib < MIN_DISK_GIB:
        raise RunError(f"{found}; point TMPDIR to a larger node-local disk")
    return found


_CHECKS = (
    Check("Python", "all", _python),
    Check(
        "GPUs (NVML)",
        "run --cluster local with real engines, topology --local",
        _gpus,
        "run on a GPU node; planning and simulated engines need none",
    ),
    Check(
        "vLLM",
        "profile, run and serve with engine vllm",
        _vllm,
        "pip install 'scepsy-hpc[vllm]', or set SCEPSY_VLLM_PYTHON to a Python that has it",
    ),
    Check(
        "MPS",
        "GPU shares below 100 on real GPUs",
        _mps,
        "it comes with the NVIDIA driver; without it plan with gpu_shares_pct: [100]",
    ),
    Check(
        "Slurm commands",
        "--cluster slurm (sbatch, squeue), topology --slurm (sinfo)",
        _slurm,
        "run on a login node, or load the site's slurm module",
    ),
    Check("Slurm partitions", "--cluster slurm", _partitions),
    Check(
        "Agent packages",
        "the shipped workflows (rag_rerank, beam_search)",
        _agents,
        "pip install 'scepsy-hpc[workflows]'",
    ),
    Check(
        "CPU slices",
        "GPU type cpu_slice (vLLM on CPUs, for tests)",
        lambda site: str(cpu_slices.find_parent()),
    ),
    Check("Node-local disk", "engine caches", _local_disk),
)
