"""Option types and options that several commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scepsy_hpc.files import to_plain

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """``30s``, ``90min``, ``8h`` in seconds; a number without a unit is refused."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(value))
        if match is None or match[2] not in _UNITS_S or float(match[1]) == 0:
            self.fail(f"{value!r} is no duration; write for example 500ms, 30s, 90min, 8h or 2d")
        return float(match[1]) * _UNITS_S[match[2]]


class Percent(click.ParamType[float]):
    """``5%`` or ``5``, between 0 and 100."""

    name = "percent"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Percent as a number."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", str(value))
        if match is None or float(match[1]) > 100:
            self.fail(f"{value!r} is no percentage; write for example 5%")
        return float(match[1])


DURATION, PERCENT = Duration(), Percent()
POSITIVE = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=1)


def json_option(function: F) -> F:
    """``--json``: figures as one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")(function)


def cluster_options(default: str) -> Callable[[F], F]:
    """``--cluster``, ``--site`` and ``--time``."""

    def add(function: F) -> F:
        choice = click.Choice(["slurm", "here", "local", "debug"])
        text = "Where: a Slurm job, the allocation this runs in, processes here, or in-process."
        with_cluster = click.option(
            "--cluster", type=choice, default=default, show_default=True, help=text
        )
        with_site = click.option("--site", type=FILE, help="What your Slurm site wants: site.yaml.")
        return with_cluster(with_site(function))

    return add


def named(values: tuple[str, ...], what: str) -> dict[str | None, str]:
    """``NAME=VALUE`` items by name; one bare value has the name None.

    Raises click.UsageError for a name that stands twice, or bare values among several.
    """
    found: dict[str | None, str] = {}
    for value in values:
        match = re.fullmatch(r"(?:([\w.-]+)=)?(.+)", value)
        name, rest = (match[1], match[2]) if match else (None, value)
        if name in found or (name is None and len(values) > 1):
            raise click.UsageError(f"{what} {value!r}: give each once, as NAME={what.upper()}")
        found[name] = rest
    return found


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(to_plain(value), indent=2))


def say(text: str) -> None:
    """A line for a person, on stderr, so that stdout keeps to figures."""
    click.echo(text, err=True)
