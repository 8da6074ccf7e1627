"""Continuous batching in simulated time: what each engine step holds and when it ends.

Pure: no clock, no network. Time is whatever the caller passes in, never going back. Between two
changes of the batch all steps are alike but for their growing context, so only a sum is kept and
a step costs the same whatever the batch size.

The rules are those of vLLM's scheduler: decoding sequences first, one token each; the rest of the
step's token budget goes to prompts in order of arrival, in chunks; a prompt joins while the batch
has a seat and the KV cache has room for all of it. What the prefix cache holds of a prompt is not
computed again, but for its last token. A sequence takes blocks as it grows; when there are none
left the newest in the batch is preempted: it gives its blocks back, waits in front of all others,
and computes again what the cache has lost of it. Nobody joins in a step that preempted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from scepsy_hpc.bundles.step_time import DEFAULT_NUM_SEQS, EngineModel
from scepsy_hpc.engines.simulated.kv_blocks import KvBlocks, num_blocks_of
from scepsy_hpc.formats.spans import BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence on its way through the engine; times are on the caller's clock.

    ``chain`` names its full blocks, of prompt and answer, for the prefix cache: each stands for all
    tokens up to its end. Empty: it shares nothing. ``cached_tokens`` were found in the cache when
    it first joined; None until then.
    """

    prompt_tokens: int
    output_tokens: int
    chain: tuple[Hashable, ...] = ()
    arrived_s: float = 0.0
    joined_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    aborted: bool = False
    cached_tokens: int | None = None
    _done: int = 0  # output tokens it had when it was preempted
    _prefilled: int = 0
    _first_step: int | None = None
    _last_step: int | None = None
    _filled: int = 0  # full blocks of the chain whose tokens are computed
    _num_blocks: int = 0  # that its prefill has taken
    _shared: list[Hashable] = field(default_factory=list)

    @property
    def to_prefill(self) -> int:
        """Tokens to have in the cache before it can generate: the prompt and what it has."""
        return self.prompt_tokens + self._done


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
    num_tokens: int = 0  # generated so far, of all sequences
    num_preemptions: int = 0
    blocks: KvBlocks = field(init=False)
    _context: int = 0
    _step_start_s: float = 0.0
    _budget: int = 0
    _preempted: bool = False  # in the step under way
    _running: dict[Sequence, None] = field(default_factory=dict)  # in the order they joined
    _prefilling: list[Sequence] = field(default_factory=list)
    _chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    _finishing: list[tuple[int, int, Sequence]] = field(default_factory=list)
    _num_added: int = 0
    # Decoding sequences by the step, modulo the size of a block, at which they need one more.
    _growing: list[int] = field(default_factory=lambda: [0] * BLOCK_TOKENS)

    def __post_init__(self) -> None:
        """As many blocks as the model's KV cache holds whole."""
        limit = self.model.kv_tokens
        self.blocks = KvBlocks(math.inf if limit is None else int(limit) // BLOCK_TOKENS)

    @property
    def num_running(self) -> int:
        """Sequences in the batch, in prefill or decoding."""
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Fraction of the KV cache that sequences use; 0 where its size is unknown."""
        return self.blocks.num_used / self.blocks.num_blocks if self.blocks.num_blocks else 0.0

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence could run at all, alone."""
        tokens = sequence.prompt_tokens + sequence.output_tokens
        return num_blocks_of(tokens) <= self.blocks.num_blocks

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
        if sequence not in self._running:
            self.waiting.remove(sequence)
            return
        if sequence._first_step is None:
            self._chunks = [(s, n) for s, n in self._chunks if s is not sequence]
        # The step under way has a place for the token that it would have computed.
        self._leave(sequence, 1)

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
        """When the next first or last token falls due if nobody else comes; None when idle.

        Where blocks may run out before, the end of a step in which they do not.
        """
        if self.step_end_s is None:
            return None
        if self._chunks or self.waiting or self._prefilling:
            return self.step_end_s
        left = self._drop_stale() - self.num_steps
        if left <= 1 or not self._finishing:
            return self.step_end_s
        more = left - 1  # steps after the one under way
        if self.blocks.num_free < self.num_decoding * num_blocks_of(more):
            most = int(self.blocks.num_free) // self.num_decoding * BLOCK_TOKENS
            more = min(more, max(most, 0))
        grown = self._context + self.num_decoding  # context of the first of them
        first_s = self.model.step_time_s(0, self.num_decoding, grown)
        growth_s = self.model.context_token_s * self.num_decoding
        return self.step_end_s + more * first_s + growth_s * more * (more - 1) / 2.0

    def num_generated(self, sequence: Sequence) -> int:
        """Output tokens a sequence has so far."""
        if sequence.finished_s is not None:
            return sequence.output_tokens
        if sequence._first_step is None:
            return sequence._done
        return sequence._done + self.num_steps - sequence._first_step + 1

    def _start_step(self, start_s: float) -> None:
        """Fill the next step: decodes, then chunks of prompts, oldest first."""
        self._step_start_s = start_s
        self._preempted = False
        self._chunks = []
        self._grow()
        self._budget = self.model.max_num_batched_tokens - self.num_decoding
        for sequence in list(self._prefilling):
            self._take_chunk(sequence)
        self._join()

    def _grow(self) -> None:
        """Give every decoding sequence a place for its next token."""
        phase = self.num_steps % BLOCK_TOKENS
        while self._growing[phase] > self.blocks.num_free:
            self._preempt()
        self.blocks.take(self._growing[phase])

    def _preempt(self) -> None:
        """Send the newest sequence back to the queue; before it has a place in this step."""
        sequence = next(reversed(self._running))
        done = self.num_generated(sequence)
        self._leave(sequence, 0)
        sequence._done, sequence._prefilled, sequence._filled = done, 0, 0
        sequence._first_step = sequence._last_step = None
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
        self._preempted = True

    def _join(self) -> None:
        """Let the queue join the step that has just started, and set the step's end."""
        while self.waiting and self._budget > 0 and not self._preempted:
            sequence = self.waiting[0]
            if self.num_running >= self.max_num_seqs or not self._look_up(sequence):
                break
            self.waiting.popleft()
            if sequence.joined_s is None:
                sequence.joined_s = max(self._step_start_s, sequence.arrived_s)
                sequence.cached_tokens = sequence._prefilled
            self._running[sequence] = None
            self._prefilling.append(sequence)
            self._take_chunk(sequence)
        prefill = sum(chunk for _, chunk in self._chunks)
        duration_s = self.model.step_time_s(prefill, self.num_decoding, self._context)
        busy = prefill > 0 or self.num_decoding > 0
        self.step_end_s = self._step_start_s + duration_s if busy else None

    def _look_up(self, sequence: Sequence) -> bool:
        """Share what the cache holds of it, if there is room for the rest of its prompt as well."""
        most = (sequence.to_prefill - 1) // BLOCK_TOKENS  # the last token is always computed
        found = self.blocks.num_found(sequence.chain[:most])
        shared, tokens = sequence.chain[:found], found * BLOCK_TOKENS
        needed = num_blocks_of(sequence.to_prefill) - found
        if needed + self.blocks.num_kept(shared) > self.blocks.num_free:
            return False
        self.blocks.use(shared)
        sequence._shared, sequence._prefilled = list(shared), tokens
        sequence._filled = sequence._num_blocks = found
        return True

    def _take_chunk(self, sequence: Sequence) -> None:
        chunk = min(sequence.to_prefill - sequence._prefilled, max(self._budget, 0))
        if chunk <= 0:
            return
        tokens = sequence._prefilled + chunk
        needed = num_blocks_of(tokens) - sequence._num_blocks
        if needed > self.blocks.num_free:
            # Prompts are served in the order in which they joined: one half-way is the newest.
            self._preempt()
            return
        self.blocks.take(needed)
        sequence._num_blocks += needed
        self._chunks.append((sequence, chunk))
        self._budget -= chunk
        self._fill(sequence, tokens)

    def _fill(self, sequence: Sequence, tokens: int) -> None:
        """Let others share the blocks that so many of its tokens fill.

        Those of a prompt from the step in which they are computed, as in vLLM.
        """
        full = sequence.chain[sequence._filled : tokens // BLOCK_TOKENS]
        sequence._shared += self.blocks.fill(full)
        sequence._filled += len(full)

    def _end_step(self, end_s: float) -> list[Sequence]:
        """Count the step's tokens; the sequences that got their first or last one."""
        self.num_steps += 1
        self.num_tokens += self.num_decoding
        self._context += self.num_decoding
        marked = []
        while self._finishing and self._finishing[0][0] <= self.num_steps:
            last_step, _, sequence = heapq.heappop(self._finishing)
            if not sequence.aborted and sequence._last_step == last_step:
                self._finish(sequence, end_s)
                marked.append(sequence)
        for sequence, chunk in self._chunks:
            sequence._prefilled += chunk
            if sequence._prefilled >= sequence.to_prefill:
                self._first_token(sequence, end_s)
                marked.append(sequence)
        return marked

    def _first_token(self, sequence: Sequence, end_s: float) -> None:
        """The first one of this stay in the batch."""
        self._prefilling.remove(sequence)
        self.num_tokens += 1
        if sequence.first_token_s is None:
            sequence.first_token_s = end_s
        sequence._first_step = self.num_steps
        sequence._last_step = self.num_steps + sequence.output_tokens - sequence._done - 1
        self.num_decoding += 1
        self._context += sequence.to_prefill + 1
        self._growing[_phase(sequence)] += 1
        if sequence._last_step <= self.num_steps:
            self._finish(sequence, end_s)
        else:
            self._num_added += 1
            heapq.heappush(self._finishing, (sequence._last_step, self._num_added, sequence))

    def _finish(self, sequence: Sequence, end_s: float) -> None:
        self._leave(sequence, 0)
        sequence.finished_s = end_s

    def _leave(self, sequence: Sequence, num_reserved: int) -> None:
        """Take a sequence out of the batch; what it computed stays in the cache while it can.

        ``num_reserved``: tokens that the step under way has a place for beyond those computed.
        """
        del self._running[sequence]
        num_blocks = sequence._num_blocks
        if sequence._first_step is None:
            self._prefilling.remove(sequence)
        else:
            computed = sequence.to_prefill + self.num_steps - sequence._first_step
            self.num_decoding -= 1
            self._context -= computed + 1
            self._growing[_phase(sequence)] -= 1
            self._fill(sequence, computed)
            num_blocks = num_blocks_of(computed + num_reserved)
        self.blocks.give_back(sequence._shared, num_blocks - len(sequence._shared))
        sequence._shared = []

    def _drop_stale(self) -> int:
        """The step in which the next sequence ends, entries that are not true taken off."""
        while self._finishing:
            last_step, _, sequence = self._finishing[0]
            if not sequence.aborted and sequence._last_step == last_step:
                return last_step
            heapq.heappop(self._finishing)
        return self.num_steps


def _phase(sequence: Sequence) -> int:
    """The step, modulo the size of a block, at which a decoding sequence needs another block."""
    assert sequence._first_step is not None, "only a decoding sequence grows"
    return (sequence._first_step - sequence.to_prefill) % BLOCK_TOKENS
