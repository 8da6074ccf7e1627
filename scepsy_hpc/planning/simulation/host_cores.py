"""The cores that agents share: a processor-sharing station for the CPU part of think times."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Any


class HostCores:
    """``cores`` cores; each job runs on ``width`` of them, all alike slower when they are short.

    With enough cores a job takes as long as it did in the trace, so only waiting is added.
    """

    def __init__(self, cores: int) -> None:
        """Idle."""
        self.cores = cores
        self.end_s = math.inf
        self.width = 0.0  # cores that all jobs together ask for
        self._jobs: list[tuple[float, int, float, Any]] = []
        self._done_s = 0.0
        self._now_s = 0.0
        self._num_added = 0

    def add(self, job: Any, length_s: float, width: float, now_s: float) -> None:
        """A job that takes ``length_s`` on ``width`` cores of its own."""
        self._go_on(now_s)
        self._num_added += 1
        heappush(self._jobs, (self._done_s + length_s, self._num_added, width, job))
        self.width += width
        self._set_end()

    def pop(self) -> Any:
        """The job that ended at ``end_s``."""
        self._now_s = self.end_s
        self._done_s, _, width, job = heappop(self._jobs)
        self.width -= width
        if not self._jobs:
            self._done_s = self.width = 0.0  # keeps its digits in long simulations
        self._set_end()
        return job

    def _pace(self) -> float:
        return min(1.0, self.cores / self.width)

    def _go_on(self, now_s: float) -> None:
        if self._jobs:
            self._done_s += (now_s - self._now_s) * self._pace()
        self._now_s = now_s

    def _set_end(self) -> None:
        if not self._jobs:
            self.end_s = math.inf
            return
        left_s = max(self._jobs[0][0] - self._done_s, 0.0)
        self.end_s = self._now_s + left_s / self._pace()
