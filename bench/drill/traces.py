"""What a drill run has on this machine: its processes by a mark, and what it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

MARK = "SCEPSY_DRILL"
SHARED_MEMORY = Path("/dev/shm")


def marked(mark: str) -> list[psutil.Process]:
    """Live processes whose environment carries the mark of one run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def words_of(process: psutil.Process) -> str:
    """Its command line; empty when it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def variable_of(process: psutil.Process, name: str, default: str) -> str:
    """A variable of its environment; ``default`` where it has none or is gone."""
    try:
        return process.environ().get(name, default)
    except (psutil.Error, OSError):
        return default


def parent_of(process: psutil.Process) -> psutil.Process | None:
    """None when it or its parent is gone."""
    try:
        return process.parent()
    except psutil.Error:
        return None


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to what lives yet."""
    for process in processes:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            os.kill(process.pid, number)


def end_all(mark: str) -> None:
    """SIGKILL to everything of a run, frozen or not."""
    for _ in range(20):
        left = marked(mark)
        if not left:
            return
        signal_all(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1)


def left_behind(mark: str, temporary: Path, before: set[str], settle_s: float) -> list[str]:
    """What is still there after a run has ended and ``settle_s`` have passed."""
    until_s = time.monotonic() + settle_s
    while (processes := marked(mark)) and time.monotonic() < until_s:
        time.sleep(0.3)
    found = [f"process {p.pid}: {words_of(p)[:160]}" for p in processes]
    found += [f"shared memory {name}" for name in sorted(shared_memory() - before)]
    found += [f"temporary {path}" for path in sorted(temporary.iterdir())]
    return found


def shared_memory() -> set[str]:
    """Names in /dev/shm; the drill has one of its own where it may (see `drill.py`)."""
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
