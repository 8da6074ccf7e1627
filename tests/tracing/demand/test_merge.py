"""However runs are split into parts, their demand is that of all of them, to the last digit."""

from __future__ import annotations

import random

import pytest
from span_cases import call, run_span, tool

from scepsy_hpc.formats.spans import Span
from scepsy_hpc.tracing.demand.call_table import CallTable, read_calls
from scepsy_hpc.tracing.demand.demand import demand_of, demand_of_parts
from scepsy_hpc.tracing.demand.merge import merge


def _runs(chance: random.Random, num_runs: int) -> list[list[Span]]:
    """Runs in Unix time that overlap, some without run span or calls; ends often fall together."""
    runs = []
    for number in range(num_runs):
        name, begin = f"r{chance.randrange(10**6)}-{number}", 1.7e9 + chance.uniform(0, 300)
        mine = [tool(name, begin, begin + chance.choice([1.0, chance.uniform(0, 50)]))]
        for n in range(chance.choice([0, 1, 3, 20])):
            start, end = sorted((begin + chance.uniform(0, 99), begin + chance.randrange(99)))
            known = {"input_tokens": chance.randrange(999), "output_tokens": n}
            more = known if chance.random() < 0.8 else {}
            role, status = (
                chance.choice([None, "plan", "act"]),
                chance.choice(["ok", "ok", "failed"]),
            )
            mine.append(call(name, chance.choice("xyz"), start, end, n=n, role=role,
                             status=status, **more))  # fmt: skip
        if chance.random() < 0.5:
            cpu_s = chance.choice([None, chance.uniform(0, 3)])
            mine.append(run_span(name, begin, begin + 120, cpu_s=cpu_s))
        runs.append(mine)
    return runs


def _split(chance: random.Random, runs: list[list[Span]], num_parts: int) -> list[list[Span]]:
    parts: list[list[Span]] = [[] for _ in range(num_parts)]
    for run in runs:
        chance.choice(parts).extend(run)
    return [part for part in parts if part]


@pytest.mark.parametrize("aliases", [None, ("z", "y", "x", "never")])
@pytest.mark.parametrize("seed", range(4))
def test_any_split_is_the_whole(seed: int, aliases: tuple[str, ...] | None) -> None:
    """Parts of any size, runs in any order: the whole record is equal, figures, bursts, roles,
    bootstrap and flags, though no part need call every LLM or know every role."""
    chance = random.Random(seed)
    runs = _runs(chance, 50)
    whole = demand_of([span for run in runs for span in run], "w", aliases)
    assert len(whole.flags) >= 3
    for num_parts in (1, 2, 7, 50):
        chance.shuffle(runs)
        parts = [read_calls(p, "w", aliases) for p in _split(chance, runs, num_parts)]
        chance.shuffle(parts)
        assert demand_of_parts(parts, "w") == whole


def test_the_order_of_spans_does_not_matter() -> None:
    """A file sorted by start and one sorted by end tell the same."""
    chance = random.Random(9)
    spans = [span for run in _runs(chance, 30) for span in run]
    whole = demand_of(spans, "w")
    chance.shuffle(spans)
    assert demand_of(spans, "w") == whole


def _parts(*parts: list[Span]) -> list[CallTable]:
    return [read_calls(part, "w", None) for part in parts]


def test_runs_and_calls_stand_as_a_recorder_writes_them() -> None:
    """By their end; runs by that of their first span, calls of one end by run and start."""
    late = [run_span("late", 0.0, 20.0), call("late", "m", 1.0, 9.0, role="x")]
    early = [call("early", "k", 2.0, 9.0), call("early", "m", 1.0, 9.0, n=1, status="failed"),
             call("early", "m", 3.0, 4.0, input_tokens=7)]  # fmt: skip
    found = merge(_parts(late, early))
    assert (found.run_ids, found.run_length_s.tolist()) == (("early", "late"), [8.0, 20.0])
    assert found.first_end_s.tolist() == [4.0, 9.0]
    assert [found.run_ids[i] for i in found.run] == ["early", "early", "early", "late"]
    assert [found.aliases[i] for i in found.llm] == ["m", "m", "k", "m"]
    assert [found.roles[i] for i in found.role] == ["-", "-", "-", "x"]
    assert found.end_s.tolist() == [4.0, 9.0, 9.0, 9.0]
    assert found.start_s.tolist() == [2.0, 0.0, 1.0, 1.0]
    assert found.duration_s.tolist() == [1.0, 8.0, 7.0, 8.0]
    assert found.failed.tolist() == [False, True, False, False]
    assert found.input_tokens[0] == 7


def test_runs_that_end_together_stand_by_name() -> None:
    """Nothing is left to the order of the parts."""
    one, other = [call("a", "m", 0.0, 1.0)], [call("b", "m", 0.0, 1.0)]
    for parts in ((one, other), (other, one)):
        assert merge(_parts(*parts)).run_ids == ("a", "b")


def test_a_run_in_two_parts_is_our_own_mistake() -> None:
    """Parts are whole runs: half of one in each would double the number of runs."""
    with pytest.raises(AssertionError, match="a run is in two parts"):
        merge(_parts([call("a", "m", 0.0, 1.0)], [call("a", "m", 1.0, 2.0)]))


def test_run_ids_are_told_apart_to_their_last_character() -> None:
    """Ids that differ by a NUL at their end, or are very long, are runs of their own."""
    ids = ["a", "a\0", "b" * 100_000]
    spans = [call(name, "x", 0.0, 1.0 + n) for n, name in enumerate(ids)]
    assert demand_of(spans, "w").num_runs == 3
    assert set(merge([read_calls([s], "w", None) for s in spans]).run_ids) == set(ids)
