"""One real vLLM on a CPU slice: what it answers, and that its quota holds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cpu_throttling import throttled_s
from openai import OpenAI
from slurm.mini_slurm import REPOSITORY

from scepsy_hpc.cluster.cpu_slices import SLICE_CORES, SliceGroup
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import spaced_ports
from scepsy_hpc.engines.process import EngineProcess

HERE = Path(__file__).parent
VLLM_VENV = Path(os.environ.get("SCEPSY_TEST_VLLM_VENV", REPOSITORY / ".venv-vllm"))
START_LIMIT_S = 300.0
FORCED = {"ignore_eos": True, "min_tokens": 24}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    """A ready tiny-judge on one slice."""
    python = VLLM_VENV / "bin" / "python"
    assert python.exists(), f"{VLLM_VENV} is missing; run tests/vllm/install.sh"
    with (
        tempfile.TemporaryDirectory(prefix="scepsy-vllm-") as name,
        pytest.MonkeyPatch.context() as m,
    ):
        folder = Path(name)
        subprocess.run([python, HERE / "tiny_models.py", folder], check=True)
        m.setenv("SCEPSY_VLLM_PYTHON", str(python))
        m.setenv("HF_HUB_OFFLINE", "1")
        m.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        process = EngineProcess.start(_config(folder))
        try:
            asyncio.run(process.wait_ready(START_LIMIT_S))
            yield process
        finally:
            asyncio.run(process.stop())


def _config(folder: Path) -> EngineConfig:
    return EngineConfig(
        instance_id="judge-0",
        engine="vllm",
        model=str(folder / "tiny-judge"),
        served_names=("judge",),
        gpu_type="cpu_slice",
        gpu_memory_gib=4.0,
        gpus=("0",),
        port=spaced_ports(1)[0],
        log_path=folder / "judge.log",
        engine_args={
            "load_format": "dummy",
            "dtype": "float32",
            "max_model_len": 1024,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 128 * 2**20,
        },
    )


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[OpenAI]:
    """The client that agents use, pointed at the engine."""
    with OpenAI(base_url=engine.base_url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_makes_as_many_tokens_as_asked(client: OpenAI) -> None:
    """Random weights end a text anywhere; `ignore_eos` fixes its length, and usage counts it."""
    messages = [{"role": "user", "content": "Which way do tides turn?"}]
    answer = client.chat.completions.create(
        model="judge", messages=messages, max_tokens=24, extra_body=FORCED
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens > 5  # words


def test_stream_counts_its_tokens(client: OpenAI) -> None:
    """A stream arrives in several pieces, and its last one carries the usage."""
    chunks = list(
        client.completions.create(
            model="judge",
            prompt="Once",
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=FORCED,
        )
    )
    pieces = [c.choices[0].text for c in chunks if c.choices]
    assert sum(1 for piece in pieces if piece) > 1
    assert chunks[-1].usage.completion_tokens == 24


def test_same_question_same_answer(client: OpenAI) -> None:
    """At temperature 0 the random weights are as deterministic as others: runs can be compared."""

    def ask() -> str:
        answer = client.completions.create(
            model="judge", prompt="The sea", max_tokens=24, temperature=0, extra_body=FORCED
        )
        return answer.choices[0].text

    assert ask() == ask()


def test_quota_holds(engine: EngineProcess, client: OpenAI) -> None:
    """Under load a ready engine is throttled to its slice; with the quota lifted it is not."""
    members = [p for p in psutil.process_iter() if os.getsid(p.pid) == engine.pid]
    group = _group_of(engine.pid)
    before_s = throttled_s(group)
    cores = _cores_under_load(members, client)
    assert throttled_s(group) > before_s
    assert cores < SLICE_CORES * 1.2
    group.lift()
    try:
        before_s = throttled_s(group)
        _cores_under_load(members, client)
        assert throttled_s(group) == before_s
    finally:
        group.limit(SLICE_CORES)


def _cores_under_load(members: list[psutil.Process], client: OpenAI) -> float:
    """CPU seconds a second of the engine while it answers four calls at a time."""

    def ask(_: int) -> None:
        client.completions.create(
            model="judge", prompt="Sails and clocks", max_tokens=96, extra_body={"ignore_eos": True}
        )

    start_s, used_s = time.monotonic(), _cpu_s(members)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    return (_cpu_s(members) - used_s) / (time.monotonic() - start_s)


def _cpu_s(members: list[psutil.Process]) -> float:
    times = [p.cpu_times() for p in members]
    return sum(t.user + t.system for t in times)


def _group_of(pid: int) -> SliceGroup:
    """The group the kernel says the process is in, found from outside the engine's own record."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            v2 = Path("/sys/fs/cgroup" + path)
        elif "cpu" in controllers.split(","):
            return SliceGroup(Path("/sys/fs/cgroup/cpu" + path))
    return SliceGroup(v2)
