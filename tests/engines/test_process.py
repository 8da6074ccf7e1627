"""Engines as processes: ready only after real work, dead noticed, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import fake_vllm
import psutil
import pytest

from scepsy_hpc.cluster.site import Container, Site
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.ports import spaced_ports
from scepsy_hpc.engines.process import EngineProcess
from scepsy_hpc.errors import InputError, RunError

# Long enough for a loaded machine to start a Python; nothing waits for it when all is well.
PATIENCE_S = 60.0


@pytest.fixture
def make_config(tmp_path, monkeypatch):
    used: list[int] = []

    def make(behaviour: str) -> EngineConfig:
        used.extend(spaced_ports(1, avoid=used))
        python = fake_vllm.install(tmp_path, behaviour)
        monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(python))
        monkeypatch.setenv("CHILDREN_FILE", str(tmp_path / "children"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        return EngineConfig(
            instance_id="judge-0",
            engine="vllm",
            model="some/model",
            served_names=("judge",),
            gpu_type="h100_sxm",
            gpu_memory_gib=80.0,
            gpus=("0",),
            port=used[-1],
            log_path=tmp_path / f"{behaviour}.log",
        )

    return make


def run(config: EngineConfig, timeout_s: float = PATIENCE_S) -> EngineProcess:
    """Start, wait until ready, stop; the stopped engine."""

    async def main() -> EngineProcess:
        engine = EngineProcess.start(config)
        try:
            await engine.wait_ready(timeout_s)
            assert engine.is_alive()
        finally:
            await engine.stop()
        return engine

    return asyncio.run(main())


def test_ready_then_stopped(make_config):
    """An engine that gives a token becomes ready although its log says ERROR, and stops."""
    engine = run(make_config("good"))
    assert not engine.is_alive()
    assert not psutil.pid_exists(engine.pid)
    assert "ERROR" in engine.config.log_path.read_text()


BOX = """#!/bin/sh
echo "$@" >> {seen}
while [ "$1" != my.sif ]; do shift; done
shift
exec "$@"
"""


def test_an_engine_in_an_image_is_ready_and_gone(make_config, tmp_path):
    """Inside the site's image it answers, keeps its key off the command line, and ends whole."""
    runtime, seen = tmp_path / "apptainer", tmp_path / "seen"
    runtime.write_text(BOX.format(seen=seen))
    runtime.chmod(0o755)
    config = make_config("good")
    box = Container(image="my.sif", python=os.environ["SCEPSY_VLLM_PYTHON"], runtime=str(runtime))
    config = replace(config, site=Site(container=box, scratch=str(tmp_path)), api_key="secret")
    engine = run(config)
    assert not psutil.pid_exists(engine.pid)
    version, serving = seen.read_text().splitlines()
    assert f"--bind {tmp_path} my.sif" in version
    assert "serve some/model" in serving
    assert "secret" not in serving


def test_dead_engine_is_noticed_with_its_last_words(make_config):
    """An engine that dies at start fails at once, with exit code and last log lines."""
    with pytest.raises(RunError, match=r"judge-0 .*died with exit code 3.*\n.*\n.*out of every"):
        run(make_config("dies"), timeout_s=1e6)


def test_silent_engine_times_out(make_config):
    """An engine that never answers is given up when the time is over."""
    with pytest.raises(RunError, match=r"not ready after 0\.5 s: no answer"):
        run(make_config("mute"), timeout_s=0.5)


def test_http_without_a_token_is_not_readiness(make_config):
    """Errors that may pass, and HTTP 200 with 0 generated tokens, do not make an engine ready."""
    expected = {
        "status=500": "/v1/completions answers HTTP 500",
        "status=503": "/v1/completions answers HTTP 503",
        "no_token": "/v1/completions answers HTTP 200 without a token",
    }

    async def give_up(behaviour: str) -> str:
        engine = EngineProcess.start(make_config(behaviour))
        try:
            with pytest.raises(RunError) as caught:
                await engine.wait_ready(8.0)
        finally:
            await engine.stop()
        return str(caught.value)

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(give_up(behaviour) for behaviour in expected))

    for said, wanted in zip(asyncio.run(all_at_once()), expected.values(), strict=True):
        assert f"not ready after 8 s: {wanted}" in said


