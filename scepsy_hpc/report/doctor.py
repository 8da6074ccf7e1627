"""What is missing on this machine or site, and the fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from scepsy_hpc.cluster import cpu_slices
from scepsy_hpc.cluster.discovery import discover_local
from scepsy_hpc.cluster.site import Site, load_site
from scepsy_hpc.engines import vllm
from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.files import record

State = Literal["ok", "missing", "broken"]


@record
class Finding:
    """One thing looked at. ``needed_for`` says which commands do without it."""

    what: str
    state: State
    detail: str
    needed_for: str
    fix: str = ""


def examine(site_path: Path | None = None) -> list[Finding]:
    """Look at everything; nothing is changed. Raises InputError for a bad site file."""
    site = load_site(site_path)
    checks: list[Callable[[], Finding]] = [
        _python,
        _gpus,
        _vllm,
        _mps,
        lambda: _slurm(site),
        lambda: _partition(site),
        _agents,
        _cpu_slices,
        _local_disk,
    ]
    return [check() for check in checks]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(what="Python", state="ok", detail=f"{version} in {sys.prefix}", needed_for="all")


def _gpus() -> Finding:
    wanted = "run --cluster local with real engines, topology --local"
    try:
        node = discover_local().nodes[0]
    except ScepsyError as error:
        return Finding(
            what="GPUs (NVML)",
            state="missing",
            detail=str(error).split(";")[0],
            needed_for=wanted,
            fix="run on a GPU node; planning and simulated engines need none",
        )
    groups = ", ".join(f"{len(d.gpus)} by {d.link}" for d in node.domains)
    detail = f"{len(node.gpus)} x {node.gpu_type} ({node.gpu_memory_gib:g} GiB), joined: {groups}"
    return Finding(what="GPUs (NVML)", state="ok", detail=detail, needed_for=wanted)


def _vllm() -> Finding:
    wanted = "profile, run and serve with engine vllm"
    python = vllm.python()
    try:
        version = vllm.installed_version(python)
    except ScepsyError as error:
        return Finding(
            what="vLLM",
            state="missing",
            detail=str(error).split(";")[0],
            needed_for=wanted,
            fix="pip install 'scepsy-hpc[vllm]', or set SCEPSY_VLLM_PYTHON to a Python that has it",
        )
    return Finding(what="vLLM", state="ok", detail=f"{version} ({python})", needed_for=wanted)


def _mps() -> Finding:
    wanted = "GPU shares below 100 on real GPUs"
    path = shutil.which("nvidia-cuda-mps-control")
    if path is None:
        return Finding(
            what="MPS",
            state="missing",
            detail="nvidia-cuda-mps-control is not on PATH",
            needed_for=wanted,
            fix="it comes with the NVIDIA driver; without it plan with gpu_shares_pct: [100]",
        )
    return Finding(what="MPS", state="ok", detail=path, needed_for=wanted)


def _slurm(site: Site) -> Finding:
    wanted = "--cluster slurm (sbatch, squeue), topology --slurm (sinfo)"
    lacking = [name for name in ("sbatch", "squeue", "sinfo", "srun") if shutil.which(name) is None]
    if lacking:
        return Finding(
            what="Slurm commands",
            state="missing",
            detail=f"not on PATH: {', '.join(lacking)}",
            needed_for=wanted,
            fix="run on a login node, or load the site's slurm module",
        )
    # Some versions of sinfo read slurm.conf first and then say nothing of themselves.
    detail = _call("sinfo", "--version").stdout.strip() or str(shutil.which("sbatch"))
    return Finding(what="Slurm commands", state="ok", detail=detail, needed_for=wanted)


def _partition(site: Site) -> Finding:
    wanted = "--cluster slurm"
    if shutil.which("sinfo") is None:
        detail = "cannot be asked without sinfo"
        return Finding(what="Slurm controller", state="missing", detail=detail, needed_for=wanted)
    done = _call("sinfo", "-h", "-o", "%R %G")
    if done.returncode != 0:
        return Finding(
            what="Slurm controller",
            state="broken",
            detail=(done.stderr or done.stdout).strip().splitlines()[-1],
            needed_for=wanted,
            fix="check SLURM_CONF and that the controller is up (`scontrol ping`)",
        )
    rows = dict(line.partition(" ")[::2] for line in done.stdout.splitlines() if line.strip())
    if site.partition and site.partition not in rows:
        return Finding(
            what="Slurm partition",
            state="broken",
            detail=f"{site.partition!r} is not among: {', '.join(rows)}",
            needed_for=wanted,
            fix="correct `partition` in the site file",
        )
    listed = ", ".join(f"{name} ({gres})" for name, gres in rows.items())
    return Finding(what="Slurm partitions", state="ok", detail=listed, needed_for=wanted)


def _agents() -> Finding:
    import importlib.util

    wanted = "the shipped workflows (rag_rerank, beam_search)"
    lacking = [name for name in ("openai", "bm25s") if importlib.util.find_spec(name) is None]
    if lacking:
        return Finding(
            what="Agent packages",
            state="missing",
            detail=f"not installed: {', '.join(lacking)}",
            needed_for=wanted,
            fix="pip install 'scepsy-hpc[workflows]'",
        )
    return Finding(what="Agent packages", state="ok", detail="openai, bm25s", needed_for=wanted)


def _cpu_slices() -> Finding:
    wanted = "GPU type cpu_slice (vLLM on CPUs, for tests)"
    try:
        parent = cpu_slices.find_parent()
    except ScepsyError as error:
        detail = str(error).split(";")[0]
        return Finding(what="CPU slices", state="missing", detail=detail, needed_for=wanted)
    return Finding(what="CPU slices", state="ok", detail=str(parent), needed_for=wanted)


def _local_disk() -> Finding:
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    wanted = "engine caches"
    free_gib = shutil.disk_usage(folder).free / 2**30
    state: State = "ok" if free_gib >= 5 else "broken"
    return Finding(
        what="Node-local disk",
        state=state,
        detail=f"{free_gib:.0f} GiB free in {folder}",
        needed_for=wanted,
        fix="" if state == "ok" else "point TMPDIR to a larger node-local disk",
    )


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer within 20 s")
