"""Signs of life between nodes: each rank rewrites a small file, the others look whether it changes.

Clocks of different nodes are never compared, and nothing but the shared folder is needed. A network
file system may show a new file a minute late, hence the patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.serving.run_folder import AttemptFolder, read_json, write_json

BEAT_S = 1.0


async def beat(attempt: AttemptFolder, rank: int) -> None:
    """Show that this rank lives, until cancelled; on a full disk by the time of the file alone."""
    count = 0
    while True:
        count += 1
        try:
            write_json(attempt.beat(rank), count)
        except (OSError, ScepsyError):
            with contextlib.suppress(OSError):
                os.utime(attempt.beat(rank))
        await asyncio.sleep(BEAT_S)


class Pulse:
    """Whether one rank still shows signs of life, as seen from here."""

    def __init__(self, attempt: AttemptFolder, rank: int, patience_s: float) -> None:
        """A rank gets ``patience_s`` from now, and from each change of its file."""
        self._path, self._patience_s = attempt.beat(rank), patience_s
        self._last: tuple[int, int] | None = None
        self._silent_s, self._looked_s = 0.0, time.monotonic()

    @property
    def was_seen(self) -> bool:
        """Whether it ever showed a sign of life."""
        return self._last is not None

    def is_lost(self) -> bool:
        """Look once. A rank that shows itself again is not lost any more.

        A late look, as when this process was stopped or the file system hung, proves little: four
        of them at least are needed to call a rank lost.
        """
        now_s = time.monotonic()
        gap_s, self._looked_s = now_s - self._looked_s, now_s
        found = self._look()
        if found is not None and found != self._last:
            self._last, self._silent_s = found, 0.0
        else:
            self._silent_s += min(gap_s, self._patience_s / 4.0)
        return self._silent_s > self._patience_s

    def _look(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            # Opened first: that is when a network file system asks its server.
            count = read_json(self._path, int)
            return None if count is None else (count, self._path.stat().st_mtime_ns)
        return None
