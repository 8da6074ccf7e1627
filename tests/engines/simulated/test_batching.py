"""The batching core: exact timelines, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.engines.simulated.batching import RunningBatch, Sequence

# One second a step, and nothing else, unless a test says so.
UNIT = EngineModel(step_s=1.0, prefill_token_s=0.0, sequence_s=0.0, context_token_s=0.0)


def _run(batch: RunningBatch) -> None:
    """Work everything off, waking only when the batch says so."""
    while (due_s := batch.next_change_s()) is not None:
        batch.advance(due_s)


def test_a_lone_sequence_takes_one_step_a_token() -> None:
    """Three tokens: the first after the prefill step, the last two steps later."""
    batch, sequence = RunningBatch(UNIT), Sequence(10, 3)
    batch.add(sequence, 5.0)
    _run(batch)
    assert (sequence.first_token_s, sequence.finished_s) == (6.0, 8.0)
    assert (batch.num_running, batch.blocks.num_used, batch.step_end_s) == (0, 0, None)


def test_a_newcomer_joins_at_the_next_step() -> None:
    """One that comes during a step waits for its end, then shares steps with the other."""
    batch, early, late = RunningBatch(UNIT), Sequence(10, 4), Sequence(10, 1)
    batch.add(early, 0.0)
    batch.advance(1.5)
    batch.add(late, 1.5)
    _run(batch)
    assert late.joined_s == 2.0
    assert late.finished_s == 3.0
    assert early.finished_s == 4.0


def test_a_call_just_behind_the_start_still_joins() -> None:
    """Within the window a fan-out shares one step, as long as it is; behind it, the next."""
    model = replace(UNIT, prefill_token_s=0.5)
    batch = RunningBatch(model, join_window_s=0.1)
    a, b, c = (Sequence(2, 1) for _ in range(3))
    batch.add(a, 0.0)
    batch.add(b, 0.05)
    batch.add(c, 0.2)
    _run(batch)
    assert (a.finished_s, b.finished_s, c.finished_s) == (3.0, 3.0, 5.0)


def test_step_time_counts_prefill_sequences_and_context() -> None:
    """Every term of the step time appears once: 8 prompt tokens, then two growing decodes."""
    model = EngineModel(step_s=1.0, prefill_token_s=0.5, sequence_s=0.25, context_token_s=0.125)
    batch, sequence = RunningBatch(model), Sequence(8, 3)
    batch.add(sequence, 0.0)
    _run(batch)
    prefill_s = 1.0 + 0.5 * 8
    decodes_s = (1.0 + 0.25 + 0.125 * 9) + (1.0 + 0.25 + 0.125 * 10)
    assert sequence.first_token_s == prefill_s
    assert sequence.finished_s == prefill_s + decodes_s


def test_long_prompts_are_chunked_beside_decodes() -> None:
    """A budget of 4 tokens: ten prompt tokens beside one decode take chunks of 3, so four steps."""
    batch = RunningBatch(replace(UNIT, max_num_batched_tokens=4))
    decoding, prompt = Sequence(1, 20), Sequence(10, 1)
    batch.add(decoding, 0.0)
    batch.advance(1.0)
    batch.add(prompt, 1.0)
    _run(batch)
    assert prompt.joined_s == 2.0
    assert prompt.finished_s == 6.0
    assert decoding.finished_s == 20.0


def test_seats_limit_the_batch() -> None:
    """Two seats: the third sequence joins when the first leaves, in order of arrival."""
    batch = RunningBatch(UNIT, max_num_seqs=2)
    a, b, c = Sequence(1, 2), Sequence(1, 4), Sequence(1, 1)
    for sequence in (a, b, c):
        batch.add(sequence, 0.0)
    batch.advance(1.0)
    assert (batch.num_running, len(batch.waiting)) == (2, 1)
    _run(batch)
    assert c.joined_s == a.finished_s
    assert (a.joined_s, b.joined_s) == (0.0, 1.0)


def test_the_cache_limits_the_batch() -> None:
    """Four blocks hold two prompts of 17 tokens at a time; what needs five never fits."""
    batch = RunningBatch(replace(UNIT, kv_tokens=70.0))
    first, second, third = (Sequence(17, 2) for _ in range(3))
    for sequence in (first, second, third):
        batch.add(sequence, 0.0)
    batch.advance(1.0)
    assert batch.kv_usage == 4 / 4
    assert third.joined_s is None
    _run(batch)
    assert third.joined_s == first.finished_s
    assert batch.num_preemptions == 0
    assert batch.fits(Sequence(32, 32))
    assert not batch.fits(Sequence(33, 32))


def test_an_aborted_sequence_frees_its_place() -> None:
    """Aborting one in each state leaves the other untouched and the sums at zero in the end."""
    batch = RunningBatch(replace(UNIT, max_num_batched_tokens=100), max_num_seqs=2)
    decoding, kept, queued = Sequence(5, 50), Sequence(5, 6), Sequence(5, 5)
    batch.add(decoding, 0.0)
    batch.add(kept, 0.0)
    batch.add(queued, 0.0)
    batch.advance(3.0)
    batch.abort(queued)
    batch.abort(decoding)
    batch.abort(decoding)
    _run(batch)
    assert kept.finished_s == 7.0
    assert decoding.finished_s is None
    assert queued.joined_s is None
    assert (batch.num_running, batch.blocks.num_used, batch._context) == (0, 0, 0)


def test_aborting_a_prompt_in_prefill() -> None:
    """A half-prefilled prompt that is given up no longer takes budget."""
    batch = RunningBatch(replace(UNIT, max_num_batched_tokens=4))
    given_up, kept = Sequence(40, 1), Sequence(4, 1)
    batch.add(given_up, 0.0)
    batch.advance(1.0)
    batch.add(kept, 1.0)
    batch.abort(given_up)
    _run(batch)
    assert kept.finished_s == 3.0
    assert batch.blocks.num_used == 0


def test_waking_rarely_or_often_gives_the_same_timeline() -> None:
    """Advancing at every step, at each change, or once at the end ends every sequence alike."""
    model = replace(UNIT, prefill_token_s=0.01, sequence_s=0.003, context_token_s=1e-4)
    ends = []
    for pause_s in (0.05, 1.0, 500.0):
        batch = RunningBatch(replace(model, max_num_batched_tokens=64), max_num_seqs=3)
        sequences = [Sequence(30 + 7 * i, 5 + 3 * i) for i in range(6)]
        for sequence in sequences:
            batch.add(sequence, 0.0)
        now_s = 0.0
        while batch.step_end_s is not None:
            now_s += pause_s
            batch.advance(now_s)
        ends.append([sequence.finished_s for sequence in sequences])
    assert ends[0] == ends[1] == ends[2]


def test_next_change_is_exact_over_many_steps() -> None:
    """The forecast of a lone decode's end, with growing context, is when it does end."""
    model = replace(UNIT, sequence_s=0.25, context_token_s=0.125)
    batch, sequence = RunningBatch(model), Sequence(7, 40)
    batch.add(sequence, 0.0)
    batch.advance(batch.next_change_s() or 0.0)
    forecast_s = batch.next_change_s()
    assert forecast_s is not None
    batch.advance(1e9)
    assert sequence.finished_s == pytest.approx(forecast_s)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_closed_load_settles_where_the_engine_model_says(concurrency: int) -> None:
    """Equal calls in a closed loop, in simulated time, reach the model's steady state within 3%."""
    model = EngineModel(step_s=0.01, prefill_token_s=2e-5, sequence_s=1e-4, context_token_s=1e-7)
    batch = RunningBatch(model)
    running = [Sequence(500, 60) for _ in range(concurrency)]
    for i, sequence in enumerate(running):
        batch.advance(0.05 * i)
        batch.add(sequence, 0.05 * i)
    latencies: list[float] = []
    while len(latencies) < 40 * concurrency:
        now_s = batch.next_change_s() or 0.0
        for sequence in batch.advance(now_s):
            if sequence.finished_s is not None:
                latencies.append(sequence.finished_s - sequence.arrived_s)
                batch.add(Sequence(500, 60), sequence.finished_s)
    settled = latencies[10 * concurrency :]
    expected_s = model.closed_loop(concurrency, 500, 60).latency_s
    assert sum(settled) / len(settled) == pytest.approx(expected_s, rel=0.03)
