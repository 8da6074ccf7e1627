"""Shares of a GPU: one private MPS daemon a node and job, and the proof that engines attached.

Under MPS each engine is held to its part of the SMs (``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE``).
Where the daemon is missing CUDA says nothing and the engines take turns on the whole GPU
(time-slicing): so that is found out here, said, and recorded.

Memory is not limited here. The limit that holds is vLLM's own: it takes share x (GPU memory -
2 GiB) and fails at start when that much is not free. MPS's ``CUDA_MPS_PINNED_DEVICE_MEM_LIMIT``
counts per process, wants the daemon's device index instead of a UUID, and does not change what
vLLM believes to be free; ``bench/gpu/memory_limits.py`` measures what it would add.

Source: NVIDIA, Multi-Process Service (control commands, environment variables, remapping of
devices), and the manual page nvidia-cuda-mps-control(1).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from scepsy_hpc.cluster import guard
from scepsy_hpc.cluster.discovery import nvml_session
from scepsy_hpc.errors import InputError, RunError

PROGRAM = "nvidia-cuda-mps-control"
# The daemon's sockets lie in its folder, and the path of a socket ends at 107 bytes.
LONGEST_FOLDER = 80
LOGS = ("control.log", "server.log")
ANSWER_S = 10.0


class MpsDaemon:
    """A running daemon that serves some GPUs of this node to this job. Always :meth:`stop` it."""

    def __init__(self, gpus: Sequence[str], folder: Path, popen: subprocess.Popen[bytes]) -> None:
        self.gpus = tuple(gpus)
        self._folder = folder
        self._popen = popen

    @classmethod
    def start(cls, gpus: Sequence[str], timeout_s: float = 20.0) -> MpsDaemon:
        """Start a daemon for GPUs named by UUID; returns once it has started a server on them.

        Its folder is node-local and private (0700). If this process dies, the daemon dies with
        it. Raises RunError that says what is missing.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            raise RunError(f"{PROGRAM} is not on PATH; it comes with the NVIDIA driver")
        folder = _private_folder()
        environment = os.environ | _environment(folder) | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        # Inherited, it would limit every client.
        environment.pop("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", None)
        with (folder / "daemon.log").open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, program, "-f"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        daemon = cls(gpus, folder, popen)
        try:
            daemon._wait_for_server(timeout_s)
        except RunError as error:
            said = daemon._last_words()
            daemon.stop()
            raise RunError(f"{error}; {said}") from None
        return daemon

    @property
    def pid(self) -> int:
        """Process id, group and session of the daemon's guard."""
        return self._popen.pid

    def environment(self, gpus: Sequence[str] | None = None) -> dict[str, str]:
        """What a client needs to attach; ``gpus`` (default: all of the daemon's) by UUID.

        By index they would be numbered as the daemon sees them, not as the node does.
        """
        return _environment(self._folder) | {"CUDA_VISIBLE_DEVICES": ",".join(gpus or self.gpus)}

    def is_alive(self) -> bool:
        """Whether the daemon runs."""
        return self._popen.poll() is None

    def clients(self) -> frozenset[int]:
        """Process ids of the clients attached now. Raises RunError when the daemon is silent."""
        # PID ID SERVER DEVICE NAMESPACE COMMAND, under a line of such heads.
        rows = (line.split() for line in self.ask("ps").splitlines())
        return frozenset(int(row[0]) for row in rows if row and row[0].isdigit())

    def attached(self, pid: int) -> bool:
        """Whether a process, one of its descendants or one of its session is a client now.

        Raises RunError when the daemon is silent.
        """
        return any(_belongs(client, pid) for client in self.clients())

    def ask(self, command: str) -> str:
        """The daemon's answer to a control command. Raises RunError when there is none."""
        try:
            done = subprocess.run(
                [PROGRAM],
                input=command + "\n",
                capture_output=True,
                text=True,
                timeout=ANSWER_S,
                check=False,
                env=os.environ | _environment(self._folder),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"MPS daemon: no answer to {command!r}: {error}") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
            raise RunError(f"MPS daemon: no answer to {command!r}: {said}")
        return done.stdout

    def _wait_for_server(self, timeout_s: float) -> None:
        """Make the daemon start a server: that the GPUs can be served shows only then."""
        until_s, asked, reason = time.monotonic() + timeout_s, False, "it did not answer"
        while time.monotonic() < until_s:
            if not self.is_alive():
                raise RunError(f"the MPS daemon ended with exit code {self._popen.returncode}")
            try:
                if not asked:
                    self.ask("get_server_list")  # answered once the daemon listens
                    self.ask(f"start_server -uid {os.getuid()}")
                    asked = True
                if self.ask("get_server_list").split():
                    return
                reason = "it starts no server on its GPUs"
            except RunError as error:
                reason = str(error)
            time.sleep(0.1)
        raise RunError(f"the MPS daemon does not work after {timeout_s:g} s: {reason}")

    def _last_words(self, count: int = 6) -> str:
        lines: list[str] = []
        for name in (*LOGS, "daemon.log"):
            with contextlib.suppress(OSError):
                text = (self._folder / name).read_text(errors="replace")
                lines += [f"{name}: {line}" for line in text.splitlines()[-count:]]
        return "its logs end with: " + " | ".join(lines) if lines else "its logs are empty"

    def stop(self, grace_s: float = 5.0, keep_logs: Path | None = None) -> None:
        """Quit; then end what is left of the daemon's own processes, and remove its folder.

        Clients that still run lose the GPU after ``grace_s``: stop engines first. Logs are copied
        into the folder ``keep_logs``. Stopping twice does no harm.
        """
        family: list[psutil.Process] = []
        if self.is_alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(self.pid).children(recursive=True)
            with contextlib.suppress(RunError):
                self.ask(f"quit -t {grace_s:g}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_s + 1.0)
        guard.signal_group(self.pid)
        for process in family:  # a server may have left the group
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=grace_s)
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        if keep_logs is not None:
            keep_logs.mkdir(parents=True, exist_ok=True)
            for name in LOGS:
                with contextlib.suppress(OSError):
                    shutil.copyfile(self._folder / name, keep_logs / name)
        shutil.rmtree(self._folder, ignore_errors=True)


