"""The private MPS daemon: who reaches it, who is attached, how it ends; and its absence."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import fake_mps
import psutil
import pytest

from scepsy_hpc.cluster import mps
from scepsy_hpc.cluster.mps import MpsDaemon, Sharing
from scepsy_hpc.errors import InputError, RunError

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


@pytest.fixture
def seen(tmp_path, monkeypatch):
    return fake_mps.install(tmp_path, monkeypatch)


def sleeper(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own, started as an engine is."""
    process = subprocess.Popen(
        SLEEP, env=os.environ | environment, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_daemon_is_private_to_the_job_and_names_gpus_by_uuid(seen, monkeypatch):
    """Its folder is 0700 and short, it serves the GPUs by UUID, and no inherited limit holds."""
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")
    daemon, other = MpsDaemon.start(mps.uuids_of(["1", "0"])), MpsDaemon.start(["GPU-cccc"])
    try:
        folder = Path(daemon.environment()["CUDA_MPS_PIPE_DIRECTORY"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder)) <= mps.LONGEST_FOLDER
        assert folder != Path(other.environment()["CUDA_MPS_PIPE_DIRECTORY"])
        assert daemon.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb,GPU-aaaa"
        assert daemon.environment(["GPU-aaaa"])["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
        environ = json.loads(seen.read_text())["environ"]
        assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-cccc"
        assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environ
    finally:
        daemon.stop()
        other.stop()


def test_attached_tells_clients_from_others(seen):
    """An engine counts as attached when a process of its session is a client, others do not."""
    sharing = Sharing.start(["0"])
    share = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}
    engine = sleeper(sharing.environment(["0"]) | share)
    stranger = sleeper(share)
    try:
        assert sharing.time_sliced(engine.pid) is None
        assert sharing.time_sliced(os.getpid()) is None, "its descendant is a client"
        assert sharing.time_sliced(stranger.pid) == "it did not attach to the MPS daemon"
    finally:
        end(engine)
        end(stranger)
        sharing.stop()


@pytest.mark.parametrize("behaviour", ["good", "stubborn"])
def test_stop_leaves_nothing(tmp_path, monkeypatch, behaviour):
    """Daemon, server and folder are gone after stop, also when quit is not obeyed."""
    seen = fake_mps.install(tmp_path, monkeypatch, behaviour)
    daemon = MpsDaemon.start(["GPU-aaaa"])
    folder = Path(daemon.environment()["CUDA_MPS_PIPE_DIRECTORY"])
    server = int(daemon.ask("get_server_list"))
    daemon.stop(grace_s=0.5 if behaviour == "stubborn" else 30.0, keep_logs=tmp_path / "logs")
    daemon.stop()
    assert not folder.exists()
    for pid in (daemon.pid, json.loads(seen.read_text())["pid"], server):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    assert "Starting control daemon" in (tmp_path / "logs" / "control.log").read_text()


def test_daemon_dies_with_its_job(tmp_path, seen):
    """A job that is killed outright leaves no daemon behind."""
    code = (
        "import signal, os; from scepsy_hpc.cluster.mps import MpsDaemon; "
        "MpsDaemon.start(['GPU-aaaa']); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    pid = json.loads(seen.read_text())["pid"]
    if psutil.pid_exists(pid):
        psutil.wait_procs([psutil.Process(pid)], timeout=60)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("behaviour", "timeout_s", "said"),
    [
        ("dies", 60.0, r"ended with exit code 1; .*control\.log: something about the GPU"),
        ("mute", 0.5, r"does not work after 0\.5 s: .*Cannot find MPS control daemon"),
        ("no_server", 6.0, r"does not work after 6 s: it starts no server on its GPUs"),
    ],
)
def test_daemon_that_does_not_work_is_refused(tmp_path, monkeypatch, behaviour, timeout_s, said):
    """A daemon that dies, is silent or cannot serve its GPUs is an error with its last words."""
    fake_mps.install(tmp_path, monkeypatch, behaviour)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    with pytest.raises(RunError, match=said):
        MpsDaemon.start(["GPU-aaaa"], timeout_s=timeout_s)
    assert not list((tmp_path / "t").iterdir())


def test_missing_program_means_time_slicing_said_aloud(monkeypatch, tmp_path, capsys):
    """Without MPS sharing goes on time-sliced: engines get no environment and everyone is told."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sharing = Sharing.start(["GPU-aaaa"])
    assert sharing.environment(["0"]) == {}
    assert "nvidia-cuda-mps-control is not on PATH" in str(sharing.time_sliced(1))
    assert "warning: GPU shares are time-sliced" in capsys.readouterr().err
    sharing.stop()


def test_client_that_is_refused_is_time_sliced(tmp_path, monkeypatch, capsys):
    """A daemon that works proves nothing: an engine that is not among its clients is flagged."""
    fake_mps.install(tmp_path, monkeypatch, "refuses")
    sharing = Sharing.start(["0"])
    try:
        assert sharing.reason is None
        assert sharing.time_sliced(os.getpid()) == "it did not attach to the MPS daemon"
        assert f"process {os.getpid()} is time-sliced" in capsys.readouterr().err
    finally:
        sharing.stop()


def test_long_temporary_folder_is_avoided(tmp_path, monkeypatch, seen):
    """The path of a socket ends at 107 bytes: a long TMPDIR is left for /tmp."""
    long = tmp_path / ("x" * mps.LONGEST_FOLDER)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    daemon = MpsDaemon.start(["GPU-aaaa"])
    folder = Path(daemon.environment()["CUDA_MPS_PIPE_DIRECTORY"])
    daemon.stop()
    assert len(str(folder)) <= mps.LONGEST_FOLDER


def test_indices_need_nvml(monkeypatch):
    """UUIDs are taken as they are; an index without a driver is one clear error."""
    assert mps.uuids_of(["GPU-aaaa"]) == ("GPU-aaaa",)
    with pytest.raises(InputError, match="GPUs 3: NVML does not tell their UUIDs"):
        mps.uuids_of(["3"])
