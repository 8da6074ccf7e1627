"""The command line and environment of vLLM, as pure functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scepsy_hpc.cluster.site import Container, Site
from scepsy_hpc.engines import vllm
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.parallelism import usable_memory_gib

CONFIG = EngineConfig(
    instance_id="generator-0",
    engine="vllm",
    model="meta-llama/Llama-3.1-8B-Instruct",
    served_names=("generator", "answer"),
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    gpus=("GPU-a", "GPU-b"),
    port=20_040,
    log_path=Path("engine.log"),
    tp_degree=2,
    engine_args={"max_model_len": 4096, "enable_prefix_caching": False, "enforce-eager": True},
    api_key="secret-key",
    max_queued=64,
)
CACHES = Path("/local/caches")


def test_command_states_everything():
    """The command names model, aliases, address, TP, memory, queue limit and the engine_args."""
    assert vllm.vllm_command(CONFIG, python="python3") == [
        *("python3", "-m", "vllm.entrypoints.cli.main", "serve"),
        "meta-llama/Llama-3.1-8B-Instruct",
        *("--served-model-name", "generator", "answer"),
        *("--host", "127.0.0.1", "--port", "20040"),
        *("--tensor-parallel-size", "2"),
        *("--gpu-memory-utilization", "0.9750"),
        *("--max-num-queued-reqs", "64"),
        "--enable-prompt-tokens-details",
        *("--max-model-len", "4096", "--no-enable-prefix-caching", "--enforce-eager"),
    ]


def test_key_is_not_on_the_command_line():
    """The API key goes through the environment: a process list is public."""
    assert "secret-key" not in " ".join(vllm.vllm_command(CONFIG))
    assert vllm.vllm_environment(CONFIG, CACHES)["VLLM_API_KEY"] == "secret-key"


@pytest.mark.parametrize(("share", "gib"), [(100, 78.0), (50, 39.0), (25, 19.5)])
def test_memory_follows_from_the_share(share, gib):
    """Memory is share x (GPU memory - 2 GiB), given to vLLM as a fraction of total memory."""
    config = replace(CONFIG, gpu_share_pct=share)
    assert usable_memory_gib(config.gpu_memory_gib, share) == pytest.approx(gib)
    given = float(_value(vllm.vllm_command(config), "--gpu-memory-utilization"))
    assert gib - 0.01 < given * 80.0 <= gib


def test_share_limits_the_sms():
    """A share below 100 sets the MPS limit of the client; a whole GPU sets none."""
    variable = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
    shared = vllm.vllm_environment(replace(CONFIG, gpu_share_pct=50), CACHES)
    assert shared[variable] == "50"
    assert variable not in vllm.vllm_environment(CONFIG, CACHES)
    assert shared["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_caches_and_ports_are_the_instance_s_own():
    """Compile caches are where they are told, internal ports lie between two HTTP ports."""
    found = vllm.vllm_environment(CONFIG, CACHES)
    assert found["VLLM_CACHE_ROOT"] == "/local/caches"
    assert found["TORCHINDUCTOR_CACHE_DIR"].startswith("/local/caches/")
    assert CONFIG.port < int(found["VLLM_PORT"]) < CONFIG.port + 40


def test_cpu_engine_sees_no_gpu_options():
    """On CPU slices there is no memory fraction, no device and no MPS, but threads and a cache."""
    config = replace(CONFIG, gpu_type="cpu_slice", gpu_share_pct=50)
    found = vllm.vllm_environment(config, CACHES)
    assert "--gpu-memory-utilization" not in vllm.vllm_command(config)
    assert not {"CUDA_VISIBLE_DEVICES", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"} & set(found)
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "1"
    sized = replace(config, engine_args={"kv_cache_memory_bytes": 1 << 28})
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm.vllm_environment(sized, CACHES)


@pytest.mark.parametrize("key", ["port", "tensor-parallel-size", "gpu_memory_utilization"])
def test_arguments_that_follow_are_refused(key):
    """An engine_arg that the instance decides is bad input, naming the key and why."""
    config = replace(CONFIG, engine_args={key: 1})
    with pytest.raises(InputError, match=f"generator-0: engine_args: {key} cannot be set here"):
        vllm.vllm_command(config)


def test_tiny_gpu_is_refused():
    """A GPU that the reserve alone fills is bad input."""
    with pytest.raises(InputError, match="gpu_memory_gib: 2 leaves nothing"):
        vllm.vllm_command(replace(CONFIG, gpu_memory_gib=2.0))


def test_missing_vllm_names_the_fix(tmp_path):
    """A Python without vLLM is bad input that names the extra and the variable."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(InputError, match=r"scepsy-hpc\[vllm\].*SCEPSY_VLLM_PYTHON"):
        vllm.installed_version(str(python))


def test_an_engine_starts_in_the_site_s_image(tmp_path, monkeypatch):
    """The image's Python tells the version and serves; the engine's folder is bound, too."""
    runtime = tmp_path / "apptainer"
    runtime.write_text("#!/bin/sh\necho 0.99.0\n")
    runtime.chmod(0o755)
    box = Container(image="docker://vllm", python="/opt/python", runtime=str(runtime))
    site = Site(container=box, scratch=str(tmp_path))
    config = replace(CONFIG, site=site, model="/weights/m")
    command, environment = vllm.vllm_start(config)
    assert command[:12] == [
        *(str(runtime), "exec", "--nv", "--bind", str(tmp_path), "--bind", "/weights/m"),
        *("docker://vllm", "/opt/python", "-m", "vllm.entrypoints.cli.main", "serve"),
    ]
    caches = Path(environment["VLLM_CACHE_ROOT"])
    assert caches.is_relative_to(tmp_path)
    assert caches.name == "vllm-0.99.0"


def test_an_image_without_vllm_is_named(tmp_path):
    """What the runtime said stands in the one line."""
    runtime = tmp_path / "apptainer"
    runtime.write_text("#!/bin/sh\necho no such image >&2\nexit 1\n")
    runtime.chmod(0o755)
    with pytest.raises(InputError, match=r"no such image; check container\.image"):
        vllm.installed_version(str(runtime), "exec", "a.sif", "python3")


def test_cache_folder_is_private(tmp_path):
    """The cache folder is the user's alone and one a version."""
    path = vllm.cache_root("0.33.0", tmp_path)
    assert path.name == "vllm-0.33.0"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def _value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]
