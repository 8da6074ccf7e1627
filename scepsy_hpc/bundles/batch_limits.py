"""How many sequences an engine batches at once where nobody set it: the versions' own defaults.

Read in the engines' sources and documentation, 2026-11: vLLM ``EngineArgs.get_batch_defaults``
(1,024 on GPUs of 70 GiB and more that are no A100, else 256; on CPUs 128 a worker), SGLang
``ModelRunner`` (tokens / context length x 512, between 2,048 and 4,096: its lower end stands
here), TensorRT-LLM "Tuning Max Batch Size and Max Num Tokens" (2,048).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from scepsy_hpc.bundles.step_time import DEFAULT_NUM_SEQS
from scepsy_hpc.formats.bundle import BundleHeader
from scepsy_hpc.formats.parallelism import is_cpu_type
from scepsy_hpc.formats.workflow import EngineArgs

_LARGE_GIB = 70.0


@dataclass(frozen=True, slots=True)
class _Default:
    """From ``version`` on: sequences on a large GPU (70 GiB, no A100), on others, a CPU worker."""

    engine: str
    version: tuple[int, ...]
    large: int
    other: int
    cpu_worker: int | None = None

    def at(self, gpu_type: str, gpu_memory_gib: float, tp_degree: int) -> int | None:
        """The default on that hardware; None where it is not recorded."""
        if is_cpu_type(gpu_type):
            workers = 1 if self.engine == "simulated" else tp_degree
            return None if self.cpu_worker is None else self.cpu_worker * workers
        large = gpu_memory_gib >= _LARGE_GIB and not gpu_type.startswith("a100")
        return self.large if large else self.other


_DEFAULTS = (
    _Default("vllm", (0, 30), 1024, 256, 128),
    _Default("vllm", (0, 9), 1024, 256),
    _Default("vllm", (0, 1), 256, 256),
    _Default("sglang", (0, 3), 2048, 2048),
    _Default("trtllm", (0, 11), 2048, 2048),
    _Default("simulated", (), DEFAULT_NUM_SEQS, DEFAULT_NUM_SEQS, DEFAULT_NUM_SEQS),
)


def default_num_seqs(
    engine: str, version: str, gpu_type: str, gpu_memory_gib: float, tp_degree: int = 1
) -> int | None:
    """The recorded default; None where engine or version are not recorded.

    A version that is not a number (`unknown`) has the least of those recorded of its engine.
    """
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    found = []
    for known in _DEFAULTS:
        if known.engine == engine and (not numbers or numbers >= known.version):
            found.append(known.at(gpu_type, gpu_memory_gib, tp_degree))
    if numbers:
        return found[0] if found else None
    limits = [limit for limit in found if limit is not None]
    return min(limits, default=None) if len(limits) == len(found) else None


def batch_limit(header: BundleHeader, tp_degree: int, args: EngineArgs | None = None) -> int | None:
    """``max_num_seqs`` of the arguments (the bundle's where none are given), else the default."""
    stated = (header.engine_args if args is None else args).get("max_num_seqs")
    if isinstance(stated, int | float | str):
        return int(stated)
    return default_num_seqs(
        header.engine, header.engine_version, header.gpu_type, header.gpu_memory_gib, tp_degree
    )
