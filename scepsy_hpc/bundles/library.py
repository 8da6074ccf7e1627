"""Profile bundles on disk: read and check, write atomically, and find by content.

A bundle is looked up by what its ``bundle.yaml`` says, never by the path it lies under.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import read_text, read_yaml, sha256_file, shipped_path, to_plain, write_yaml
from scepsy_hpc.formats.bundle import SCHEMA, Bundle, BundleHeader, Point

HEADER_FILE = "bundle.yaml"
POINTS_FILE = "points.csv"
LITTLE_TOLERANCE = 0.05
"""A closed point may miss throughput x latency = concurrency by this much, no more."""

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


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check one bundle folder.

    Raises InputError that names the file, the key or line, the value and what is allowed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle folder; it must hold {HEADER_FILE}")
    header = read_yaml(folder / HEADER_FILE, BundleHeader, SCHEMA)
    points_path = folder / POINTS_FILE
    points = read_points(points_path)
    found = sha256_file(points_path)
    if found != header.points_sha256:
        raise InputError(
            f"{folder / HEADER_FILE}: points_sha256: is {header.points_sha256!r} but "
            f"{POINTS_FILE} has {found!r}; the points were changed after the bundle was written"
        )
    return Bundle(header, points, folder)


def find_bundles(roots: Path | str | Iterable[Path | str]) -> list[Bundle]:
    """All bundles below one folder or several, ordered by path; an empty folder has none.

    Raises InputError when a root is missing or a bundle in it is bad.
    """
    several = [roots] if isinstance(roots, str | Path) else list(roots)
    folders: dict[Path, Path] = {}
    for root in map(Path, several):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of profile bundles")
        for header in sorted(root.rglob(HEADER_FILE)):
            if any(part.startswith(".") for part in header.relative_to(root).parts):
                continue  # a bundle that is just being written
            folders.setdefault(header.parent.resolve(), header.parent)
    return [load_bundle(folder) for folder in folders.values()]


def resolve_bundle(name: Path | str) -> Path:
    """The folder of a bundle named by a path: absolute, from here, or below shipped profiles.

    Raises InputError when it is in none of these places.
    """
    tried = [Path(name), shipped_path("profiles") / name]
    for folder in tried:
        if (folder / HEADER_FILE).is_file():
            return folder.resolve()
    places = " nor ".join(str(folder) for folder in dict.fromkeys(tried))
    raise InputError(f"timing_bundle: no {HEADER_FILE} in {places}")


def read_points(path: Path | str) -> tuple[Point, ...]:
    """Read and check ``points.csv``; columns this version does not know are left in the file.

    Raises InputError that names the line.
    """
    reader = csv.reader(io.StringIO(read_text(path)))
    columns = [name.strip() for name in next(reader, [])]
    _check_columns(path, columns)
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        lines.append(reader.line_num)
        if len(cells) != len(columns):
            raise InputError(
                f"{path} line {reader.line_num}: has {len(cells)} cells, "
                f"the header has {len(columns)}"
            )
        pairs = zip(columns, cells, strict=True)
        rows.append({c: v.strip() for c, v in pairs if c in COLUMNS and v.strip()})
    if not rows:
        raise InputError(f"{path}: holds no points; a bundle needs at least one row")
    points = _to_points(path, rows, lines)
    check_points(points, [f"{path} line {line}" for line in lines])
    return points


def _check_columns(path: Path | str, columns: Sequence[str]) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise InputError(f"{path} line 1: column {name!r} stands twice")
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"{path} line 1: column {missing[0]!r} is missing; required columns: "
            f"{', '.join(REQUIRED_COLUMNS)}, and arrival_rate_rps (open) or concurrency (closed)"
        )


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


def bundle_folder(root: Path | str, header: BundleHeader, workload: str) -> Path:
    """Where the contract puts a bundle; a name cannot leave ``root``."""
    model = _safe(header.model.replace("/", "__"))
    engine = _safe(f"{header.engine}-{header.engine_version}")
    return Path(root) / _safe(header.gpu_type) / model / engine / _safe(workload)


def _safe(name: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._+@=-]", "_", name)
    return cleaned if cleaned.strip(".") else "_"


def points_text(
    points: Sequence[Point], extra_columns: Mapping[str, Sequence[Any]] | None = None
) -> str:
    """``points.csv`` as text: known columns that hold anything, then the extra ones."""
    extra = dict(extra_columns or {})
    plain = [to_plain(point) for point in points]
    used = [c for c in COLUMNS if c in REQUIRED_COLUMNS or any(c in row for row in plain)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*used, *extra])
    for i, row in enumerate(plain):
        cells = [row.get(c) for c in used] + [values[i] for values in extra.values()]
        writer.writerow([_cell(value) for value in cells])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return format(value, ".10g") if isinstance(value, float) else value


def save_bundle(
    root: Path | str,
    header: BundleHeader,
    points: Sequence[Point],
    workload: str,
    extra_columns: Mapping[str, Sequence[Any]] | None = None,
) -> Bundle:
    """Write a bundle below ``root``; the whole folder appears at once, an old one is replaced.

    ``header.points_sha256`` is filled in here. Points that ``load_bundle`` would refuse are
    refused before anything is written. Raises InputError.
    """
    check_points(points, [f"point {i + 1} of {header.model}" for i in range(len(points))])
    if not points:
        raise InputError(f"{header.model}: a bundle needs at least one point")
    target = bundle_folder(root, header, workload)
    text = points_text(points, extra_columns)
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        staging.chmod(0o755)
        (staging / POINTS_FILE).write_text(text, encoding="utf-8")
        write_yaml(staging / HEADER_FILE, replace(header, points_sha256=digest), SCHEMA)
        load_bundle(staging)
        swap_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load_bundle(target)


def swap_folder(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; an old folder is out of sight for an instant."""
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        os.replace(target, old / "bundle")
        try:
            os.replace(staging, target)
        except OSError:
            os.replace(old / "bundle", target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, target)
