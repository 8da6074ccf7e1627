"""Option types read what they promise, refuse the rest, and JSON is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from scepsy_hpc.cli.options import COUNT, DURATION, MINUTES, PERCENT, POSITIVE, print_json


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (DURATION, "500ms", 0.5),
        (DURATION, "1.5h", 5400.0),
        (MINUTES, "90s", 2),
        (MINUTES, "2d", 2880),
        (PERCENT, "5%", 5.0),
        (PERCENT, "0.5", 0.5),
        (POSITIVE, "2e-3", 0.002),
        (COUNT, "12", 12),
    ],
)
def test_options_read(kind, text, value):
    """Times carry their unit; a percentage may; rates and counts are plain numbers."""
    assert kind.convert(text, None, None) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((DURATION, text) for text in ("30", "5x", "0s", "-3s", "s", "1h30m")),
        *((PERCENT, text) for text in ("101%", "-1", "half")),
        *((POSITIVE, text) for text in ("0", "-2", "nan", "inf", "2rps")),
        *((COUNT, text) for text in ("0", "-1", "1.5", "ten", "²")),
    ],
)
def test_options_refuse(kind, text):
    """The message repeats the value that it refuses."""
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(text, None, None)
    assert repr(text) in caught.value.message


def test_json_is_json_whatever_the_figures(capsys):
    """What is not finite is null: NaN is no JSON."""
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": (Path("x"),)})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"a": None, "b": [1.5, None], "c": ["x"]}
