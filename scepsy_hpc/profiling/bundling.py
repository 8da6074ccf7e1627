"""From measured tasks to bundles: who they were measured on, and what they say of themselves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from scepsy_hpc import __version__
from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.formats.bundle import BundleHeader, load_bundle
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.span_parts import sha256_of_spans
from scepsy_hpc.profiling.spec import ProfileSpec, SweepTask
from scepsy_hpc.profiling.sweep import SweepResult


def bundled(
    spec: ProfileSpec, measured: Sequence[tuple[SweepTask, SweepResult]]
) -> list[tuple[BundleHeader, list[Point]]]:
    """Header and points of each bundle: one a model, GPU type and engine version."""

    def key(pair: tuple[SweepTask, SweepResult]) -> tuple[str, str, str, str]:
        task, result = pair
        return (task.model.model, task.model.engine, result.engine_version, task.gpu_type)

    found = []
    for _, group in itertools.groupby(sorted(measured, key=key), key=key):
        pairs = list(group)
        points = [point for _, result in pairs for point in result.points]
        found.append((_header(spec, pairs, points), points))
    return found


def _header(
    spec: ProfileSpec,
    pairs: Sequence[tuple[SweepTask, SweepResult]],
    points: Sequence[Point],
) -> BundleHeader:
    (task, result), model = pairs[0], pairs[0][0].model
    links = {point.link for point in points}
    header = BundleHeader(
        model=model.model,
        engine=model.engine,
        engine_version=result.engine_version,
        engine_args=model.engine_args,
        precision=model.precision,
        gpu_type=task.gpu_type,
        gpu_memory_gib=min(task.gpu_memory_gib for task, _ in pairs),
        how="measured",
        source=model.source or _source(spec, pairs),
        licence=model.licence or "not stated",
        date=time.strftime("%Y-%m-%d"),
        points_sha256="0" * 64,  # save_bundle fills it in
        driver=result.driver,
        link=links.pop() if len(links) == 1 else None,
        weights_gib=model.weights_gib,
        kv_bytes_per_token=model.kv_bytes_per_token,
        spans_sha256=_spans_sha256(spec),
    )
    return _as_simulated(header, task) if model.engine == "simulated" else header


def _source(spec: ProfileSpec, pairs: Sequence[tuple[SweepTask, SweepResult]]) -> str:
    text = f"scepsy-hpc {__version__} profile, workload {spec.workload.name}"
    for share, others in sorted({(t.gpu_share_pct, r.neighbours_pct) for t, r in pairs}):
        if others:
            beside = " and ".join(f"{other}%" for other in others)
            text += f"; {share}% measured beside {beside} under the same load"
    for share, why in sorted({(t.gpu_share_pct, r.time_sliced) for t, r in pairs if r.time_sliced}):
        text += f"; {share}% was time-sliced, no SM limit held: {why}"
    return text


def _as_simulated(header: BundleHeader, task: SweepTask) -> BundleHeader:
    """Nothing about a simulated engine was measured: its timing is another bundle's."""
    timing = load_bundle(resolve_bundle(str(task.model.engine_args["timing_bundle"])))
    origin = timing.header
    return replace(
        header,
        how="modelled",
        source=(
            f"simulated engine; timing of {origin.gpu_type}/{origin.model}/{origin.engine}-"
            f"{origin.engine_version} ({origin.how}, points {timing.sha256[:12]}), "
            f"whose source is: {origin.source}"
        ),
        licence=task.model.licence or origin.licence,
        driver=None,
    )


def _spans_sha256(spec: ProfileSpec) -> str | None:
    if spec.workload.spans is None:
        return None
    return sha256_of_spans(spec.path.parent / spec.workload.spans)
