"""``site.yaml``: what one Slurm site wants to hear. Nothing about a site stands in the code."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Count, Positive, read_yaml, record

SITE_SCHEMA = "scepsy/site/v1"

SbatchValue = str | int | float | bool
# Options with a key of their own, or that follow from the work; a second voice would win silently.
_OWNED = {
    "account": "account",
    "array": "array_parallelism",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_gpu",
    "error": "",
    "gpus-per-node": "gpu_request",
    "gres": "gpu_request",
    "job-name": "",
    "mem": "mem_gib_per_gpu",
    "nodes": "",
    "ntasks-per-node": "",
    "open-mode": "",
    "output": "",
    "partition": "partition",
    "qos": "qos",
    "signal": "",
    "time": "time_min",
}


@record
class Site:
    """How jobs are asked for here; every key is optional.

    ``gpu_names`` maps a GPU type of the topology to the site's name in ``--gres=gpu:NAME:N``; an
    empty name asks for GPUs without a type, and ``none`` asks for no GPU at all (CPU engines).
    """

    name: str = "site"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_request: Literal["gres", "gpus_per_node"] = "gres"
    gpu_names: dict[str, str] = field(default_factory=dict)
    cpus_per_gpu: Count | None = None
    mem_gib_per_gpu: Positive | None = None
    time_min: Count = 60
    array_parallelism: Count | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    sbatch: dict[str, SbatchValue] = field(default_factory=dict)
    srun: tuple[str, ...] = ()


def load_site(path: Path | str | None) -> Site:
    """Read and check ``site.yaml``; None gives Slurm's own defaults. Raises InputError."""
    if path is None:
        return Site()
    site = read_yaml(path, Site, SITE_SCHEMA)
    for key in site.sbatch:
        option = key.lstrip("-").replace("_", "-")
        if option in _OWNED:
            better = _OWNED[option]
            hint = f"use the key `{better}`" if better else "it follows from the work"
            raise InputError(f"{path}: sbatch.{key}: cannot be set here; {hint}")
    return site


def gpu_options(site: Site, gpu_type: str | None, gpus_per_node: int) -> dict[str, str]:
    """The one Slurm option, if any, that asks for GPUs: name (with underscores) to value."""
    name = site.gpu_names.get(gpu_type or "", "")
    if gpus_per_node == 0 or name == "none":
        return {}
    if site.gpu_request == "gres":
        return {"gres": ":".join(part for part in ("gpu", name, str(gpus_per_node)) if part)}
    return {"gpus_per_node": ":".join(part for part in (name, str(gpus_per_node)) if part)}
