"""One replica in a simulation: the calls in it and when the next of them ends.

Two kinds, chosen by what is known:

- `ContinuousBatching`, where an engine model passed its hold-out: the engine's own steps. Decoding
  calls get a token each, prompts fill the rest of the step's token budget, batch and KV cache
  bound who runs. This keeps what processor sharing loses: a prompt delays all who decode, short
  calls join and leave long batches, calls beyond the KV cache wait in line.
- `ProcessorSharing` elsewhere: a server of X(k) calls per second at k calls in flight, shared
  evenly; a call's size is its own tokens' work over that of a mean call.

Both cost O(log n) a call: virtual time (work done for each call, or steps) runs alike for all in
the batch, so a heap of virtual ends needs no updates, and the steps between two changes of the
batch are one jump, solved in closed form.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

from scepsy_hpc.bundles.step_time import DEFAULT_NUM_SEQS, JOIN_WINDOW_S, EngineModel
from scepsy_hpc.planning.curves.queueing import Server


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

    def add(self, call: Any, size: Size, now_s: float) -> None:
        """Take a call in; ``now_s`` must not be after ``end_s``."""
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

    def add(self, call: Any, size: Size, now_s: float) -> None:
        """Take a call in."""
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


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine model with a factor on its step time by calls in flight.

    ``stretch[k]`` holds at k calls, the last one beyond: it makes a closed load of k mean calls
    reach the curve's X(k), so that simulation and pipeline rest on one curve.
    """

    model: EngineModel
    stretch: tuple[float, ...] = (1.0,)
    join_window_s: float = JOIN_WINDOW_S

    @property
    def max_num_seqs(self) -> int:
        """Calls that the batch has room for."""
        return self.model.max_num_seqs or DEFAULT_NUM_SEQS


@dataclass(slots=True)
class _Joining:
    """A call whose prompt is being computed."""

    call: Any
    size: Size
    left: int


@dataclass(slots=True)
class ContinuousBatching:
    """An engine's steps. From ``_start_s`` on ``_num_steps`` steps follow without a change."""

    engine: Engine
    in_flight: int = 0
    end_s: float = math.inf
    _waiting: deque[tuple[Any, Size]] = field(default_factory=deque)
    _joining: list[_Joining] = field(default_factory=list)
    _chunks: list[int] = field(default_factory=list)
    _ends: list[tuple[int, int, Any, Size]] = field(default_factory=list)
    _start_s: float = 0.0
    _num_steps: int = 0
    _step: int = 0
    _decoding: int = 0
    _context: int = 0
    _kv_used: int = 0
    _first_s: float = 0.0  # length of the next step, and by how much each grows over the last
    _growth_s: float = 0.0
    _num_added: int = 0

    def add(self, call: Any, size: Size, now_s: float) -> None:
        """Take a call in: it joins the step that has just started, else the next."""
        self.in_flight += 1
        self._waiting.append((call, size))
        if math.isinf(self.end_s):
            self._start(now_s)
            return
        gone = 0 if self._chunks else self._steps_by(now_s)
        since_s = now_s - self._start_s - self._length_s(gone)
        if since_s <= self.engine.join_window_s:
            self._go_on(gone)
            self._start(self._start_s)
            self.end_s = max(self.end_s, now_s)
        elif not self._chunks and gone + 1 < self._num_steps:
            self._num_steps = gone + 1
            self.end_s = self._start_s + self._length_s(gone + 1)

    def pop(self) -> list[Any]:
        """The calls that ended at ``end_s``."""
        now_s = self.end_s
        self._go_on(self._num_steps)
        ended = []
        while self._ends and self._ends[0][0] <= self._step:
            _, _, call, size = heappop(self._ends)
            self._decoding -= 1
            self._context -= size.input_tokens + size.output_tokens
            self._leave(size)
            ended.append(call)
        self._end_prompts(ended)
        self._start(now_s)
        return ended

    def _start(self, now_s: float) -> None:
        """Fill the step that starts now, and see how long nothing changes."""
        self._start_s = now_s
        model = self.engine.model
        budget = model.max_num_batched_tokens - self._decoding
        self._chunks = []
        prefill = 0
        for joining in self._joining:
            chunk = max(min(joining.left, budget - prefill), 0)
            self._chunks.append(chunk)
            prefill += chunk
        while self._waiting and prefill < budget and self._has_room(self._waiting[0][1]):
            call, size = self._waiting.popleft()
            self._kv_used += size.input_tokens + size.output_tokens
            self._joining.append(_Joining(call, size, size.prefill_tokens))
            chunk = min(size.prefill_tokens, budget - prefill)
            self._chunks.append(chunk)
            prefill += chunk
        if not self._decoding and not prefill:
            self.end_s = math.inf
            return
        stretch = self.engine.stretch
        factor = stretch[min(self.in_flight, len(stretch) - 1)]
        self._first_s = factor * model.step_time_s(prefill, self._decoding, self._context)
        self._growth_s = factor * model.context_token_s * self._decoding
        self._num_steps = 1 if self._chunks else self._ends[0][0] - self._step
        self.end_s = now_s + self._length_s(self._num_steps)

    def _has_room(self, size: Size) -> bool:
        running = self._decoding + len(self._joining)
        if not running:
            return True  # whoever is alone is let in: an engine would refuse it at once
        limit = self.engine.model.kv_tokens
        tokens = size.input_tokens + size.output_tokens
        fits = limit is None or self._kv_used + tokens <= limit
        return fits and running < self.engine.max_num_seqs

    def _length_s(self, num_steps: int) -> float:
        return num_steps * self._first_s + self._growth_s * num_steps * (num_steps - 1) / 2.0

    def _steps_by(self, now_s: float) -> int:
        """Whole steps that have ended by now, of those that follow without a change."""
        elapsed_s = now_s - self._start_s
        first_s, growth_s = self._first_s - self._growth_s / 2.0, self._growth_s
        if growth_s * self._num_steps < 1e-9 * first_s:
            steps = elapsed_s / self._first_s
        else:
            root = math.sqrt(first_s * first_s + 2.0 * growth_s * elapsed_s)
            steps = (root - first_s) / growth_s
        return max(min(math.floor(steps + 1e-9), self._num_steps - 1), 0)

    def _go_on(self, num_steps: int) -> None:
        """Let so many steps without a change pass."""
        self._start_s += self._length_s(num_steps)
        self._step += num_steps
        self._context += num_steps * self._decoding

    def _end_prompts(self, ended: list[Any]) -> None:
        """Count the step's chunks; whose prompt is done has its first token."""
        still = []
        for joining, chunk in zip(self._joining, self._chunks, strict=True):
            joining.left -= chunk
            size = joining.size
            if joining.left > 0:
                still.append(joining)
            elif size.output_tokens <= 1:
                self._leave(size)
                ended.append(joining.call)
            else:
                self._decoding += 1
                self._context += size.input_tokens + 1
                self._num_added += 1
                last = self._step + size.output_tokens - 1
                heappush(self._ends, (last, self._num_added, joining.call, size))
        self._joining = still
        self._chunks = []

    def _leave(self, size: Size) -> None:
        self._kv_used -= size.input_tokens + size.output_tokens
        self.in_flight -= 1
