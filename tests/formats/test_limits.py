"""What one task's data may be, at the bounds and beyond."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scepsy_hpc.formats import limits
from scepsy_hpc.formats.limits import (
    MAX_ERROR_CHARS,
    MAX_JSON_DEPTH,
    Unrecordable,
    parsed_json,
    result_json,
    short_error,
)


def nested(depth: int) -> Any:
    """Lists and objects in turn, that many inside each other."""
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def test_depth_is_allowed_up_to_the_bound() -> None:
    """In results and in texts alike; wide is not deep."""
    deepest = nested(MAX_JSON_DEPTH)
    assert parsed_json(result_json(deepest)) == deepest
    with pytest.raises(Unrecordable, match="nested deeper than 128"):
        result_json(nested(MAX_JSON_DEPTH + 1))
    with pytest.raises(ValueError, match="nested deeper than 128"):
        parsed_json(json.dumps(nested(MAX_JSON_DEPTH + 1)))
    assert parsed_json("[" + ",".join(["[1]"] * 10_000) + "]")[0] == [1]


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '["' * 100_000, '{"a":' * 5_000, "NaN", "[Infinity]", "1" * 5_000]
)
def test_texts_that_break_parsers_are_refused(text: str) -> None:
    """With a ValueError, which everyone who reads expects."""
    with pytest.raises(ValueError, match=r"."):
        parsed_json(text)


@pytest.mark.parametrize(
    "result",
    [float("inf"), {1, 2}, {(1, 2): 3}, 10**5000, nested(600), nested(50_000), circle(), b"x"],
    ids=["inf", "set", "key", "digits", "600", "50000", "circle", "bytes"],
)
def test_results_that_no_line_can_hold_are_refused(result: Any) -> None:
    """And nothing else is raised for them."""
    with pytest.raises(Unrecordable):
        result_json(result)


def test_large_results_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes that they would be in the ledger; the way out is said."""
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 20)
    assert result_json("x" * 18) == '"' + "x" * 18 + '"'
    with pytest.raises(Unrecordable, match="write large results into files"):
        result_json("x" * 19)
    with pytest.raises(Unrecordable, match="has 26 bytes"):
        result_json("ü" * 4)


def test_an_error_is_one_line_of_bounded_length() -> None:
    """Ends of lines of every kind become spaces; the rest is in the log."""
    assert short_error("a\nb\u2028c\r\n d") == "a b c d"
    assert len(short_error("x" * 10_000)) == MAX_ERROR_CHARS
