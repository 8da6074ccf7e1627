"""Logs of engines and agents keep to a bounded size: their head, their tail, and a word between.

Whoever writes a log has it open for appending and goes on as if nothing had happened. What it says
in the moment of cutting may be lost; a log is for people, nothing is read from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

MOST_LOG_BYTES = 32 * 2**20
# Of a log that is cut; together well below what it may have, so that it is cut seldom.
HEAD_PART, TAIL_PART = 1 / 32, 7 / 32
# Of one instance: its first start, which says what is wrong with the plan, and the last ones.
MOST_LOGS_OF_INSTANCE = 10
LOOK_AT_LOGS_S = 10.0
_START_LOG = re.compile(r"(.+)\.(\d+)\.log")


async def keep_logs_bounded(paths: Callable[[], Iterable[Path]]) -> None:
    """Look at logs that this node writes, until cancelled."""
    while True:
        for path in paths():
            await asyncio.to_thread(cut_log, path, MOST_LOG_BYTES)
        await asyncio.sleep(LOOK_AT_LOGS_S)


def cut_log(path: Path, most_bytes: int) -> bool:
    """Cut the middle out of a log that is larger than ``most_bytes``; whether it was."""
    head_bytes, tail_bytes = int(HEAD_PART * most_bytes), int(TAIL_PART * most_bytes)
    with contextlib.suppress(OSError), path.open("r+b", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= most_bytes:
            return False
        head = stream.read(head_bytes)
        head_end = head.rfind(b"\n") + 1 or len(head)
        stream.seek(size - tail_bytes)
        # To the end that it has by now: as little as can be is lost to the cut.
        tail = stream.read()
        tail = tail[tail.find(b"\n") + 1 :]
        stream.truncate(head_end)
        left_out = size - head_end - len(tail)
        word = f"[... about {left_out:,} bytes left out: the log had grown to {size:,} ...]\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, word.encode() + tail)
        finally:
            os.close(descriptor)
        return True
    return False


def old_logs(folder: Path, most: int) -> list[Path]:
    """Logs of earlier starts beyond the ``most`` that are kept of each instance.

    Of several that are kept one is that of the first start.
    """
    starts: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.glob("*.log"):
        if named := _START_LOG.fullmatch(path.name):
            starts.setdefault(named[1], []).append((int(named[2]), path))
    found = []
    for logs in starts.values():
        ordered = [path for _, path in sorted(logs)]
        num_first = int(most > 1)
        found += ordered[num_first : len(ordered) - most + num_first]
    return sorted(found)


def drop_old_logs(folder: Path, instance_id: str) -> None:
    """Make room for the log of another start: an instance may die for days."""
    for path in old_logs(folder, MOST_LOGS_OF_INSTANCE - 1):
        if path.name.startswith(f"{instance_id}."):
            with contextlib.suppress(OSError):
                path.unlink()
