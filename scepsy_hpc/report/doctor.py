"""What is missing on this machine or site, and the fix."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scepsy_hpc.cluster import cpu_slices
from scepsy_hpc.cluster.discovery import discover_local
from scepsy_hpc.cluster.site import Site, load_site
from scepsy_hpc.engines import vllm
from scepsy_hpc.errors import InputError, RunError, ScepsyError
from scepsy_hpc.files import record

MIN_DISK_GIB = 5.0


@record
class Finding:
    """One thing looked at. ``needed_for`` says which commands do without it."""

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    needed_for: str
    fix: str = ""


def examine(site_path: Path | None = None) -> list[Finding]:
    """Look at everything; nothing is changed. Raises InputError for a bad site file."""
    site = load_site(site_path)
    return [check.finding(site) for check in _CHECKS]


@dataclass(frozen=True, slots=True)
class _Check:
    """``look`` returns what it found; it raises InputError for missing, RunError for broken.

    The fix is ``fix``, else what the error says behind its first semicolon.
    """

    what: str
    needed_for: str
    look: Callable[[Site], str]
    fix: str = ""

    def finding(self, site: Site) -> Finding:
        state: Literal["ok", "missing", "broken"] = "ok"
        try:
            detail, fix = self.look(site), ""
        except ScepsyError as error:
            state = "broken" if isinstance(error, RunError) else "missing"
            detail, _, fix = str(error).partition("; ")
            fix = self.fix or fix
        return Finding(
            what=self.what, state=state, detail=detail, needed_for=self.needed_for, fix=fix
        )


def _python(site: Site) -> str:
    return f"{'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"


def _gpus(site: Site) -> str:
    node = discover_local().nodes[0]
    groups = ", ".join(f"{len(d.gpus)} by {d.link}" for d in node.domains)
    return f"{len(node.gpus)} x {node.gpu_type} ({node.gpu_memory_gib:g} GiB), joined: {groups}"


def _vllm(site: Site) -> str:
    python = vllm.python()
    return f"{vllm.installed_version(python)} ({python})"


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
    return _call("sinfo", "--version").stdout.strip() or str(shutil.which("sbatch"))


def _partitions(site: Site) -> str:
    if shutil.which("sinfo") is None:
        raise InputError("cannot be asked without sinfo")
    done = _call("sinfo", "-h", "-o", "%R %G")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-1]
        raise RunError(f"{said}; check SLURM_CONF and that the controller is up (`scontrol ping`)")
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


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer within 20 s")


_CHECKS = (
    _Check("Python", "all", _python),
    _Check(
        "GPUs (NVML)",
        "run --cluster local with real engines, topology --local",
        _gpus,
        "run on a GPU node; planning and simulated engines need none",
    ),
    _Check(
        "vLLM",
        "profile, run and serve with engine vllm",
        _vllm,
        "pip install 'scepsy-hpc[vllm]', or set SCEPSY_VLLM_PYTHON to a Python that has it",
    ),
    _Check(
        "MPS",
        "GPU shares below 100 on real GPUs",
        _mps,
        "it comes with the NVIDIA driver; without it plan with gpu_shares_pct: [100]",
    ),
    _Check(
        "Slurm commands",
        "--cluster slurm (sbatch, squeue), topology --slurm (sinfo)",
        _slurm,
        "run on a login node, or load the site's slurm module",
    ),
    _Check("Slurm partitions", "--cluster slurm", _partitions),
    _Check(
        "Agent packages",
        "the shipped workflows (rag_rerank, beam_search)",
        _agents,
        "pip install 'scepsy-hpc[workflows]'",
    ),
    _Check(
        "CPU slices",
        "GPU type cpu_slice (vLLM on CPUs, for tests)",
        lambda site: str(cpu_slices.find_parent()),
    ),
    _Check("Node-local disk", "engine caches", _local_disk),
)
