"""The one table of GPU types: NVML names, memory, how the GPUs of a node are joined.

NVML names are those that ``nvidia-smi -L`` prints; memory is the vendor's nominal size (data
sheets), used only where the hardware cannot be asked (a Slurm partition seen from a login node).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.parallelism import CPU_TYPE, Link


@dataclass(frozen=True, slots=True)
class GpuType:
    """One GPU type; ``gres`` are the names that sites give it in Slurm."""

    name: str
    memory_gib: float
    link: Link
    nvml: tuple[str, ...] = ()
    gres: tuple[str, ...] = ()


GPU_TYPES: tuple[GpuType, ...] = (
    GpuType("b200_sxm", 180, "nvlink", (r"NVIDIA B200",), ("b200",)),
    GpuType("gh200", 96, "pcie", (r"NVIDIA GH200.*",), ("gh200",)),
    GpuType("h200_sxm", 141, "nvlink", (r"NVIDIA H200",), ("h200",)),
    GpuType("h200_nvl", 141, "nvlink", (r"NVIDIA H200 NVL",), ("h200_nvl", "h200nvl")),
    GpuType("h100_sxm", 80, "nvlink", (r"NVIDIA H100 80GB HBM3", r"NVIDIA H100"), ("h100",)),
    GpuType("h100_pcie", 80, "pcie", (r"NVIDIA H100 PCIe",), ("h100_pcie", "h100pcie")),
    GpuType("h100_nvl", 94, "nvlink", (r"NVIDIA H100 NVL",), ("h100_nvl", "h100nvl")),
    GpuType(
        "a100_sxm", 80, "nvlink", (r"NVIDIA A100-SXM4-80GB",), ("a100", "a100_80gb", "a100_80")
    ),
    GpuType("a100_sxm_40gb", 40, "nvlink", (r"NVIDIA A100-SXM4-40GB",), ("a100_40gb", "a100_40")),
    GpuType("a100_pcie", 80, "pcie", (r"NVIDIA A100 80GB PCIe",), ("a100_pcie", "a100pcie")),
    GpuType("a100_pcie_40gb", 40, "pcie", (r"NVIDIA A100-PCIE-40GB",), ("a100_pcie_40gb",)),
    GpuType("l40s", 48, "pcie", (r"NVIDIA L40S",), ("l40s",)),
    GpuType("l40", 48, "pcie", (r"NVIDIA L40",), ("l40",)),
    GpuType("l4", 24, "pcie", (r"NVIDIA L4",), ("l4",)),
    GpuType("a40", 48, "pcie", (r"NVIDIA A40",), ("a40",)),
    GpuType("a30", 24, "pcie", (r"NVIDIA A30",), ("a30",)),
    GpuType("rtx_6000_ada", 48, "pcie", (r"NVIDIA RTX 6000 Ada Generation",), ("rtx6000ada",)),
    GpuType("rtx_a6000", 48, "pcie", (r"NVIDIA RTX A6000",), ("rtxa6000", "a6000")),
    GpuType("rtx_4090", 24, "pcie", (r"NVIDIA GeForce RTX 4090",), ("rtx4090",)),
    GpuType("rtx_3090", 24, "pcie", (r"NVIDIA GeForce RTX 3090",), ("rtx3090",)),
    GpuType("v100_sxm_32gb", 32, "nvlink", (r"Tesla V100-SXM2-32GB",), ("v100", "v100_32gb")),
    GpuType("v100_sxm_16gb", 16, "nvlink", (r"Tesla V100-SXM2-16GB",), ("v100_16gb",)),
    # A virtual GPU for CPU engines: a fixed fraction of one core (cluster/cpu_slices.py).
    GpuType(CPU_TYPE, 4, "nvlink", (), (CPU_TYPE,)),
)

_BY_NAME = {gpu.name: gpu for gpu in GPU_TYPES}


def from_nvml_name(name: str) -> str:
    """GPU type of an NVML product name.

    A name that is not in the table becomes its own type (lower case, underscores), so that a new
    card works before the table knows it.
    """
    for gpu in GPU_TYPES:
        if any(re.fullmatch(pattern, name) for pattern in gpu.nvml):
            return gpu.name
    cleaned = re.sub(r"^(nvidia|tesla)[ -]+", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "_", cleaned.lower()).strip("_")


def from_gres(name: str, where: str) -> GpuType:
    """GPU type of a Slurm gres type (``h100`` in ``gpu:h100:4``), or of our own name for it.

    Raises InputError when the table knows neither.
    """
    for gpu in GPU_TYPES:
        if name.lower() in (gpu.name, *gpu.gres):
            return gpu
    raise _unknown(name, where, "; give --gpu-type TYPE and --gpu-memory-gib GIB")


def known(name: str) -> GpuType | None:
    """The table's entry of that type, or None."""
    return _BY_NAME.get(name)


def look_up(name: str, where: str, fix: str = "") -> GpuType:
    """The table's entry of that type. Raises InputError, ended by ``fix``, where it has none."""
    if name not in _BY_NAME:
        raise _unknown(name, where, fix)
    return _BY_NAME[name]


def _unknown(name: str, where: str, fix: str) -> InputError:
    return InputError(
        f"{where}: gpu_type: {name!r} is not in the table; known: {', '.join(_BY_NAME)}{fix}"
    )
