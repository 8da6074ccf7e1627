"""Which profiles speak for a model on a GPU type, and which of them are taken.

Bundles of one model, engine, version, precision and GPU type are one body of evidence. Different
engines, versions or precisions are never mixed within one plan's LLM: their answers and speeds
differ for reasons that no curve shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scepsy_hpc.bundles.model_sizes import ModelSizes, sizes_of
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.points import Point

RUNNABLE_ENGINES = ("vllm", "simulated")
"""Engines that this package can start; others are for planning on paper."""

_HOW_RANK = {"measured": 0, "derived": 1, "modelled": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All points of one (model, engine, version, precision, GPU type), the bundles merged.

    ``merged`` has their sizes filled in, and the memory of the GPUs at hand where that is less.
    """

    bundles: tuple[Bundle, ...]
    merged: Bundle
    sizes: ModelSizes | None

    @property
    def label(self) -> str:
        """For people: `vllm 0.12.0 (measured, fp8)`."""
        header = self.bundles[0].header
        return f"{header.engine} {header.engine_version} ({header.how}, {header.precision})"

    def bundle_of(self, point: Point) -> Bundle:
        """The bundle that a point of ``merged`` came from."""
        return next((b for b in self.bundles if point in with_link(b)), self.bundles[0])


def with_link(bundle: Bundle) -> tuple[Point, ...]:
    """The points, each with the link that the header gives to all."""
    if bundle.header.link is None:
        return bundle.points
    link: Link = bundle.header.link
    return tuple(p if p.link else replace(p, link=link) for p in bundle.points)


class Shelf:
    """Bundles to look up; what was put together once is kept, so that it is fitted once."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        engine: str | None = None,
        gpu_memory_gib: Mapping[str, float] | None = None,
    ) -> None:
        """``gpu_memory_gib`` is that of the GPUs at hand, by GPU type."""
        self.bundles = bundles
        self.engine = engine
        self._memory_gib = gpu_memory_gib or {}
        self._found: dict[tuple[str, str], tuple[list[Evidence], Iterator[Evidence]]] = {}

    def evidence(self, model: str, gpu_type: str) -> Iterator[Evidence]:
        """``evidence_for``, from what is kept as far as it goes."""
        key = (model, gpu_type)
        if key not in self._found:
            memory_gib = self._memory_gib.get(gpu_type)
            rest = evidence_for(model, gpu_type, self.bundles, self.engine, memory_gib)
            self._found[key] = ([], rest)
        known, rest = self._found[key]
        yield from tuple(known)
        for evidence in rest:
            known.append(evidence)
            yield evidence


def evidence_for(
    model: str,
    gpu_type: str,
    bundles: Iterable[Bundle],
    engine: str | None = None,
    gpu_memory_gib: float | None = None,
) -> Iterator[Evidence]:
    """Bodies of evidence for a model on a GPU type, the one to prefer first.

    Preferred: an engine that can be started here, a real one before a simulated one, curves
    before single points, measured before modelled, then the newest version. ``engine`` is an
    engine's name, or name and version as ``vllm-0.24.0``. Raises InputError where sizes lack.
    """
    groups: dict[tuple[str, str, str, str], list[Bundle]] = {}
    for bundle in bundles:
        header = bundle.header
        if speaks_for(bundle, model, (gpu_type,), engine):
            key = (header.engine, header.engine_version, header.precision, header.how)
            groups.setdefault(key, []).append(bundle)
    for group in sorted(groups.values(), key=_rank):
        yield _merge(group, gpu_memory_gib)


def speaks_for(bundle: Bundle, model: str, gpu_types: Sequence[str], engine: str | None) -> bool:
    """Whether a bundle is of that model, one of the GPU types, and the engine asked for."""
    header = bundle.header
    names = (header.engine, f"{header.engine}-{header.engine_version}")
    return header.model == model and header.gpu_type in gpu_types and engine in (None, *names)


def _merge(group: Sequence[Bundle], gpu_memory_gib: float | None) -> Evidence:
    first, sizes = group[0], _sizes(group)
    header = first.header
    if sizes is not None:
        header = replace(
            header, weights_gib=sizes.weights_gib, kv_bytes_per_token=sizes.kv_bytes_per_token
        )
    if gpu_memory_gib is not None:
        header = replace(header, gpu_memory_gib=min(gpu_memory_gib, header.gpu_memory_gib))
    points = tuple(p for bundle in group for p in with_link(bundle))
    return Evidence(tuple(group), Bundle(header, points, first.path), sizes)


def no_evidence(
    model: str, gpu_types: Sequence[str], bundles: Sequence[Bundle], engine: str | None
) -> InputError:
    """The error for a model that no profile speaks for, with the profiles there are."""
    headers = [bundle.header for bundle in bundles]
    there = sorted({f"{h.model} on {h.gpu_type} ({h.engine} {h.engine_version})" for h in headers})
    shown = "; ".join(there[:12]) + (f"; and {len(there) - 12} more" if len(there) > 12 else "")
    with_engine = f" and engine {engine}" if engine else ""
    return InputError(
        f"{model}: no profile for GPU type {' or '.join(gpu_types)}{with_engine}; profiles there "
        f"are: {shown or 'none'}. Measure it with `scepsy profile`"
    )


def _rank(group: Sequence[Bundle]) -> tuple[int, bool, bool, int, list[int], int]:
    header = group[0].header
    curves: dict[tuple[float, ...], int] = {}
    for point in (p for bundle in group for p in bundle.points):
        shape = (point.tp_degree, point.input_tokens_mean, point.output_tokens_mean)
        curves[shape] = curves.get(shape, 0) + 1
    return (
        0 if header.engine in RUNNABLE_ENGINES else 1,
        header.engine == "simulated",
        max(curves.values()) < 3,
        _HOW_RANK[header.how],
        [-int(number) for number in re.findall(r"\d+", header.engine_version)],
        -sum(curves.values()),
    )


def _sizes(group: Sequence[Bundle]) -> ModelSizes | None:
    # Any bundle of the group may know: they are the same model at the same precision.
    headers = [bundle.header for bundle in group]
    weights = next((h.weights_gib for h in headers if h.weights_gib), None)
    kv_bytes = next((h.kv_bytes_per_token for h in headers if h.kv_bytes_per_token), None)
    known = replace(headers[0], weights_gib=weights, kv_bytes_per_token=kv_bytes)
    return sizes_of(known, f"{group[0].path}/bundle.yaml")
