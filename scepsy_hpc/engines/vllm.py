"""vLLM: its command line and environment, as pure functions of an EngineConfig.

vLLM may live in another Python than this package: the environment variable
``SCEPSY_VLLM_PYTHON`` names its interpreter (default: the one that runs this).
Flags and variables checked against vLLM 0.32 and 0.33.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from scepsy_hpc.cluster.site import Site, engine_container, own_scratch, scratch_of
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import internal_port
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.parallelism import RESERVE_GIB, is_cpu_type, usable_memory_gib
from scepsy_hpc.formats.workflow import EngineArg

PYTHON_VARIABLE = "SCEPSY_VLLM_PYTHON"

# Arguments that follow from the instance, not from the engine_args of a file.
_OWNED = {
    "api_key": "keys travel through the environment",
    "gpu_memory_utilization": "it follows from gpu_share_pct",
    "host": "the run chooses it",
    "max_num_queued_reqs": "the run chooses it",
    "model": "it has its own key",
    "port": "the run chooses it",
    "served_model_name": "it follows from the aliases",
    "tensor_parallel_size": "it follows from tp_degree",
}


def vllm_command(
    config: EngineConfig, python: str = sys.executable, wrapper: Sequence[str] = ()
) -> list[str]:
    """The command that serves one instance. Raises InputError for an argument that is not free.

    ``wrapper`` is what stands before ``python``, say a container's.
    """
    line = [*wrapper, python, "-m", "vllm.entrypoints.cli.main", "serve", config.model]
    line += ["--served-model-name", *config.served_names]
    line += ["--host", config.host, "--port", str(config.port)]
    line += ["--tensor-parallel-size", str(config.tp_degree)]
    if not is_cpu_type(config.gpu_type):
        line += ["--gpu-memory-utilization", f"{memory_utilization(config):.4f}"]
    if config.max_queued is not None:
        line += ["--max-num-queued-reqs", str(config.max_queued)]
    line.append("--enable-prompt-tokens-details")  # else no usage says what its cache held
    for key, value in config.engine_args.items():
        line += _flag(key, value, config.instance_id)
    return line


def vllm_start(config: EngineConfig) -> tuple[list[str], dict[str, str]]:
    """Command and environment of an instance on this node, in the site's image if it has one.

    Raises InputError, also where there is no vLLM.
    """
    scratch = scratch_of(config.site)
    model = [config.model] if Path(config.model).is_absolute() else []
    *wrapper, interpreter = interpreter_of(config.site, str(scratch), *model)
    caches = cache_root(installed_version(*wrapper, interpreter), scratch)
    return vllm_command(config, interpreter, wrapper), vllm_environment(config, caches)


def memory_utilization(config: EngineConfig) -> float:
    """Usable memory of each GPU as a fraction of all of it, as vLLM takes it; rounded down."""
    fraction = usable_memory_gib(config.gpu_memory_gib, config.gpu_share_pct)
    fraction /= config.gpu_memory_gib
    if fraction <= 0:
        raise InputError(
            f"{config.instance_id}: gpu_memory_gib: {config.gpu_memory_gib:g} leaves nothing after "
            f"the reserve of {RESERVE_GIB:g} GiB"
        )
    return int(fraction * 10_000) / 10_000


def _flag(key: str, value: EngineArg, where: str) -> list[str]:
    name = key.strip("-").replace("-", "_")
    if name in _OWNED:
        raise InputError(f"{where}: engine_args: {key} cannot be set here: {_OWNED[name]}")
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    if value is False:
        return ["--no-" + name.replace("_", "-")]
    values = value if isinstance(value, tuple | list) else (value,)
    return [flag, *(str(v) for v in values)]


def vllm_environment(config: EngineConfig, cache_root: Path) -> dict[str, str]:
    """Variables to add to the inherited environment.

    ``cache_root`` is node-local, private to the user and to this version of vLLM: compiles that
    share a file system have corrupted each other's files.
    """
    found = {
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PORT": str(internal_port(config.port)),
        "VLLM_CACHE_ROOT": str(cache_root),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_root / "inductor"),
        "TRITON_CACHE_DIR": str(cache_root / "triton"),
    }
    if config.api_key:
        found["VLLM_API_KEY"] = config.api_key
    if is_cpu_type(config.gpu_type):
        return found | _cpu_environment(config.engine_args)
    found["CUDA_VISIBLE_DEVICES"] = ",".join(config.gpus)
    if is_shared(config.engine, config.gpu_type, config.gpu_share_pct):
        found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(config.gpu_share_pct)
        found |= config.mps_environment  # names the GPUs by UUID, as the daemon wants it
    return found


def takes_gpus(engine: str, gpu_type: str) -> bool:
    """Whether an instance runs on real GPUs: no simulated engine, no CPU slices."""
    return engine == "vllm" and not is_cpu_type(gpu_type)


def is_shared(engine: str, gpu_type: str, gpu_share_pct: int) -> bool:
    """Whether an instance is to be held to part of a real GPU, which takes MPS."""
    return takes_gpus(engine, gpu_type) and gpu_share_pct < 100


def _cpu_environment(engine_args: Mapping[str, EngineArg]) -> dict[str, str]:
    # A slice is a quota, not a core: one thread a rank, unpinned, wherever the kernel finds time.
    found = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    # A second process per engine would spend half of a slice on talking to the first.
    found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not {"kv_cache_memory_bytes", "kv-cache-memory-bytes"} & set(engine_args):
        found["VLLM_CPU_KVCACHE_SPACE"] = "1"
    return found


def python(environ: Mapping[str, str] = os.environ) -> str:
    """The interpreter that has vLLM, where no image brings its own."""
    return environ.get(PYTHON_VARIABLE) or sys.executable


def interpreter_of(site: Site, *binds: str) -> list[str]:
    """The interpreter that has vLLM on a node of this site, inside its image where it has one."""
    box = engine_container(site, *binds)
    return [*box, site.container.python] if box and site.container else [python()]


@cache
def installed_version(*interpreter: str) -> str:
    """The version of vLLM in an interpreter. Raises InputError when there is none."""
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    shown = interpreter[-1] if len(interpreter) == 1 else " ".join(interpreter)
    try:
        done = subprocess.run(
            [*interpreter, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        where = PYTHON_VARIABLE if len(interpreter) == 1 else "container"
        raise InputError(f"{where}: {shown} cannot be run: {error}") from None
    if done.returncode != 0:
        if len(interpreter) > 1:
            said = " ".join(done.stderr.split())[-300:] or "it said nothing"
            raise InputError(f"engine vllm: not found by {shown}: {said}; check container.image")
        raise InputError(
            f"engine vllm: not installed for {shown}; install the extra `scepsy-hpc[vllm]` "
            f"or set {PYTHON_VARIABLE} to a Python that has it"
        )
    return done.stdout.strip()


def cache_root(version: str, folder: Path | None = None) -> Path:
    """A node-local folder for caches, private (0700) to this user and one a version."""
    path = own_scratch(folder or Path(tempfile.gettempdir())) / f"vllm-{version}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