def test_wrong_key_fails_at_once(make_config):
    """What waiting cannot change (401, 404) is said at once instead of at the end."""
    with pytest.raises(RunError, match="answers HTTP 401"):
        run(make_config("status=401"), timeout_s=1e6)


def test_stop_leaves_no_children(make_config, tmp_path):
    """A server that ignores SIGTERM and its children, even in another session, are all gone."""

    async def main() -> None:
        engine = EngineProcess.start(make_config("stubborn"))
        await engine.wait_ready(PATIENCE_S)
        children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
        assert all(psutil.pid_exists(pid) for pid in children)
        await engine.stop(grace_s=0.5)
        alive = [p for p in children if psutil.pid_exists(p) and not zombie(p)]
        assert alive == []
        assert not engine.is_alive()

    asyncio.run(main())


def test_orphans_in_a_session_of_their_own_are_ended(make_config, tmp_path):
    """Their parents are gone: the guard has adopted them, and stop finds them below it."""

    async def main() -> None:
        engine = EngineProcess.start(make_config("forks"))
        await engine.wait_ready(PATIENCE_S)
        orphans = orphans_of(tmp_path)
        assert {process.parent().pid for process in orphans} == {engine.pid}
        assert engine.pid not in {os.getsid(process.pid) for process in orphans}
        await engine.stop()
        assert not any(process.is_running() and not zombie(process.pid) for process in orphans)

    asyncio.run(main())


def test_orphans_are_found_when_the_guard_is_gone_too(make_config, tmp_path):
    """SIGKILL to the whole group: stop finds by its mark what inherited the environment."""

    async def main() -> None:
        engine = EngineProcess.start(make_config("forks"))
        await engine.wait_ready(PATIENCE_S)
        marked, unmarked = orphans_of(tmp_path)
        engine.kill()
        while engine.is_alive():
            await asyncio.sleep(0.01)
        assert engine.end == "signal SIGKILL"
        await engine.stop()
        assert not marked.is_running() or zombie(marked.pid)
        unmarked.kill()

    asyncio.run(main())


def orphans_of(folder) -> list[psutil.Process]:
    """The one that kept the engine's environment, then the one without any."""
    pids = (folder / "children").read_text().split()
    assert len(pids) == 2
    return [psutil.Process(int(pid)) for pid in pids]


def zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("behaviour", ["good", "forks"])
def test_engine_dies_with_its_parent(make_config, tmp_path, behaviour):
    """When the process that started an engine is killed, the engine is gone soon after.

    So are orphans that it left in sessions of their own.
    """
    config = make_config(behaviour)
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys, pathlib, pickle, time\n"
        "from scepsy_hpc.engines.process import EngineProcess\n"
        "config = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "engine = EngineProcess.start(config)\n"
        "asyncio.run(engine.wait_ready(60.0))\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    pickled = tmp_path / "config.pkl"
    pickled.write_bytes(pickle.dumps(config))
    with subprocess.Popen(
        [sys.executable, str(script), str(pickled)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        guard = psutil.Process(int(parent.stdout.readline()))
        family = [guard, *guard.children(recursive=True)]
        os.kill(parent.pid, signal.SIGKILL)
    assert len(family) == (2 if behaviour == "good" else 4), family
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert alive == []


def test_unknown_engine_is_refused(make_config):
    """An engine that this package does not know is bad input, with the known ones."""
    config = replace(make_config("good"), engine="llamacpp")
    with pytest.raises(InputError, match=r"unknown engine 'llamacpp'; known: vllm, simulated"):
        EngineProcess.start(config)