class Sharing:
    """MPS for the engines of this node that hold a part of a GPU, or the reason why there is none.

    ``reason`` is None while the daemon works; else engines are time-sliced, and it says why.
    """

    def __init__(self, daemon: MpsDaemon | None, reason: str | None = None) -> None:
        self.daemon = daemon
        self.reason = reason

    @classmethod
    def start(cls, gpus: Sequence[str]) -> Sharing:
        """Start a daemon for GPUs (as CUDA_VISIBLE_DEVICES names them); never raises.

        A failure is also said on standard error: shares that nobody holds must not go unnoticed.
        """
        try:
            return cls(MpsDaemon.start(uuids_of(gpus)))
        except (RunError, InputError) as error:
            print(f"warning: GPU shares are time-sliced: {error}", file=sys.stderr, flush=True)
            return cls(None, str(error))

    def environment(self, gpus: Sequence[str]) -> dict[str, str]:
        """What an engine on these GPUs needs to attach; nothing without a daemon."""
        return {} if self.daemon is None else self.daemon.environment(uuids_of(gpus))

    def time_sliced(self, pid: int) -> str | None:
        """Why an engine that is ready is not held to its share; None when it is."""
        if self.daemon is None:
            return self.reason
        try:
            if self.daemon.attached(pid):
                return None
            reason = "it did not attach to the MPS daemon"
        except RunError as error:
            reason = str(error)
        print(f"warning: process {pid} is time-sliced: {reason}", file=sys.stderr, flush=True)
        return reason

    def stop(self, keep_logs: Path | None = None) -> None:
        """Stop the daemon, if there is one."""
        if self.daemon is not None:
            self.daemon.stop(keep_logs=keep_logs)


def uuids_of(gpus: Sequence[str]) -> tuple[str, ...]:
    """UUIDs of GPUs named by index or UUID, in their order. Raises InputError without NVML."""
    if all(not gpu.isdigit() for gpu in gpus):
        return tuple(gpus)
    with nvml_session(f"GPUs {','.join(gpus)}: NVML does not tell their UUIDs: {{}}") as nvml:
        return tuple(
            nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(int(gpu)))
            if gpu.isdigit()
            else gpu
            for gpu in gpus
        )


def _environment(folder: Path) -> dict[str, str]:
    return {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}


def _private_folder() -> Path:
    """A new node-local folder, 0700, with a path short enough for sockets. Raises RunError."""
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(base) + len("/scepsy-mps-12345678") <= LONGEST_FOLDER:
            try:
                return Path(tempfile.mkdtemp(prefix="scepsy-mps-", dir=base))
            except OSError as error:
                raise RunError(f"no folder for the MPS daemon in {base}: {error}") from None
    raise AssertionError("/tmp is short")


def _belongs(client: int, pid: int) -> bool:
    if client == pid:
        return True
    try:
        if os.getsid(client) == pid:
            return True
        return any(parent.pid == pid for parent in psutil.Process(client).parents())
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False
