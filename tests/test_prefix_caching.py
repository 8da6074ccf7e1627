"""Prefix cache and preemption in the batching core: timelines by hand, and a slow engine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.engines.simulated.batching import RunningBatch, Sequence

UNIT = EngineModel(step_s=1.0, prefill_token_s=0.0, sequence_s=0.0, context_token_s=0.0)
BLOCK = 16


def chain(tokens: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Each full block as all tokens up to its end."""
    return tuple(tokens[:end] for end in range(BLOCK, len(tokens) + 1, BLOCK))


def sequence(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Sequence:
    return Sequence(len(prompt), len(answer), chain(prompt + answer))


def run(batch: RunningBatch) -> None:
    """Work everything off, waking only when the batch says so."""
    while (due_s := batch.next_change_s()) is not None:
        batch.advance(due_s)


def alone(batch: RunningBatch, one: Sequence, now_s: float) -> float:
    """Seconds that a sequence takes which comes to an idle batch."""
    batch.advance(now_s)
    batch.add(one, now_s)
    run(batch)
    assert one.finished_s is not None
    return one.finished_s - now_s


def test_what_is_cached_is_not_prefilled_again_but_counts_as_context() -> None:
    """40 tokens: two full blocks are found the second time, 8 are computed; context in full."""
    model = EngineModel(step_s=1.0, prefill_token_s=0.5, sequence_s=0.0, context_token_s=0.125)
    batch, prompt = RunningBatch(model), tuple(range(40))
    first, again = sequence(prompt, (1, 2)), sequence(prompt, (3, 4))
    assert alone(batch, first, 0.0) == (1.0 + 0.5 * 40) + (1.0 + 0.125 * 41)
    assert alone(batch, again, 100.0) == (1.0 + 0.5 * 8) + (1.0 + 0.125 * 41)
    assert (first.cached_tokens, again.cached_tokens) == (0, 32)


def test_the_last_token_is_always_computed() -> None:
    """Of a prompt that fills two blocks the second is computed again, though it is there."""
    batch = RunningBatch(UNIT)
    prompt = tuple(range(32))
    alone(batch, sequence(prompt, (1,)), 0.0)
    again = sequence(prompt, (1,))
    alone(batch, again, 9.0)
    assert again.cached_tokens == 16


def test_a_conversation_that_goes_on_finds_its_answer_too() -> None:
    """20 tokens and an answer of 30 put 49 into the cache (the last is never computed): 3 blocks.

    The next turn begins with them.
    """
    batch = RunningBatch(UNIT)
    prompt, answer = tuple(range(20)), tuple(range(100, 130))
    alone(batch, sequence(prompt, answer), 0.0)
    later = sequence((*prompt, *answer, 7, 8, 9), (1,))
    alone(batch, later, 99.0)
    assert later.cached_tokens == 48


def test_a_fan_out_shares_its_prompt_in_the_step_that_computes_it() -> None:
    """The second of two equal prompts in one step finds what the first is computing, as in vLLM."""
    batch = RunningBatch(replace(UNIT, prefill_token_s=1.0), join_window_s=0.5)
    prompt = tuple(range(33))
    one, other = sequence(prompt, (1,)), sequence(prompt, (2,))
    batch.add(one, 0.0)
    batch.add(other, 0.1)
    run(batch)
    assert (one.cached_tokens, other.cached_tokens) == (0, 32)
    assert one.finished_s == other.finished_s == 1.0 + 33 + 1


def test_without_a_chain_nothing_is_shared() -> None:
    """Prefix caching off: the same prompt again takes as long."""
    batch = RunningBatch(replace(UNIT, prefill_token_s=1.0))
    assert [alone(batch, Sequence(64, 1), t) for t in (0.0, 500.0)] == [65.0, 65.0]


def test_a_cache_that_fills_up_forgets_the_oldest() -> None:
    """Three blocks: after another prompt of two only the beginning of the first is left."""
    batch = RunningBatch(replace(UNIT, kv_tokens=48.0))
    first, second = tuple(range(33)), tuple(range(100, 132))
    alone(batch, sequence(first[:32], (1,)), 0.0)
    alone(batch, sequence(second, (1,)), 10.0)
    again = sequence(first, (1,))
    alone(batch, again, 20.0)
    assert again.cached_tokens == 16


def test_the_newest_is_preempted_and_computes_its_tokens_again() -> None:
    """Three blocks, two sequences of 16 tokens, a second a prefilled token, no prefix cache.

    The first step prefills both, a block each. In the second both need a block for their second
    token and one is left: `b`, the newer, goes back to the queue with its one token. `a` ends three
    steps later; then `b` computes 17 tokens, has its second with them, and two steps more.
    """
    model = replace(UNIT, prefill_token_s=1.0, kv_tokens=48.0)
    batch = RunningBatch(model, join_window_s=0.1)
    a, b = Sequence(16, 4), Sequence(16, 4)
    batch.add(a, 0.0)
    batch.add(b, 0.0)
    run(batch)
    prefill_s = 1.0 + 32
    assert (a.first_token_s, b.first_token_s) == (prefill_s, prefill_s)
    assert a.finished_s == prefill_s + 3
    assert b.finished_s == prefill_s + 3 + (1.0 + 17) + 2
    assert (batch.num_preemptions, batch.blocks.num_used, batch._context) == (1, 0, 0)


def test_a_preempted_sequence_finds_what_the_cache_kept_of_it() -> None:
    """As above with a prefix cache: its first block is found again, one token is computed."""
    model = replace(UNIT, prefill_token_s=1.0, kv_tokens=48.0)
    batch = RunningBatch(model, join_window_s=0.1)
    a = sequence(tuple(range(16)), (1, 2, 3, 4))
    b = sequence(tuple(range(50, 66)), (1, 2, 3, 4))
    batch.add(a, 0.0)
    batch.add(b, 0.0)
    run(batch)
    assert a.finished_s == 33.0 + 3
    assert b.finished_s == 33.0 + 3 + (1.0 + 1) + 2
    assert (b.cached_tokens, batch.num_preemptions) == (0, 1)


def test_nobody_joins_in_a_step_that_preempted_and_the_preempted_goes_first() -> None:
    """A short prompt that waits would fit, and comes after the preempted one all the same."""
    batch = RunningBatch(replace(UNIT, kv_tokens=48.0), max_num_seqs=2, join_window_s=0.1)
    a, b, short = Sequence(16, 4), Sequence(16, 4), Sequence(8, 1)
    for one in (a, b, short):
        batch.add(one, 0.0)
    run(batch)
    assert (a.finished_s, b.finished_s) == (4.0, 7.0)
    assert short.joined_s == 4.0


def test_an_aborted_sequence_gives_all_its_blocks_back() -> None:
    """In prefill, decoding, preempted: the cache is empty of use in the end."""
    for when_s in (0.5, 1.5, 2.5):
        model = replace(UNIT, kv_tokens=64.0, max_num_batched_tokens=24)
        batch = RunningBatch(model, join_window_s=0.1)
        first, second = Sequence(16, 40), Sequence(20, 30)
        for one in (first, second):
            batch.add(one, 0.0)
        batch.advance(when_s)
        batch.abort(second)
        run(batch)
        assert first.finished_s == 40.0
        assert (batch.blocks.num_used, batch._growing) == (0, [0] * BLOCK)


@dataclass(eq=False)
class SlowBlock:
    """``holds``: all tokens up to its end, once it is full; ``users``: sequences."""

    holds: tuple[int, ...] | None = None
    users: int = 0
    idle_since: int = 0


@dataclass(eq=False)
class SlowSequence:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    arrived_s: float
    done: int = 0
    computed: int = 0
    prefilling: bool = True
    table: list[SlowBlock] = field(default_factory=list)
    cached: int | None = None
    end_s: float = 0.0

    @property
    def tokens(self) -> tuple[int, ...]:
        return (self.prompt + self.answer)[: len(self.prompt) + self.done]


class SlowEngine:
    """The same rules with an object for each block; shares nothing with the core.

    The cache is searched block by block for the tokens themselves.
    """

    def __init__(self, model: EngineModel, seats: int, num_blocks: int) -> None:
        self.model, self.seats = model, seats
        self.pool = [SlowBlock() for _ in range(num_blocks)]
        self.running: list[SlowSequence] = []
        self.scheduled: list[tuple[SlowSequence, int]] = []
        self.budget = self.clock = self.num_preempted = 0

    def find(self, holds: tuple[int, ...]) -> SlowBlock | None:
        return next((block for block in self.pool if block.holds == holds), None)

    def schedule(self, one: SlowSequence) -> bool:
        """Blocks for its next tokens, blank ones first, then the longest idle; False: no room."""
        count = min(len(one.tokens) - one.computed, self.budget)
        idle = [block for block in self.pool if not block.users]
        idle.sort(key=lambda block: (block.holds is not None, block.idle_since))
        needed = -(-(one.computed + count) // BLOCK) - len(one.table)
        if needed > len(idle):
            return False
        for block in idle[:needed]:
            block.holds, block.users = None, 1
            one.table.append(block)
        self.budget -= count
        self.scheduled.append((one, count))
        self.label(one, one.computed + count)
        return True

    def label(self, one: SlowSequence, upto: int) -> None:
        """Full blocks can be found, one of each content."""
        for number, block in enumerate(one.table[: upto // BLOCK]):
            holds = one.tokens[: BLOCK * (number + 1)]
            if block.holds is None and self.find(holds) is None:
                block.holds = holds

    def free(self, one: SlowSequence) -> None:
        for block in reversed(one.table):
            block.users -= 1
            self.clock += 1
            block.idle_since = self.clock
        one.table, one.computed, one.prefilling = [], 0, True

    def go_on(self, waiting: list[SlowSequence]) -> bool:
        """Schedule those in the batch; whether one had to leave it."""
        before = self.num_preempted
        for one in list(self.running):
            while one in self.running and not self.schedule(one):
                victim = self.running.pop()
                self.free(victim)
                waiting.insert(0, victim)
                self.num_preempted += 1
        return self.num_preempted > before

    def admit(self, waiting: list[SlowSequence]) -> None:
        while waiting and self.budget > 0 and len(self.running) < self.seats:
            one = waiting[0]
            while BLOCK * (len(one.table) + 1) < len(one.tokens):
                block = self.find(one.tokens[: BLOCK * (len(one.table) + 1)])
                if block is None:
                    break
                one.table.append(block)
            for block in one.table:
                block.users += 1
            one.computed = found = BLOCK * len(one.table)
            needed = -(-len(one.tokens) // BLOCK) - len(one.table)
            if needed > sum(not block.users for block in self.pool):
                for block in one.table:
                    block.users -= 1
                one.table, one.computed = [], 0
                return
            assert self.schedule(one)
            one.cached = found if one.cached is None else one.cached
            self.running.append(waiting.pop(0))

    def step(self, waiting: list[SlowSequence], now_s: float) -> float:
        """One step of the engine; its end."""
        self.scheduled, self.budget = [], self.model.max_num_batched_tokens
        if not self.go_on(waiting):
            self.admit(waiting)
        decoding = [one for one, _ in self.scheduled if not one.prefilling]
        prefill = sum(count for one, count in self.scheduled if one.prefilling)
        context = sum(len(one.tokens) for one in decoding)
        end_s = now_s + self.model.step_time_s(prefill, len(decoding), context)
        for one, count in self.scheduled:
            one.computed += count
            if one.computed == len(one.tokens):
                one.prefilling = False
                self.label(one, one.computed)
                one.done += 1
                if one.done == len(one.answer):
                    one.end_s = end_s
                    self.running.remove(one)
                    self.free(one)
        return end_s


def conversations(batch: RunningBatch, rng: random.Random) -> list[SlowSequence]:
    """Run drawn calls on ``batch``, and return them for the slow engine to run.

    Each begins like one of three prompts or goes on from a call that has ended; answers are never
    alike. ``end_s`` and ``cached`` are what the batch made of them.
    """
    heads = [tuple(rng.choices(range(50), k=rng.randrange(70))) for _ in range(3)]
    calls: list[SlowSequence] = []
    mine: list[Sequence] = []
    time_s = 0.0
    for number in range(40):
        time_s += rng.expovariate(0.4)
        while (due_s := batch.next_change_s()) is not None and due_s <= time_s:
            batch.advance(due_s)
        batch.advance(time_s)
        said = [c.prompt + c.answer for c, m in zip(calls, mine, strict=True) if m.finished_s]
        begin = rng.choice(heads + said[-4:])[:90]
        prompt = begin + tuple(rng.choices(range(50), k=rng.randrange(1, 30)))
        answer = tuple(1000 * number + n for n in range(1000, 1000 + rng.randrange(1, 60)))
        calls.append(SlowSequence(prompt, answer, time_s))
        mine.append(sequence(prompt, answer))
        batch.add(mine[-1], time_s)
    run(batch)
    for one, made in zip(calls, mine, strict=True):
        assert made.finished_s is not None
        one.end_s, one.cached = made.finished_s, made.cached_tokens
    return calls


@pytest.mark.parametrize("seed", range(12))
def test_the_batch_equals_a_slow_engine_block_by_block(seed: int) -> None:
    """Ends, cache hits and preemptions of drawn conversations on small caches are the same."""
    rng = random.Random(seed)
    num_blocks, seats = rng.randrange(12, 40), rng.randrange(2, 9)
    model = EngineModel(
        step_s=1.0,
        prefill_token_s=0.03,
        sequence_s=0.02,
        context_token_s=0.001,
        max_num_batched_tokens=rng.choice([24, 64, 512]),
        kv_tokens=num_blocks * BLOCK + rng.randrange(BLOCK),
    )
    batch = RunningBatch(model, max_num_seqs=seats)
    mine = conversations(batch, rng)
    slow = SlowEngine(model, seats, num_blocks)
    theirs = [SlowSequence(one.prompt, one.answer, one.arrived_s) for one in mine]
    waiting: list[SlowSequence] = []
    now_s, coming = 0.0, list(theirs)
    while coming or waiting or slow.running:
        if not waiting and not slow.running:
            now_s = max(now_s, coming[0].arrived_s)
        while coming and coming[0].arrived_s <= now_s:
            waiting.append(coming.pop(0))
        now_s = slow.step(waiting, now_s)
    assert [one.end_s for one in mine] == pytest.approx([one.end_s for one in theirs])
    assert [one.cached for one in mine] == [one.cached for one in theirs]
    assert batch.num_preemptions == slow.num_preempted
    assert batch.blocks.num_used == 0
    assert sum(one.cached or 0 for one in mine) > 0
