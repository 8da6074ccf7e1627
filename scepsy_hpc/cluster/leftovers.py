"""Processes that outlived what started them, found by a mark that they inherit.

A ``setsid`` takes a process out of its group and a second fork out of its family, but its
environment stays. (One that clears it is found by an engine's guard alone.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ENGINE_MARK = "SCEPSY_ENGINE_MARK"
HOST_MARK = "SCEPSY_HOST_MARK"


def marked(variable: str, value: str) -> set[psutil.Process]:
    """Living processes that were started with ``variable=value``; not this one."""
    wanted, found = f"{variable}={value}".encode(), set()
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(OSError, psutil.Error):
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            if wanted in environment.split(b"\0") and lives(process):
                found.add(process)
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def end_processes(
    find: Callable[[], set[psutil.Process]], grace_s: float = 5.0, kill_s: float = 10.0
) -> set[psutil.Process]:
    """SIGTERM to all that ``find`` names, SIGKILL to what is left; returns what survives both."""
    left = find()
    for act, limit_s in ((psutil.Process.terminate, grace_s), (psutil.Process.kill, kill_s)):
        until_s, told = time.monotonic() + limit_s, set[psutil.Process]()
        while left and time.monotonic() < until_s:
            for process in left - told:
                with contextlib.suppress(psutil.Error):
                    act(process)  # refuses a pid that was given to another process
            told |= left
            await asyncio.sleep(0.05)
            left = {process for process in left if lives(process)} or find()
    return left
