"""Which earlier call a call continues: by hand, and against a comparison of whole texts."""

from __future__ import annotations

import random

import pytest

from scepsy_hpc.formats.spans import Prefix
from scepsy_hpc.tracing.proxy.prefixes import PIECE_BYTES, Prompts, Repeat


def test_the_longest_common_beginning_counts_in_whole_pieces() -> None:
    """150 equal bytes are two pieces of 64; of 200 bytes and 50 tokens they are 32 tokens."""
    prompts = Prompts()
    first = prompts.look_up("r", "m", b"a" * 150 + b"x" * 50, "s1")
    second = prompts.look_up("r", "m", b"a" * 150 + b"y" * 50, "s2")
    assert (first.earlier, first.holder, first.prefix(50)) == (None, None, None)
    assert second.num_bytes == 128
    assert second.prefix(50) == Prefix(span_id="s1", tokens=32)
    assert second.prefix(51) == Prefix(span_id="s1", tokens=32)  # 32.64
    assert second.prefix(None) is None


def test_of_several_the_last_that_is_longest() -> None:
    """A longer common beginning beats a later call; of equally long ones it is the later."""
    prompts = Prompts()
    for name, text in (("s1", b"a" * 200), ("s2", b"a" * 64 + b"b" * 200), ("s3", b"c" * 99)):
        prompts.look_up("r", "m", text, name)
    found = prompts.look_up("r", "m", b"a" * 150, "s4")
    assert found.prefix(150) == Prefix(span_id="s1", tokens=128)
    assert prompts.look_up("r", "m", b"a" * 70, "s5").prefix(70) == Prefix(span_id="s4", tokens=64)


def test_runs_and_llms_know_nothing_of_each_other() -> None:
    """The same prompt in another run, or to another LLM, repeats nothing."""
    prompts = Prompts()
    prompts.look_up("r", "m", b"a" * 100, "s1")
    assert prompts.look_up("other", "m", b"a" * 100, "s2").earlier is None
    assert prompts.look_up("r", "other", b"a" * 100, "s3").earlier is None
    assert prompts.look_up("r", "m", None, "s4").prefix(10) is None


def test_an_answer_is_part_of_what_can_be_repeated() -> None:
    """A prompt of 100 bytes answered with 100: the next turn repeats 192 of them."""
    prompts = Prompts()
    first = prompts.look_up("r", "m", b"q" * 100, "s1")
    prompts.add_answer("r", "m", first, b"a" * 100)
    second = prompts.look_up("r", "m", b"q" * 100 + b"a" * 100 + b"next", "s2")
    assert (second.num_bytes, second.earlier) == (192, first.mine)


def test_the_holder_is_who_took_the_earlier_call_last() -> None:
    """The host may be told after the earlier call was looked up."""
    prompts = Prompts()
    first = prompts.look_up("r", "m", b"a" * 64, "s1")
    second = prompts.look_up("r", "m", b"a" * 64, "s2")
    assert second.holder is None
    first.mine.host = "w-1"
    assert second.holder == "w-1"


def test_a_call_that_failed_is_forgotten() -> None:
    """What it had in common is the earlier call's again, what it added is nobody's."""
    prompts = Prompts()
    prompts.look_up("r", "m", b"a" * 64, "s1")
    failed = prompts.look_up("r", "m", b"a" * 64 + b"b" * 64, "s2")
    prompts.forget("r", "m", failed)
    again = prompts.look_up("r", "m", b"a" * 64 + b"b" * 64, "s3")
    assert again.prefix(128) == Prefix(span_id="s1", tokens=64)
    assert prompts._num_pieces == 2


def test_memory_is_bounded_and_the_run_unused_for_longest_goes() -> None:
    """Room for four pieces: the third run pushes out the first, though that is not the oldest."""
    prompts = Prompts(most_pieces=4)
    prompts.look_up("r1", "m", b"a" * 128, "s1")
    prompts.look_up("r2", "m", b"a" * 128, "s2")
    prompts.look_up("r1", "m", b"a" * 128, "s3")
    prompts.look_up("r3", "m", b"a" * 64, "s4")
    assert prompts._num_pieces == 3
    assert prompts.look_up("r1", "m", b"a" * 128, "s5").prefix(2) == Prefix(span_id="s3", tokens=2)
    assert prompts.look_up("r2", "m", b"a" * 64, "s6").earlier is None
    assert prompts.look_up("r4", "m", b"z" * 64 * 9, "s7").earlier is None
    assert prompts._num_pieces == 0  # not even one run of that size


def common(one: bytes, other: bytes) -> int:
    """Bytes in whole pieces that both begin with."""
    number = 0
    while number < min(len(one), len(other)) and one[number] == other[number]:
        number += 1
    return number // PIECE_BYTES * PIECE_BYTES


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_comparing_all_texts(seed: int) -> None:
    """Drawn conversations: each call finds what a comparison with all earlier texts finds."""
    rng, prompts = random.Random(seed), Prompts()
    texts: list[tuple[str, bytes]] = []
    for number in range(60):
        begin = rng.choice([b"", *(text for _, text in texts)])
        prompt = begin[: rng.randrange(600)] + rng.choices([b"x", b"y"])[0] * rng.randrange(200)
        found = prompts.look_up("r", "m", prompt, f"s{number}")
        most = max((common(prompt, text) for _, text in texts), default=0)
        last = [name for name, text in texts if most and common(prompt, text) == most]
        assert found.num_bytes == most
        assert (found.earlier.span_id if found.earlier else None) == (last[-1] if last else None)
        answer = rng.choice([b"", bytes(rng.choices(b"pq", k=rng.randrange(200)))])
        prompts.add_answer("r", "m", found, answer)
        texts.append((f"s{number}", prompt + answer if prompt else b""))


def test_a_repeat_without_a_prompt_says_nothing() -> None:
    """The default is a call that repeats nothing."""
    assert Repeat(Prompts().look_up("r", "m", b"", "s").mine).prefix(5) is None


def test_a_later_call_is_no_prefix() -> None:
    """Its body was read first, since it came faster: what it said cannot have been repeated."""
    prompts = Prompts()
    prompts.look_up("r", "m", b"a" * 64, "later", start_s=1.1)
    assert prompts.look_up("r", "m", b"a" * 64, "earlier", start_s=1.0).prefix(64) is None
    after = prompts.look_up("r", "m", b"a" * 64, "after", start_s=2.0).prefix(64)
    assert after == Prefix(span_id="earlier", tokens=64)
