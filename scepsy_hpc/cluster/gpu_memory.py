"""Whether the memory of GPUs is free again: what was killed gives it back a little later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from scepsy_hpc.cluster.discovery import nvml_session
from scepsy_hpc.errors import InputError

_LOOK_S = 0.25


async def wait_for_memory(gpus: Sequence[str], needed: float, limit_s: float) -> str | None:
    """Return when that part of each GPU's memory is free; after ``limit_s``, in words, what is.

    None also where nobody can be asked: without NVML, or under a name that it does not know.
    """
    until_s = time.monotonic() + limit_s
    while True:
        free = await asyncio.to_thread(_free_parts, gpus)
        short = {gpu: part for gpu, part in free.items() if part < needed}
        if not short:
            return None
        if time.monotonic() >= until_s:
            found = ", ".join(f"GPU {gpu}: {part:.0%}" for gpu, part in short.items())
            return (
                f"{limit_s:g} s after the last engine there ended, {needed:.0%} of the memory are "
                f"not free ({found}): something else holds it, nvidia-smi names what"
            )
        await asyncio.sleep(_LOOK_S)


def _free_parts(gpus: Sequence[str]) -> dict[str, float]:
    """Free memory of each over all of it; empty where NVML does not tell."""
    try:
        with nvml_session("{}") as nvml:
            found = {}
            for gpu in gpus:
                if gpu.isdigit():
                    handle = nvml.nvmlDeviceGetHandleByIndex(int(gpu))
                else:
                    handle = nvml.nvmlDeviceGetHandleByUUID(gpu)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                found[gpu] = memory.free / memory.total
            return found
    except InputError:
        return {}
