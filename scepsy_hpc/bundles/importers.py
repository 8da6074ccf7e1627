"""Turn tables of curves from elsewhere into profile bundles.

Both kinds, ``silicon`` and ``modelled``, have one row per closed-loop operating point: gpu_type,
engine, engine_version, model, tp_degree, input_tokens, output_tokens, concurrency, throughput_rps,
ttft_s, tpot_s, latency_s, and ``precision`` where it is known.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.bundles.library import save_bundle
from scepsy_hpc.bundles.published_sizes import published_kv_bytes_per_token, published_weights_gib
from scepsy_hpc.bundles.step_time import kv_tokens_that_fit
from scepsy_hpc.cluster import gpu_types
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import read_csv
from scepsy_hpc.formats.bundle import Bundle, BundleHeader, How
from scepsy_hpc.formats.points import LITTLE_TOLERANCE, Point, operating_point

WORKLOAD = "token-grid"

TABLE_COLUMNS = (
    "gpu_type",
    "engine",
    "engine_version",
    "model",
    "tp_degree",
    "input_tokens",
    "output_tokens",
    "concurrency",
    "throughput_rps",
    "ttft_s",
    "tpot_s",
    "latency_s",
)


@dataclass(frozen=True, slots=True)
class TableKind:
    """A kind of table and what is said of every bundle made from it."""

    how: How
    precision: str
    source: str
    imported_from: str


KINDS: dict[str, TableKind] = {
    "silicon": TableKind(
        how="measured",
        precision="unknown",
        source="measured TTFT and TPOT of silicon_sample.csv in aiconfigurator-core 0.12.0; "
        "latency = ttft + tpot x (output - 1), throughput = concurrency / latency",
        imported_from="aiconfigurator-core 0.12.0, silicon_sample.csv",
    ),
    "modelled": TableKind(
        how="modelled",
        precision="bf16",
        source="output of aiconfigurator 0.12.0, not measured; its absolute end-to-end latency "
        "misses measurements by 19% (median); rows that do not fit the GPU memory are left out",
        imported_from="aiconfigurator 0.12.0",
    ),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """The bundles written, and how many rows were left out for which reason."""

    bundles: tuple[Bundle, ...]
    dropped: Mapping[str, int]


def import_csv(
    kind: str, path: Path | str, out_root: Path | str, date: str | None = None
) -> Imported:
    """Write one bundle per (GPU type, model, engine, version, precision) of the table.

    Rows without a figure, against Little's law, repeated, or too large for the memory (modelled
    ones only: a measured one did run) are left out and counted. ``date`` is the day of import,
    today unless given. Raises InputError that names the file and line.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} of table is not known; known kinds: {', '.join(KINDS)}")
    groups: dict[tuple[str, ...], list[Point]] = {}
    dropped: Counter[str] = Counter()
    for line, row in read_csv(path, TABLE_COLUMNS):
        key = _key(row, KINDS[kind], f"{path} line {line}")
        point, reason = _point(row, f"{path} line {line}")
        points = groups.setdefault(key, [])
        reason = reason or _no_room(key, point, KINDS[kind]) or _repeats(point, points)
        if reason:
            dropped[reason] += 1
        elif point is not None:
            points.append(point)
    day = date or datetime.date.today().isoformat()
    bundles = [
        _save(out_root, key, points, KINDS[kind], day, list(groups))
        for key, points in groups.items()
        if points
    ]
    return Imported(tuple(bundles), dict(dropped))


def _key(row: Mapping[str, str], kind: TableKind, place: str) -> tuple[str, ...]:
    """(gpu_type, model, engine, engine_version, precision)."""
    gpu_types.look_up(row["gpu_type"], place)
    precision = row.get("precision") or kind.precision
    version = row["engine_version"] or "unknown"
    return row["gpu_type"], row["model"], row["engine"], version, precision


def _point(row: Mapping[str, str], place: str) -> tuple[Point | None, str | None]:
    """The row's point, or why it is left out. Raises InputError for a cell that is no number."""
    cells: dict[str, float | None] = {}
    for name in TABLE_COLUMNS[4:]:
        try:
            cells[name] = float(row[name]) if row[name] else None
        except ValueError:
            raise InputError(f"{place}: {name}: must be a number; got {row[name]!r}") from None
    needed = [cells[name] for name in TABLE_COLUMNS[4:] if name not in ("ttft_s", "tpot_s")]
    if any(value is None or not 0 < value < float("inf") for value in needed):
        return None, "a figure is missing or not above zero"
    tp_degree, inputs, outputs, concurrency, throughput, latency = (v or 0.0 for v in needed)
    if abs(throughput * latency / concurrency - 1.0) > LITTLE_TOLERANCE:
        return None, "breaks Little's law by more than 5%"
    point = Point(
        tp_degree=int(tp_degree),
        gpu_share_pct=100,
        load="closed",
        concurrency=concurrency,
        throughput_rps=throughput,
        latency_mean_s=latency,
        input_tokens_mean=inputs,
        output_tokens_mean=outputs,
        ttft_mean_s=cells["ttft_s"],
        tpot_mean_s=cells["tpot_s"],
    )
    return point, None


def _no_room(key: tuple[str, ...], point: Point | None, kind: TableKind) -> str | None:
    weights_gib = published_weights_gib(key[1], key[4])
    kv_bytes = published_kv_bytes_per_token(key[1])
    if kind.how == "measured" or point is None or weights_gib is None or kv_bytes is None:
        return None
    memory_gib = gpu_types.look_up(key[0], "").memory_gib
    tokens = kv_tokens_that_fit(memory_gib, point.tp_degree, 100, weights_gib, kv_bytes)
    if tokens <= 0:
        return "the weights do not fit the GPU memory"
    # A call of one token gives its cache back at once: those that wait hold none.
    running = point.concurrency or 0.0 if point.output_tokens_mean > 1.0 else 1.0
    in_flight = running * (point.input_tokens_mean + point.output_tokens_mean)
    return "the KV cache does not fit the GPU memory" if in_flight > tokens else None


def _repeats(point: Point | None, points: Sequence[Point]) -> str | None:
    if point is None or all(operating_point(point) != operating_point(p) for p in points):
        return None
    return "repeats an operating point"


def _save(
    out_root: Path | str,
    key: tuple[str, ...],
    points: Sequence[Point],
    kind: TableKind,
    date: str,
    keys: Sequence[tuple[str, ...]],
) -> Bundle:
    gpu_type, model, engine, version, precision = key
    entry = gpu_types.look_up(gpu_type, "")
    header = BundleHeader(
        model=model,
        engine=engine,
        engine_version=version,
        engine_args={},
        precision=precision,
        gpu_type=gpu_type,
        gpu_memory_gib=entry.memory_gib,
        how=kind.how,
        source=kind.source,
        licence="Apache-2.0",
        date=date,
        points_sha256="",
        imported_from=kind.imported_from,
        link=entry.link,
        weights_gib=published_weights_gib(model, precision),
        kv_bytes_per_token=published_kv_bytes_per_token(model),
    )
    # Two precisions of one engine would share a folder.
    alone = sum(other[:4] == key[:4] for other in keys) == 1
    workload = WORKLOAD if alone else f"{WORKLOAD}-{precision}"
    ordered = sorted(
        points,
        key=lambda p: (
            p.tp_degree,
            p.input_tokens_mean,
            p.output_tokens_mean,
            p.concurrency or 0.0,
        ),
    )
    return save_bundle(out_root, header, ordered, workload)
