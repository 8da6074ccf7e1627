"""Who leads: term 0 is rank 0's, each later one the rank's that claimed it first.

A claim is a file created exclusively: no lock is needed, and none is given back. Whoever finds a
later term than its own leads no more, however long it slept.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from scepsy_hpc.errors import RunError
from scepsy_hpc.serving.run_folder import AttemptFolder, read_json


class Deposed(RunError):
    """Another rank leads since: this one counted as lost."""


@dataclass(slots=True)
class Terms:
    """The terms of one start of a run; ``look`` finds the newest."""

    attempt: AttemptFolder
    number: int = 0

    def look(self) -> tuple[int, int | None]:
        """The newest term, and its rank; None while that cannot be read yet."""
        while self.attempt.term(self.number + 1).exists():
            self.number += 1
        if self.number == 0:
            return 0, 0
        return self.number, read_json(self.attempt.term(self.number), int)

    def claim(self, number: int, rank: int) -> bool:
        """Lead from that term on, unless another was faster. False too where nothing is written."""
        path = self.attempt.term(number)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(json.dumps(rank).encode())
                stream.flush()
                os.fsync(stream.fileno())
            return True
        return False


def is_over(attempt: AttemptFolder, term: int) -> bool:
    """Whether a later term than this one has begun."""
    return attempt.term(term + 1).exists()
