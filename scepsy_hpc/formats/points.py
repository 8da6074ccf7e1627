"""``points.csv``: the operating points of a profile bundle, read, checked and written."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Count, Positive, read_csv, record, to_plain
from scepsy_hpc.formats.parallelism import Link, SharePct

POINTS_FILE = "points.csv"
LITTLE_TOLERANCE = 0.05
"""A closed point may miss throughput x latency = concurrency by this much, no more."""


@record
class Point:
    """One row of ``points.csv``: one operating point. None is unknown, never zero."""

    tp_degree: Count
    gpu_share_pct: SharePct
    load: Literal["open", "closed"]
    throughput_rps: Positive
    latency_mean_s: Positive
    input_tokens_mean: Annotated[float, Field(ge=0)]
    output_tokens_mean: Annotated[float, Field(ge=0)]
    arrival_rate_rps: Positive | None = None
    concurrency: Positive | None = None
    link: Link | None = None
    num_requests: int | None = None
    latency_p50_s: Positive | None = None
    latency_p95_s: Positive | None = None
    latency_p99_s: Positive | None = None
    ttft_mean_s: Positive | None = None
    ttft_p95_s: Positive | None = None
    tpot_mean_s: Positive | None = None
    cached_tokens_mean: float | None = None
    saturated: bool | None = None


COLUMNS = tuple(field.name for field in fields(Point))
REQUIRED_COLUMNS = (
    "tp_degree",
    "gpu_share_pct",
    "load",
    "throughput_rps",
    "latency_mean_s",
    "input_tokens_mean",
    "output_tokens_mean",
)
LOAD_COLUMN = {"open": "arrival_rate_rps", "closed": "concurrency"}

_POINTS = TypeAdapter(list[Point])


def read_points(path: Path | str) -> tuple[Point, ...]:
    """Read and check ``points.csv``; columns this version does not know are left in the file.

    Raises InputError that names the line.
    """
    table = read_csv(path, REQUIRED_COLUMNS)
    lines = [line for line, _ in table]
    rows = [{c: v for c, v in row.items() if c in COLUMNS and v} for _, row in table]
    if not rows:
        raise InputError(f"{path}: holds no points; a bundle needs at least one row")
    points = _to_points(path, rows, lines)
    check_points(points, [f"{path} line {line}" for line in lines])
    return points


def _to_points(path: Path | str, rows: list[dict[str, str]], lines: list[int]) -> tuple[Point, ...]:
    try:
        return tuple(_POINTS.validate_python(rows))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        row, *rest = first["loc"]
        column = str(rest[0]) if rest else "row"
        where = f"{path} line {lines[int(row)]}: {column}"
        if first["type"].startswith("missing"):
            raise InputError(f"{where}: is empty; every point needs a value here") from None
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message}; got {first['input']!r}") from None


def check_points(points: Sequence[Point], places: Sequence[str]) -> None:
    """Check what a single cell cannot show; ``places`` names each point in the error.

    Raises InputError: a load without its column, Little's law, order of percentiles, duplicates.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for point, place in zip(points, places, strict=True):
        _check_point(point, place)
        key = operating_point(point)
        if key in seen:
            raise InputError(
                f"{place}: repeats the operating point of {seen[key]}; keep one of the two"
            )
        seen[key] = place


def operating_point(point: Point) -> tuple[Any, ...]:
    """What makes two points the same operating point: hardware, load and token lengths."""
    return (
        point.tp_degree,
        point.gpu_share_pct,
        point.link,
        point.load,
        point.arrival_rate_rps if point.load == "open" else point.concurrency,
        point.input_tokens_mean,
        point.output_tokens_mean,
        point.cached_tokens_mean,
    )


def _check_point(point: Point, place: str) -> None:
    column = LOAD_COLUMN[point.load]
    if getattr(point, column) is None:
        raise InputError(f"{place}: {column}: is empty; a point of load {point.load!r} needs it")
    if point.load == "closed" and point.concurrency is not None:
        miss = point.throughput_rps * point.latency_mean_s / point.concurrency - 1.0
        if abs(miss) > LITTLE_TOLERANCE:
            raise InputError(
                f"{place}: throughput_rps {point.throughput_rps:g} x latency_mean_s "
                f"{point.latency_mean_s:g} / concurrency {point.concurrency:g} misses Little's "
                f"law by {100 * miss:+.1f}%; allowed is {100 * LITTLE_TOLERANCE:g}%"
            )
    known = [
        (name, getattr(point, name))
        for name in ("latency_p50_s", "latency_p95_s", "latency_p99_s")
        if getattr(point, name) is not None
    ]
    for (low_name, low), (high_name, high) in itertools.pairwise(known):
        if low > high:
            raise InputError(f"{place}: {low_name} {low:g} is above {high_name} {high:g}")
    for name in ("cached_tokens_mean", "num_requests"):
        value = getattr(point, name)
        if value is not None and value < 0:
            raise InputError(f"{place}: {name}: must not be negative; got {value:g}")
    if (point.cached_tokens_mean or 0.0) > point.input_tokens_mean:
        raise InputError(
            f"{place}: cached_tokens_mean {point.cached_tokens_mean:g} is above "
            f"input_tokens_mean {point.input_tokens_mean:g}"
        )


def points_text(points: Sequence[Point]) -> str:
    """``points.csv`` as text: the columns that hold anything."""
    plain = [to_plain(point) for point in points]
    used = [c for c in COLUMNS if c in REQUIRED_COLUMNS or any(c in row for row in plain)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(used)
    writer.writerows([_cell(row.get(c)) for c in used] for row in plain)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return format(value, ".10g") if isinstance(value, float) else value
