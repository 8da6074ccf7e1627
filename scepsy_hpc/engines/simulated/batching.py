"""Continuous batching in simulated time: what each engine step holds and when it ends.

Pure: no clock, no network. Time is whatever the caller passes in, never going back. Between two
changes of the batch all steps are alike but for their growing context, so only a sum is kept and
a step costs the same whatever the batch size.

The rules are those of vLLM's scheduler: decoding sequences first, one token each; the rest of the
step's token budget goes to prompts in order of arrival, in chunks; a prompt joins while the batch
has a seat and the KV cache has room. Room for prompt and output is set aside when a sequence
joins, so nothing is ever preempted.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from scepsy_hpc.bundles.step_time import DEFAULT_NUM_SEQS, EngineModel


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence on its way through the engine; times are on the caller's clock."""

    prompt_tokens: int
    output_tokens: int
    arrived_s: float = 0.0
    joined_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    aborted: bool = False
    _prefilled: int = 0
    _first_step: int | None = None

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache set aside for it."""
        return self.prompt_tokens + self.output_tokens


@dataclass(slots=True)
class RunningBatch:
    """The engine's state. ``step_end_s`` is None while it is idle.

    A sequence that comes within ``join_window_s`` of a step's start still joins that step. The
    fitted step time knows no return trip of a closed-loop client; without a window each call of a
    fan-out, or the next of a client just answered, would find the step gone by a millisecond.
    """

    model: EngineModel
    max_num_seqs: int = DEFAULT_NUM_SEQS
    join_window_s: float = 0.0
    waiting: deque[Sequence] = field(default_factory=deque)
    step_end_s: float | None = None
    num_steps: int = 0
    num_decoding: int = 0
    kv_used: int = 0
    _context: int = 0
    _step_start_s: float = 0.0
    _budget: int = 0
    _prefilling: list[Sequence] = field(default_factory=list)
    _chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    _finishing: list[tuple[int, int, Sequence]] = field(default_factory=list)
    _num_added: int = 0

    @property
    def num_running(self) -> int:
        """Sequences in the batch, in prefill or decoding."""
        return self.num_decoding + len(self._prefilling)

    @property
    def kv_usage(self) -> float:
        """Fraction of the KV cache that is set aside; 0 where its size is unknown."""
        return self.kv_used / self.model.kv_tokens if self.model.kv_tokens else 0.0

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence could run at all, alone."""
        limit = self.model.kv_tokens
        return limit is None or sequence.kv_tokens <= limit

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Queue a sequence; call ``advance(now_s)`` first. It joins at the next step's start."""
        assert self.fits(sequence), "a sequence beyond the cache would wait for ever"
        sequence.arrived_s = now_s
        self.waiting.append(sequence)
        if self.step_end_s is None:
            self._start_step(now_s)
        elif now_s - self._step_start_s < self.join_window_s:
            self._join()

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out; the step under way keeps its length."""
        if sequence.aborted or sequence.finished_s is not None:
            return
        sequence.aborted = True
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self._prefilling:
            self._prefilling.remove(sequence)
            self._chunks = [(s, n) for s, n in self._chunks if s is not sequence]
            self.kv_used -= sequence.kv_tokens
        else:
            self._leave(sequence)

    def advance(self, now_s: float) -> list[Sequence]:
        """Work off all steps that end by ``now_s``; the sequences with a first or last token."""
        marked: dict[int, Sequence] = {}
        while self.step_end_s is not None and self.step_end_s <= now_s:
            end_s = self.step_end_s
            for sequence in self._end_step(end_s):
                marked[id(sequence)] = sequence
            self._start_step(end_s)
        return list(marked.values())

    def next_change_s(self) -> float | None:
        """When the next first or last token falls due if nobody else comes; None when idle."""
        if self.step_end_s is None:
            return None
        if self._chunks or self.waiting or self._prefilling:
            return self.step_end_s
        left = self._drop_aborted() - self.num_steps
        if left <= 1 or not self._finishing:
            return self.step_end_s
        more = left - 1  # steps after the one under way
        grown = self._context + self.num_decoding  # context of the first of them
        first_s = self.model.step_time_s(0, self.num_decoding, grown)
        growth_s = self.model.context_token_s * self.num_decoding
        return self.step_end_s + more * first_s + growth_s * more * (more - 1) / 2.0

    def num_generated(self, sequence: Sequence) -> int:
        """Output tokens a sequence has so far."""
        if sequence._first_step is None:
            return 0
        done = self.num_steps - sequence._first_step + 1
        return sequence.output_tokens if sequence.finished_s is not None else done

    def _start_step(self, start_s: float) -> None:
        """Fill the next step: decodes, then chunks of prompts, oldest first."""
        self._step_start_s = start_s
        self._budget = self.model.max_num_batched_tokens - self.num_decoding
        self._chunks = []
        for sequence in self._prefilling:
            self._take_chunk(sequence)
        self._join()

    def _join(self) -> None:
        """Let the queue join the step that has just started, and set the step's end."""
        while self.waiting and self._budget > 0 and self._has_room(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.joined_s = max(self._step_start_s, sequence.arrived_s)
            self.kv_used += sequence.kv_tokens
            self._prefilling.append(sequence)
            self._take_chunk(sequence)
        prefill = sum(chunk for _, chunk in self._chunks)
        duration_s = self.model.step_time_s(prefill, self.num_decoding, self._context)
        busy = prefill > 0 or self.num_decoding > 0
        self.step_end_s = self._step_start_s + duration_s if busy else None

    def _take_chunk(self, sequence: Sequence) -> None:
        chunk = min(sequence.prompt_tokens - sequence._prefilled, max(self._budget, 0))
        if chunk > 0:
            self._chunks.append((sequence, chunk))
            self._budget -= chunk

    def _has_room(self, sequence: Sequence) -> bool:
        limit = self.model.kv_tokens
        seats = self.num_running < self.max_num_seqs
        return seats and (limit is None or self.kv_used + sequence.kv_tokens <= limit)

    def _end_step(self, end_s: float) -> list[Sequence]:
        """Count the step's tokens; the sequences that got their first or last one."""
        self.num_steps += 1
        self._context += self.num_decoding
        marked = []
        while self._finishing and self._finishing[0][0] <= self.num_steps:
            sequence = heapq.heappop(self._finishing)[2]
            if not sequence.aborted:
                self._finish(sequence, end_s)
                marked.append(sequence)
        for sequence, chunk in self._chunks:
            sequence._prefilled += chunk
            if sequence._prefilled >= sequence.prompt_tokens:
                self._first_token(sequence, end_s)
                marked.append(sequence)
        return marked

    def _first_token(self, sequence: Sequence, end_s: float) -> None:
        self._prefilling.remove(sequence)
        sequence.first_token_s = end_s
        sequence._first_step = self.num_steps
        self.num_decoding += 1
        self._context += sequence.prompt_tokens + 1
        last_step = self.num_steps + sequence.output_tokens - 1
        if sequence.output_tokens <= 1:
            self._finish(sequence, end_s)
        else:
            self._num_added += 1
            heapq.heappush(self._finishing, (last_step, self._num_added, sequence))

    def _finish(self, sequence: Sequence, end_s: float) -> None:
        self._leave(sequence)
        sequence.finished_s = end_s

    def _leave(self, sequence: Sequence) -> None:
        """Take a decoding sequence out of the sums."""
        assert sequence._first_step is not None, "only a decoding sequence is in the sums"
        self.num_decoding -= 1
        self._context -= sequence.prompt_tokens + self.num_steps - sequence._first_step + 1
        self.kv_used -= sequence.kv_tokens

    def _drop_aborted(self) -> int:
        """The step in which the next sequence ends, aborted ones taken off the heap."""
        while self._finishing and self._finishing[0][2].aborted:
            heapq.heappop(self._finishing)
        return self._finishing[0][0] if self._finishing else self.num_steps
