"""One replica in a simulation: the calls in it and when the next of them ends.

Two kinds, chosen by what is known:

- `continuous.ContinuousBatching`, where an engine model passed its hold-out: the engine's own
  steps. This keeps what processor sharing loses: a prompt delays all who decode, short calls join
  and leave long batches, calls beyond the KV cache wait in line or are preempted.
- `ProcessorSharing` elsewhere: a server of X(k) calls per second at k calls in flight, shared
  evenly; a call's size is its own tokens' work over that of a mean call. Virtual time (work done
  for each call) runs alike for all, so a heap of virtual ends needs no updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.simulation.prefix_cache import Stretch


class Size(NamedTuple):
    """What one call asks of a replica: relative work, and tokens."""

    work: float
    prefill_tokens: int
    input_tokens: int
    output_tokens: int


class Replica(Protocol):
    """A replica in use. ``end_s`` is when ``pop`` must next be called; infinite when idle."""

    in_flight: int
    end_s: float

    def add(
        self, call: Any, size: Size, now_s: float, run: int = 0, path: Sequence[Stretch] = ()
    ) -> None:
        """Take a call in; ``now_s`` must not be after ``end_s``.

        ``path``: the blocks of its tokens among those of its ``run``, for a prefix cache.
        """
        ...

    def pop(self) -> list[Any]:
        """Go on to ``end_s``; the calls that ended there (may be none)."""
        ...


class ProcessorSharing:
    """X(k) calls per second at k in flight, shared evenly."""

    def __init__(self, server: Server) -> None:
        """Idle."""
        last = max(math.ceil(server.concurrency[-1]), 1)
        self._pace = [0.0, *(float(server.rate_rps(k)) / k for k in range(1, last + 1))]
        self._limit_rps = server.limit_rps
        self._calls: list[tuple[float, int, Any]] = []
        self._done = 0.0  # work done for each call since the start
        self._now_s = 0.0
        self._num_added = 0
        self.in_flight = 0
        self.end_s = math.inf

    def add(
        self, call: Any, size: Size, now_s: float, run: int = 0, path: Sequence[Stretch] = ()
    ) -> None:
        """Take a call in; there is no prefix cache here."""
        self._done += (now_s - self._now_s) * self._rate()
        self._now_s = now_s
        self._num_added += 1
        heappush(self._calls, (self._done + size.work, self._num_added, call))
        self.in_flight += 1
        self._set_end()

    def pop(self) -> list[Any]:
        """The call that ended at ``end_s``."""
        self._now_s = self.end_s
        self._done, _, call = heappop(self._calls)
        self.in_flight -= 1
        if not self.in_flight:
            self._done = 0.0  # keeps its digits in long simulations
        self._set_end()
        return [call]

    def _rate(self) -> float:
        k = self.in_flight
        return self._pace[k] if k < len(self._pace) else self._limit_rps / k

    def _set_end(self) -> None:
        if not self.in_flight:
            self.end_s = math.inf
            return
        left = max(self._calls[0][0] - self._done, 0.0)
        self.end_s = self._now_s + left / self._rate()
