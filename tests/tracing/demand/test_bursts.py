"""Bursts: calls that are sent together, told from calls that only overlap."""

from __future__ import annotations

import pytest
from span_cases import call

from scepsy_hpc.formats.spans import Span
from scepsy_hpc.tracing.demand.bursts import Spread, burst_sizes, fan_out_of, spread_of
from scepsy_hpc.tracing.demand.call_table import read_calls


def _sizes(*spans: Span, llm: str = "m") -> dict[int, int]:
    calls = read_calls(spans, "w", None)
    return burst_sizes(calls, calls.llm == calls.aliases.index(llm))


def _at(run: str, *starts_s: float, lasting_s: float = 2.0, llm: str = "m") -> list[Span]:
    return [call(run, llm, start, start + lasting_s, n=n) for n, start in enumerate(starts_s)]


def test_bursts_are_calls_that_start_together() -> None:
    """Four calls sent at once are one burst; a call that starts when one of them has ended, one
    that starts late into them and one of another run are not in it."""
    spans = [call("a", "m", 0.01 * n, 1.0 + n, n=n) for n in range(4)]
    spans += [call("a", "m", 1.0, 2.0, n=9)]  # the first ended at 1.0: joins only what is later
    spans += [call("a", "m", 1.9, 3.0, n=8), call("b", "m", 0.0, 1.5, n=7)]
    assert _sizes(*spans) == {1: 3, 4: 1}


def test_the_window_is_half_the_median_from_the_first_call() -> None:
    """Calls of 2 s: a start 1 s after the first is in its burst, one later is not, and opens the
    next window itself; it does not matter how soon it follows the call before."""
    assert _sizes(*_at("a", 0.0, 1.0)) == {2: 1}
    assert _sizes(*_at("a", 0.0, 1.01)) == {1: 2}
    assert _sizes(*_at("a", 0.0, 0.9, 1.1, 2.0)) == {2: 2}


def test_a_burst_ends_with_the_first_of_its_calls() -> None:
    """A call that starts after any call of the burst has ended may have waited for it."""
    long = [call("a", "m", 0.0, 9.0), *_at("b", 0.0, 20.0, 40.0, lasting_s=9.0)]
    short = call("a", "m", 0.5, 1.0)  # the median stays 9 s, so the window 4.5 s
    assert _sizes(*long, short, call("a", "m", 1.0, 10.0)) == {3: 1, 1: 3}
    assert _sizes(*long, short, call("a", "m", 1.1, 10.0)) == {2: 1, 1: 4}


def test_runs_and_llms_are_apart() -> None:
    """Calls at the same moment are together only in one run and to one LLM."""
    spans = [*_at("a", 0.0, 0.0), *_at("b", 0.0), *_at("a", 0.0, llm="other")]
    assert _sizes(*spans) == {2: 1, 1: 1}
    assert _sizes(*spans, llm="other") == {1: 1}


def test_no_call_is_no_burst() -> None:
    """An LLM that is declared and never called has no bursts, and no fan-out."""
    calls = read_calls(_at("a", 0.0), "w", ["m", "never"])
    assert burst_sizes(calls, calls.llm == 1) == {}
    assert fan_out_of({}) is None


def test_fan_out_is_what_a_call_sees() -> None:
    """One burst of three and one single call: three of four calls see three, one sees itself."""
    assert fan_out_of({3: 1, 1: 1}) == pytest.approx((3 + 3 + 3 + 1) / 4)
    assert fan_out_of({2: 5}) == 2.0


def _spread(spans: list[Span]) -> Spread:
    calls = read_calls(spans, "w", None)
    return spread_of(calls, calls.llm == 0)


def test_spread_of_calls_that_start_together() -> None:
    """One input token weighs 1/28 of an output token: works 1, 3 and 5 together, 9 and 9 alone.

    Of the three half the mean squared difference is (4 + 4 + 16) / 6 = 4 and half the mean absolute
    one (2 + 2 + 4) / 6 = 4 / 3, their mean 3; of all five the mean is 5.4, the variance 10.24.
    """
    made = [
        call(run, "m", start_s, start_s + 2.0, n=n, input_tokens=28, output_tokens=work)
        for n, (run, start_s, work) in enumerate(
            [("a", 0.0, 1), ("a", 0.1, 5), ("a", 0.2, 3), ("a", 9.0, 9), ("b", 0.0, 9)]
        )
    ]
    found = _spread(made)
    assert found.cv == pytest.approx(3.2 / 5.4)
    assert found.pair_cv == pytest.approx(2.0 / 3.0)
    assert found.pair_gap == pytest.approx(4.0 / 9.0)
    # What is cached needs no prefill: it is no work.
    cached = [
        *made[:-1],
        call("b", "m", 0.0, 2.0, input_tokens=56, output_tokens=9, cached_tokens=28),
    ]
    assert _spread(cached) == found


def test_spread_of_too_few_calls() -> None:
    """One call, or calls without counts, have none; calls alone have no pairs; equal ones none."""
    one = call("a", "m", 0.0, 1.0, input_tokens=5, output_tokens=5)
    assert _spread([one]) == Spread(None, None, None)
    assert _spread([one, call("b", "m", 0.0, 1.0)]) == Spread(None, None, None)
    alone = [one, call("b", "m", 0.0, 1.0, input_tokens=5, output_tokens=5)]
    assert _spread(alone) == Spread(0.0, None, None)
    together = [one, call("a", "m", 0.0, 1.0, n=1, input_tokens=5, output_tokens=5)]
    assert _spread(together) == Spread(0.0, 0.0, 0.0)
