"""Which profiles speak for a model on a GPU type, and which of them are taken.

Bundles of one configuration are one body of evidence: model, engine, version, precision,
normalised engine arguments, GPU type and memory agree (the link is each point's own). Different
ones are never mixed within one plan's LLM: their answers and speeds differ for reasons that no
curve shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scepsy_hpc.bundles.model_sizes import ModelSizes, sizes_of
from scepsy_hpc.bundles.shapes import shapes_of
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle, BundleHeader
from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.workflow import EngineArg, Llm

RUNNABLE_ENGINES = ("vllm", "simulated")
"""Engines that this package can start; others are for planning on paper."""

_HOW_RANK = {"measured": 0, "derived": 1, "modelled": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All points of one configuration, the bundles merged.

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


@dataclass(frozen=True, slots=True)
class Wanted:
    """The configuration a workflow states for an LLM; None and no arguments: any.

    Engine, version and precision select; of what is left, bundles whose engine arguments are
    those wanted are preferred.
    """

    engine: str | None = None
    engine_version: str | None = None
    precision: str | None = None
    engine_args: tuple[tuple[str, EngineArg], ...] = ()

    @classmethod
    def of(cls, llm: Llm) -> Wanted:
        """What a workflow says of an LLM."""
        return cls(
            llm.engine, llm.engine_version, llm.precision, tuple(sorted(llm.engine_args.items()))
        )

    def takes(self, header: BundleHeader) -> bool:
        """Whether a bundle is of that engine, version and precision."""
        pairs = (
            (self.engine, header.engine),
            (self.engine_version, header.engine_version),
            (self.precision, header.precision),
        )
        return all(wanted in (None, there) for wanted, there in pairs)

    def other_args(self, header: BundleHeader) -> int:
        """How many of the engine arguments wanted the profile did not run with."""
        return sum(header.engine_args.get(key) != value for key, value in self.engine_args)

    def __str__(self) -> str:
        stated = {
            "engine": self.engine,
            "engine_version": self.engine_version,
            "precision": self.precision,
        }
        return ", ".join(f"{key} {value}" for key, value in stated.items() if value is not None)


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
        self._found: dict[tuple[str, str, Wanted], tuple[list[Evidence], Iterator[Evidence]]] = {}

    def evidence(
        self, model: str, gpu_type: str, wanted: Wanted | None = None
    ) -> Iterator[Evidence]:
        """``evidence_for``, from what is kept as far as it goes."""
        key = (model, gpu_type, wanted or Wanted())
        if key not in self._found:
            memory_gib = self._memory_gib.get(gpu_type)
            rest = evidence_for(model, gpu_type, self.bundles, self.engine, memory_gib, key[2])
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
    wanted: Wanted | None = None,
) -> Iterator[Evidence]:
    """Bodies of evidence for a model on a GPU type, the one to prefer first.

    Preferred: an engine that can be started here, a real one before a simulated one, curves
    before single points, measured before modelled, then the newest version. ``engine`` is an
    engine's name, or name and version as ``vllm-0.24.0``; ``wanted`` what the workflow states.
    Raises InputError where sizes lack.
    """
    asked = wanted or Wanted()
    groups: dict[tuple[Any, ...], list[Bundle]] = {}
    for bundle in bundles:
        header = bundle.header
        if speaks_for(bundle, model, (gpu_type,), engine) and asked.takes(header):
            groups.setdefault(configuration_key(header), []).append(bundle)
    for group in sorted(groups.values(), key=lambda g: _rank(g, asked)):
        yield _merge(group, gpu_memory_gib)


def configuration_key(header: BundleHeader) -> tuple[Any, ...]:
    """What must agree for two bundles of a model and GPU type to be one body of evidence.

    Numbers written as text count as numbers, and the order of arguments does not matter.
    """
    args = tuple(sorted((key, str(value).lower()) for key, value in header.engine_args.items()))
    how = (header.how, header.engine, header.engine_version, header.precision)
    return (*how, args, header.gpu_memory_gib)


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
    model: str,
    gpu_types: Sequence[str],
    bundles: Sequence[Bundle],
    engine: str | None,
    wanted: Wanted | None = None,
) -> InputError:
    """The error for a model that no profile speaks for, with the profiles there are."""
    headers = [bundle.header for bundle in bundles]
    there = sorted({f"{h.model} on {h.gpu_type} ({h.engine} {h.engine_version})" for h in headers})
    shown = "; ".join(there[:12]) + (f"; and {len(there) - 12} more" if len(there) > 12 else "")
    with_engine = f" and engine {engine}" if engine else ""
    if wanted is not None and str(wanted):
        with_engine += f" and {wanted}, as the workflow states"
    return InputError(
        f"{model}: no profile for GPU type {' or '.join(gpu_types)}{with_engine}; profiles there "
        f"are: {shown or 'none'}. Measure it with `scepsy profile`"
    )


def _rank(
    group: Sequence[Bundle], wanted: Wanted
) -> tuple[int, bool, bool, int, list[int], int, int]:
    header = group[0].header
    curves: dict[tuple[int, int], int] = {}
    points = [p for bundle in group for p in bundle.points]
    for i, shape in enumerate(shapes_of(points)):
        for point in shape.points:
            curves[point.tp_degree, i] = curves.get((point.tp_degree, i), 0) + 1
    return (
        0 if header.engine in RUNNABLE_ENGINES else 1,
        header.engine == "simulated",
        max(curves.values()) < 3,
        _HOW_RANK[header.how],
        [-int(number) for number in re.findall(r"\d+", header.engine_version)],
        wanted.other_args(header),
        -sum(curves.values()),
    )


def _sizes(group: Sequence[Bundle]) -> ModelSizes | None:
    # Any bundle of the group may know: they are the same model at the same precision.
    headers = [bundle.header for bundle in group]
    weights = next((h.weights_gib for h in headers if h.weights_gib), None)
    kv_bytes = next((h.kv_bytes_per_token for h in headers if h.kv_bytes_per_token), None)
    known = replace(headers[0], weights_gib=weights, kv_bytes_per_token=kv_bytes)
    return sizes_of(known, f"{group[0].path}/bundle.yaml")
