"""A replica as its engine's steps: continuous batching, jumped over where nothing changes.

The rules are those of the simulated engine (``engines.simulated.batching``) and of vLLM's
scheduler: decoding calls get a token each, prompts fill the rest of the step's token budget; a
prompt joins while the batch has a seat and the KV cache has room for all of it; a call takes blocks
as it grows, and when there are none left the newest in the batch is preempted: it waits in front of
all others and computes again what the cache has lost of it.

Virtual time (steps) runs alike for all in the batch, so a heap of virtual ends needs no updates,
and the steps between two changes of the batch are one jump, solved in closed form: O(log n) a call.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from scepsy_hpc.bundles.step_time import DEFAULT_NUM_SEQS, JOIN_WINDOW_S, EngineModel
from scepsy_hpc.engines.simulated.kv_blocks import num_blocks_of
from scepsy_hpc.formats.spans import BLOCK_TOKENS
from scepsy_hpc.planning.simulation.prefix_cache import Holding, PrefixCache, Stretch
from scepsy_hpc.planning.simulation.replicas import Size


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


class _Job:
    """A call on its way through the engine; ``done`` are tokens it had when it was preempted."""

    __slots__ = (
        "call",
        "done",
        "first_step",
        "holding",
        "last_step",
        "num_blocks",
        "prefilled",
        "size",
        "to_prefill",
    )

    def __init__(self, call: Any, size: Size, holding: Holding | None) -> None:
        self.call = call
        self.size = size
        self.holding = holding
        self.done = 0
        self.to_prefill = size.input_tokens
        self.prefilled = 0
        self.num_blocks = 0
        self.first_step = -1
        self.last_step = -1


class ContinuousBatching:
    """An engine's steps. From ``_start_s`` on ``_num_steps`` steps follow without a change."""

    def __init__(self, engine: Engine) -> None:
        """Idle."""
        self.engine = engine
        self._model = engine.model
        self._seats = engine.max_num_seqs
        self._stretch = engine.stretch
        self.in_flight = 0
        self.end_s = math.inf
        self.num_preempted = 0
        limit = engine.model.kv_tokens
        self.cache = PrefixCache(math.inf if limit is None else int(limit) // BLOCK_TOKENS)
        self.cached_tokens = 0  # found in the cache by all calls that had a path
        self._counts_blocks = limit is not None
        self._waiting: deque[_Job] = deque()
        self._running: dict[_Job, None] = {}  # in the order they joined
        self._joining: list[_Job] = []
        self._chunks: list[tuple[_Job, int]] = []
        self._ends: list[tuple[int, int, _Job]] = []
        # Decoding calls by the step, modulo the size of a block, at which they need one more.
        self._growing = [0] * BLOCK_TOKENS
        self._start_s = 0.0
        self._num_steps = 0
        self._step = 0
        self._grown_step = -1
        self._preempted_step = -1
        self._decoding = 0
        self._context = 0
        self._first_s = 0.0  # length of the next step, and by how much each grows over the last
        self._growth_s = 0.0
        self._num_added = 0
        self._left = 0  # prompt tokens that the step has room for

    def add(
        self, call: Any, size: Size, now_s: float, run: int = 0, path: Sequence[Stretch] = ()
    ) -> None:
        """Take a call in: it joins the step that has just started, else the next.

        ``path``: its blocks in the prefix cache, among those of its ``run``.
        """
        self.in_flight += 1
        self._waiting.append(_Job(call, size, Holding(run, path) if path else None))
        if self.end_s == math.inf:
            self._start(now_s)
            return
        gone = 0 if self._chunks or self._num_steps == 1 else self._steps_by(now_s)
        since_s = now_s - self._start_s - self._length_s(gone)
        if since_s <= self.engine.join_window_s:
            self._go_on(gone)
            if self._chunks:
                self._fill()  # what the step holds already stays as it is
            else:
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
            last_step, _, job = heappop(self._ends)
            if job.last_step == last_step:
                self._leave(job)
                self.in_flight -= 1
                ended.append(job.call)
        if self._chunks:
            self._end_prompts(ended)
        self._start(now_s)
        return ended

    def _start(self, now_s: float) -> None:
        """Fill the step that starts now, and see how long nothing changes."""
        self._start_s = now_s
        self._chunks = []
        if self._counts_blocks and self._grown_step < self._step and self._decoding:
            self._grow()
        self._left = self._model.max_num_batched_tokens - self._decoding
        for job in tuple(self._joining):
            self._left -= self._take_chunk(job, self._left)
        self._fill()

    def _fill(self) -> None:
        """Let those who wait join the step, and see when it ends."""
        left = self._left
        while self._waiting and left > 0 and self._preempted_step < self._step:
            job = self._waiting[0]
            if len(self._running) >= self._seats or not self._look_up(job):
                break
            self._waiting.popleft()
            self._running[job] = None
            self._joining.append(job)
            left -= self._take_chunk(job, left)
        self._left = left
        model = self._model
        prefill = model.max_num_batched_tokens - self._decoding - left
        if not self._decoding and not prefill:
            self.end_s = math.inf
            return
        stretch = self._stretch
        factor = stretch[self.in_flight] if self.in_flight < len(stretch) else stretch[-1]
        self._first_s = factor * model.step_time_s(prefill, self._decoding, self._context)
        self._growth_s = factor * model.context_token_s * self._decoding
        # Nobody joins in a step that preempted, but somebody may in the next.
        if self._chunks or (self._waiting and self._preempted_step == self._step):
            self._num_steps = 1
            self.end_s = self._start_s + self._first_s
        else:
            self._num_steps = self._alike()
            self.end_s = self._start_s + self._length_s(self._num_steps)

    def _alike(self) -> int:
        """Steps, this one first, until a call ends or blocks run out."""
        while self._ends[0][2].last_step != self._ends[0][0]:
            heappop(self._ends)
        steps = self._ends[0][0] - self._step
        if not self._counts_blocks or len(self._running) == 1:
            return steps  # whoever is alone is let on
        free = self.cache.num_free
        if self._decoding * (steps + BLOCK_TOKENS - 1) <= free * BLOCK_TOKENS:
            return steps
        # This step's blocks are taken; whole rounds of a block each, then one step at a time.
        rounds = max(int(free), 0) // self._decoding
        free -= rounds * self._decoding
        most = 1 + rounds * BLOCK_TOKENS
        while most < steps:
            free -= self._growing[(self._step + most) % BLOCK_TOKENS]
            if free < 0:
                break
            most += 1
        return min(steps, most)

    def _grow(self) -> None:
        """Give every decoding call a place for its next token; the newest makes room."""
        self._grown_step = self._step
        phase = self._step % BLOCK_TOKENS
        if not self._growing[phase]:
            return
        # An engine would have refused at once what does not fit it alone.
        while self._growing[phase] > self.cache.num_free and len(self._running) > 1:
            self._preempt()
        self.cache.take(self._growing[phase])

    def _preempt(self) -> None:
        job = next(reversed(self._running))
        if job.first_step >= 0:
            job.done += self._step - job.first_step + 1
        self._leave(job)
        job.to_prefill = job.size.input_tokens + job.done
        job.prefilled, job.first_step, job.last_step = 0, -1, -1
        self._waiting.appendleft(job)
        self._preempted_step = self._step
        self.num_preempted += 1

    def _look_up(self, job: _Job) -> bool:
        """Share what the cache holds of it, if there is room for the rest of its prompt as well."""
        if job.holding is None:
            # What the trace found in its cache is found here too.
            job.prefilled = job.size.input_tokens - job.size.prefill_tokens
            needed = (job.to_prefill + BLOCK_TOKENS - 1) // BLOCK_TOKENS
            if self._counts_blocks and needed > self.cache.num_free and self._running:
                return False
            if job.prefilled:
                job.num_blocks = num_blocks_of(job.prefilled)
                self.cache.take(job.num_blocks)
            return True
        # The last token is always computed.
        found, kept = self.cache.find(job.holding, (job.to_prefill - 1) // BLOCK_TOKENS)
        needed = num_blocks_of(job.to_prefill) - found
        if needed + kept > self.cache.num_free and self._running:
            return False
        self.cache.use(job.holding, found)
        job.num_blocks = found
        # What all runs share (a system prompt) is found too; its blocks count as this call's own.
        shared = job.size.input_tokens - job.size.prefill_tokens
        job.prefilled = max(found * BLOCK_TOKENS, shared)
        if shared > found * BLOCK_TOKENS:
            job.num_blocks = num_blocks_of(shared)
            self.cache.take(job.num_blocks - found)
        if not job.done:
            self.cached_tokens += job.prefilled
        return True

    def _take_chunk(self, job: _Job, most: int) -> int:
        """Prompt tokens of the call in this step; none where it had to leave for want of blocks."""
        chunk = min(job.to_prefill - job.prefilled, most)
        if chunk <= 0:
            return 0
        tokens = job.prefilled + chunk
        needed = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS - job.num_blocks
        if needed > 0:
            if self._counts_blocks and needed > self.cache.num_free and len(self._running) > 1:
                self._preempt()  # prompts join in turn, so one half-way is the newest
                return 0
            self.cache.take(needed)
            job.num_blocks += needed
        if job.holding is not None:
            self.cache.fill(job.holding, tokens // BLOCK_TOKENS)
        self._chunks.append((job, chunk))
        return chunk

    def _length_s(self, num_steps: int) -> float:
        if num_steps == 0:
            return 0.0
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
        if not num_steps:
            return
        if num_steps == 1:
            self._start_s += self._first_s
            self._step += 1
            self._context += self._decoding
            return
        if self._counts_blocks:
            # The first one's blocks are taken; those of the step that comes then are not.
            rounds, rest = divmod(num_steps - 1, BLOCK_TOKENS)
            more = rounds * self._decoding
            for ahead in range(1, rest + 1):
                more += self._growing[(self._step + ahead) % BLOCK_TOKENS]
            self.cache.take(more)
        self._start_s += self._length_s(num_steps)
        self._step += num_steps
        self._context += num_steps * self._decoding

    def _end_prompts(self, ended: list[Any]) -> None:
        """Count the step's chunks; whose prompt is done has its next token."""
        for job, chunk in self._chunks:
            job.prefilled += chunk
            if job.prefilled < job.to_prefill:
                continue
            self._joining.remove(job)
            job.first_step = self._step
            job.last_step = self._step + job.size.output_tokens - job.done - 1
            self._decoding += 1
            self._context += job.to_prefill + 1
            self._growing[(self._step - job.to_prefill) % BLOCK_TOKENS] += 1
            if job.last_step <= self._step:
                self._leave(job)
                self.in_flight -= 1
                ended.append(job.call)
            else:
                self._num_added += 1
                heappush(self._ends, (job.last_step, self._num_added, job))
        self._chunks = []

    def _leave(self, job: _Job) -> None:
        """Out of the batch; what it computed stays in the cache while it can."""
        del self._running[job]
        if job.first_step < 0:
            self._joining.remove(job)
        else:
            computed = job.to_prefill + self._step - job.first_step
            self._decoding -= 1
            self._context -= computed + 1
            self._growing[(job.first_step - job.to_prefill) % BLOCK_TOKENS] -= 1
            job.num_blocks = (computed + BLOCK_TOKENS - 1) // BLOCK_TOKENS
            if job.holding is not None:
                self.cache.fill(job.holding, computed // BLOCK_TOKENS)
        self.cache.give_back(job.holding, job.num_blocks)
        job.num_blocks = 0
