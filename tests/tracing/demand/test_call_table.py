"""The calls of runs as arrays, from spans of every kind."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from span_cases import call, run_span, tool

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.tracing.demand.call_table import read_calls


def test_times_count_from_the_start_of_the_run() -> None:
    """A run span says when its run began and how long it was, whatever its calls do."""
    spans = [call("a", "m", 101.0, 104.0), run_span("a", 100.0, 110.0), call("b", "m", 7.0, 9.0)]
    found = read_calls(spans, "w", None)
    assert found.run_ids == ("a", "b")
    assert found.run_length_s.tolist() == [10.0, 2.0]
    assert found.run.tolist() == [0, 1]
    assert (found.start_s.tolist(), found.duration_s.tolist()) == ([1.0, 0.0], [3.0, 2.0])
    assert found.end_s.tolist() == [104.0, 9.0]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_run_without_run_span_lasts_from_its_first_to_its_last_span(order) -> None:
    """Tools count, and spans may come in any order; the first to end is any span, too."""
    spans = [call("a", "m", 5.0, 6.0), tool("a", 2.0, 3.0), tool("a", 4.0, 9.0)]
    found = read_calls([spans[i] for i in order], "w", None)
    assert found.run_length_s.tolist() == [7.0]
    assert found.start_s.tolist() == [3.0]
    assert found.first_end_s.tolist() == [3.0]


def test_a_run_span_is_believed_where_spans_lie_outside_it() -> None:
    """A call that began before its run and outlives it changes neither the run's start nor end."""
    found = read_calls([run_span("a", 100.0, 103.0), call("a", "m", 99.0, 105.0)], "w", None)
    assert (found.run_length_s.tolist(), found.start_s.tolist()) == ([3.0], [-1.0])


def test_a_call_may_take_no_time() -> None:
    """An answer from a cache is a call."""
    assert read_calls([call("a", "m", 5.0, 5.0)], "w", None).duration_s.tolist() == [0.0]


def test_what_is_unknown_is_nan() -> None:
    """A call has its figures, status, role and prefix, or says that it has none."""
    known = call("a", "m", 0.0, 1.0, role="grade", input_tokens=30, output_tokens=2)
    known = replace(known, cached_tokens=8, prefix_of=Prefix(span_id="x", tokens=5))
    found = read_calls([known, call("a", "m", 1.0, 2.0, status="failed")], "w", None)
    assert found.failed.tolist() == [False, True]
    assert [found.roles[i] for i in found.role] == ["grade", "-"]
    for column, value in (("input", 30.0), ("output", 2.0), ("cached", 8.0), ("prefix", 5.0)):
        first, second = getattr(found, f"{column}_tokens")
        assert first == value, column
        assert np.isnan(second), column


def test_aliases_are_the_declared_ones_in_their_order() -> None:
    """Without a declaration they are those that are called, by name."""
    spans = [call("a", "x", 0.0, 1.0), call("a", "b", 1.0, 2.0)]
    declared = read_calls(spans, "w", ["x", "never", "b"])
    assert (declared.aliases, declared.llm.tolist()) == (("x", "never", "b"), [0, 2])
    assert read_calls(spans, "w", None).aliases == ("b", "x")


def test_runs_without_calls_are_runs() -> None:
    """A table may have runs and no call."""
    found = read_calls([run_span("a", 0.0, 4.0)], "w", ["m"])
    assert (found.run_ids, found.run_length_s.tolist(), len(found.run)) == (("a",), [4.0], 0)


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([call("a", "judge", 0, 1)], "LLM 'judge' is called in the spans and not declared by "
         "workflow 'rag'; it declares: generator"),
        ([call("a", "generator", 5.0, 1.0)],
         r"span 'a-generator-5.0-0' of run 'a': end_s \(1.0\) is before start_s \(5.0\)"),
        ([run_span("a", 0, 1), run_span("a", 2, 3)], "run 'a': has two run spans"),
    ],
)  # fmt: skip
def test_wrong_spans_are_refused(spans: list[Span], says: str) -> None:
    """What makes demand meaningless is an error that names run, LLM or workflow."""
    with pytest.raises(InputError, match=says):
        read_calls(spans, "rag", ["generator"])
