"""A stand-in for nvidia-cuda-mps-control: a daemon that attaches who names it in its environment.

:func:`install` puts it on PATH; the rest of this file is what it runs. Its clients are the
processes that have its folder and a share in their environment, unless it was told `refuses`.
"""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HEADS = "PID       ID    SERVER    DEVICE             NAMESPACE      COMMAND"
GPUS = {0: "GPU-aaaa", 1: "GPU-bbbb"}


def install(folder: Path, monkeypatch: Any, behaviour: str = "good") -> Path:
    """Put the program on PATH, and GPUs into NVML; returns where it writes down what it saw.

    ``behaviour``: good, dies, mute, no_server, refuses (clients) or stubborn (does not quit).
    """
    tools = folder / "mps-bin"
    tools.mkdir(exist_ok=True)
    seen = folder / "mps-seen"
    program = tools / "nvidia-cuda-mps-control"
    line = f'exec {sys.executable} {__file__} {behaviour} {seen} "$@"'
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    install_nvml(monkeypatch)
    return seen


def install_nvml(monkeypatch: Any) -> None:
    """NVML that knows two GPUs."""
    monkeypatch.setattr("pynvml.nvmlInit", lambda: None)
    monkeypatch.setattr("pynvml.nvmlShutdown", lambda: None)
    monkeypatch.setattr("pynvml.nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr("pynvml.nvmlDeviceGetUUID", GPUS.__getitem__)


class Daemon(socketserver.ThreadingUnixStreamServer):
    def __init__(self, folder: Path, behaviour: str) -> None:
        self.folder, self.behaviour = folder, behaviour
        self.server: subprocess.Popen[bytes] | None = None
        super().__init__(str(folder / "control"), Answer)

    def answer(self, command: str) -> str:
        if command.startswith("start_server") and self.behaviour != "no_server":
            line = [sys.executable, "-c", "import time; time.sleep(600)"]
            self.server = subprocess.Popen(line, start_new_session=True)
        if command == "get_server_list":
            return f"{self.server.pid}\n" if self.server else ""
        if command == "ps":
            pids = [] if self.behaviour == "refuses" else self.clients()
            rows = [f"{pid}      0     77        GPU-aaaa 4026531836 ./engine" for pid in pids]
            return "\n".join([HEADS, *rows, ""])
        if command.startswith("quit") and self.behaviour != "stubborn":
            if self.server:
                self.server.kill()
            threading.Thread(target=self.shutdown).start()
        return ""

    def clients(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            mine = environment.get("CUDA_MPS_PIPE_DIRECTORY") == str(self.folder)
            if mine and "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" in environment:
                found.append(process.pid)
        return found


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Daemon)
        self.wfile.write(self.server.answer(self.rfile.readline().decode().strip()).encode())


def main(behaviour: str, seen: str, arguments: list[str]) -> None:
    folder = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
    if not arguments:
        import socket

        with socket.socket(socket.AF_UNIX) as channel:
            try:
                channel.connect(str(folder / "control"))
            except OSError:
                sys.exit("Cannot find MPS control daemon process")
            channel.sendall(sys.stdin.readline().encode())
            channel.shutdown(socket.SHUT_WR)
            while data := channel.recv(65536):
                sys.stdout.write(data.decode())
        return
    assert arguments == ["-f"], arguments
    kept = {k: v for k, v in os.environ.items() if k.startswith("CUDA_")}
    Path(seen).write_text(json.dumps({"pid": os.getpid(), "environ": kept}))
    (folder / "control.log").write_text("Starting control daemon\nsomething about the GPU\n")
    if behaviour == "dies":
        sys.exit(1)
    if behaviour == "mute":
        time.sleep(600)
    with Daemon(folder, behaviour) as daemon:
        daemon.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
