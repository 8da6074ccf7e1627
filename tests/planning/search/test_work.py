"""Work: what is booked where, and that no clock decides unless a user asks for one."""

from __future__ import annotations

import math

import pytest

from scepsy_hpc.planning.search import work
from scepsy_hpc.planning.search.work import Work


def test_a_part_is_booked_in_the_whole() -> None:
    """What a part does is gone from it and from what it is a part of."""
    whole = Work(8.0)
    part = whole.part(0.5).part(0.5)
    part.book(1.5)
    assert (part.left, whole.left) == (0.5, 6.5)
    assert (part.done, whole.done) == (1.5, 1.5)
    assert not part.has_ended
    part.book(0.5)
    assert part.has_ended
    assert not whole.has_ended


def test_without_a_time_limit_no_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine cannot change what is not looked at."""

    def read() -> float:
        raise AssertionError("the clock was read")

    monkeypatch.setattr(work.time, "monotonic", read)
    left = Work.within(2.0, None).part(0.25)
    assert left.left == 0.5
    assert math.isinf(left.left_s)
    assert not left.has_ended


def test_a_time_limit_lets_the_clock_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four seconds, of which a quarter is one; the work is without limit."""
    now = [100.0]
    monkeypatch.setattr(work.time, "monotonic", lambda: now[0])
    whole = Work.within(2.0, 4.0)
    part = whole.part(0.25)
    assert math.isinf(whole.left)
    assert (whole.left_s, part.left_s) == (4.0, 1.0)
    part.book(1e9)
    assert not part.has_ended
    now[0] = 101.5
    assert part.has_ended
    assert not whole.has_ended
    assert whole.left_s == 2.5
    now[0] = 104.0
    assert whole.has_ended
    assert whole.left_s == work.LEAST
