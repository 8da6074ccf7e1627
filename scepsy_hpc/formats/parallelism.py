"""What one replica runs on: GPU type, link, TP degree, share; and the memory that leaves it."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

Link = Literal["nvlink", "pcie", "cross_numa"]

SharePct = Annotated[int, Field(ge=1, le=100)]

CPU_TYPE = "cpu_slice"
"""GPU type of the virtual GPUs that CPU engines run on (`cluster/cpu_slices.py`)."""

RESERVE_GIB = 2.0
"""Memory of each GPU that no engine may plan with: CUDA context and fragmentation."""

GIB = 2.0**30


class Parallelism(NamedTuple):
    """What one replica takes: ``gpu_share_pct`` of each of ``tp_degree`` GPUs of one domain.

    ``link`` None means that the link does not matter, which only TP 1 may say. ``gpu_type`` is
    ``Node.full_gpu_type``: MIG instances are a type of their own.
    """

    gpu_type: str
    link: Link | None
    tp_degree: int
    gpu_share_pct: int


def is_cpu_type(gpu_type: str) -> bool:
    """Whether GPUs of this type are slices of CPU cores."""
    return gpu_type.split(":")[0] == CPU_TYPE


def can_be_shared(gpu_type: str) -> bool:
    """Whether MPS can divide GPUs of this type: no CPU slices, no MIG instances."""
    return not is_cpu_type(gpu_type) and ":" not in gpu_type


def usable_memory_gib(gpu_memory_gib: float, gpu_share_pct: float, tp_degree: int = 1) -> float:
    """Memory that one instance may use on all its GPUs: share x (GPU memory - reserve) on each."""
    return tp_degree * gpu_share_pct / 100.0 * (gpu_memory_gib - RESERVE_GIB)


def gpu_memory_of_gib(usable_gib: float, gpu_share_pct: float) -> float:
    """The GPU memory of which so much is usable at this share: the rule above, turned round."""
    return usable_gib * 100.0 / gpu_share_pct + RESERVE_GIB
