"""Signs of life between nodes: each rank rewrites a small file, the others look whether it changes.

Clocks of different nodes are never compared, and nothing but the shared folder is needed. A network
file system may show a new file a minute late, hence the patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.serving.run_folder import AttemptFolder, read_json, write_json

BEAT_S = 1.0


async def beat(attempt: AttemptFolder, rank: int) -> None:
    """Show that this rank lives, until cancelled. A disk that is full now is tried again."""
    count = 0
    while True:
        count += 1
        with contextlib.suppress(OSError, ScepsyError):
            write_json(attempt.beat(rank), count)
        await asyncio.sleep(BEAT_S)


class Pulse:
    """Whether one rank still shows signs of life, as seen from here."""

    def __init__(self, attempt: AttemptFolder, rank: int, patience_s: float) -> None:
        """A rank gets ``patience_s`` from now, and from each change of its file."""
        self._path, self._patience_s = attempt.beat(rank), patience_s
        self._last: int | None = None
        self._seen_s = time.monotonic()

    def is_lost(self) -> bool:
        """Look once. A rank that shows itself again is not lost any more."""
        found = read_json(self._path, int)
        if found is not None and found != self._last:
            self._last, self._seen_s = found, time.monotonic()
        return time.monotonic() - self._seen_s > self._patience_s
