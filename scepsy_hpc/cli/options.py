"""Option types and options that several commands share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scepsy_hpc.files import to_plain

F = TypeVar("F", bound=Callable[..., Any])


def _path(name: str, **kinds: bool) -> click.Path:
    """A path; ``name`` stands for it in the help."""
    made = click.Path(path_type=Path, **kinds)
    made.name = name
    return made


FILE = _path("file", dir_okay=False)
FOLDER = _path("folder", file_okay=False)
FILE_OR_FOLDER = _path("file or folder")
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """``30s``, ``90min``, ``8h`` in seconds; a number without a unit is refused."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(value))
        if match is None or match[2] not in _UNITS_S:
            self.fail(f"{value!r} is no time with its unit; write 500ms, 30s, 90min, 8h or 2d")
        if float(match[1]) == 0:
            self.fail(f"{value!r} must be more than nothing; write 500ms, 30s, 90min, 8h or 2d")
        return float(match[1]) * _UNITS_S[match[2]]


class Minutes(click.ParamType[int]):
    """A time as above in whole minutes, rounded up: the unit of Slurm's time limits."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Minutes."""
        return math.ceil(Duration().convert(value, param, ctx) / 60.0)


class Percent(click.ParamType[float]):
    """``5%`` or ``5``, between 0 and 100."""

    name = "percent"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Percent as a number."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", str(value))
        if match is None or float(match[1]) > 100:
            self.fail(f"{value!r} is no percentage from 0% to 100%; write for example 5%")
        return float(match[1])


class PositiveNumber(click.ParamType[float]):
    """A finite number above zero: ``2``, ``0.5``; one with a unit is refused."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The number."""
        text = str(value).strip()
        try:
            number = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is no number above 0; write it without a unit, for example 0.5")
        return number


class WholeNumber(click.ParamType[int]):
    """A whole number from 1 on."""

    name = "n"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """The number."""
        text = str(value).strip()
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            self.fail(f"{value!r} is no whole number from 1 on")
        return int(text)


class Seed(click.ParamType[int]):
    """A whole number from 0 on."""

    name = "integer"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """The number."""
        text = str(value).strip()
        if not text.isascii() or not text.isdigit():
            self.fail(f"{value!r} is no whole number from 0 on")
        return int(text)


def refuse_input_as_output(output: Path, *inputs: Path | None) -> None:
    """What a command reads it must not overwrite. Raises UsageError."""
    for path in inputs:
        if path is not None and path.exists() and output.exists() and output.samefile(path):
            raise click.UsageError(f"-o {output}: is read by this command; give another file")


PROFILES_HELP = "Folder of bundles.  [default: those the plan names]"
DURATION, MINUTES, PERCENT = Duration(), Minutes(), Percent()
POSITIVE, COUNT, ANY_SEED = PositiveNumber(), WholeNumber(), Seed()


def json_option(function: F) -> F:
    """``--json``: figures as one JSON document on stdout."""
    text = "Print the figures as JSON on stdout."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def cluster_options(default: str) -> Callable[[F], F]:
    """``--cluster`` and ``--site``."""

    def add(function: F) -> F:
        choice = click.Choice(["slurm", "here", "local", "debug"])
        text = (
            "slurm: submit a job; here: use the Slurm allocation this runs in; local: processes "
            "on this machine; debug: inside this process."
        )
        with_cluster = click.option(
            "--cluster",
            type=choice,
            metavar="WHERE",
            default=default,
            show_default=True,
            help=text,
        )
        with_site = click.option("--site", type=FILE, help="site.yaml: what your Slurm site wants.")
        return with_cluster(with_site(function))

    return add


def example(*lines: str) -> str:
    """The end of a help: command lines as they are typed."""
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))


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
    """One JSON document on stdout; what is unknown or not finite is null, never NaN."""
    click.echo(json.dumps(_finite(to_plain(value)), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def say(text: str) -> None:
    """A line for a person, on stderr, so that stdout keeps to figures."""
    click.echo(text, err=True)
