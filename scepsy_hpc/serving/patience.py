"""How long an engine may show no sign of work: by the time to first token of its own profile."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle, load_bundle
from scepsy_hpc.formats.plan import Deployment, Plan
from scepsy_hpc.formats.points import Point

TTFT_FACTOR = 3.0
# Where no profile tells the time to first token, the least time counts so often.
UNKNOWN_FACTOR = 2.0
# The 99th percentile of an exponential tail, of which the 95th or the mean is known.
P99_OF_P95 = math.log(100.0) / math.log(20.0)
P99_OF_MEAN = math.log(100.0)


@dataclass(frozen=True, slots=True)
class Patience:
    """After ``limit_s`` without a sign of work an engine is suspect; ``why`` that long."""

    limit_s: float
    why: str


def patience_of(plan: Plan, name: str, least_s: float) -> Patience:
    """The longer of ``least_s`` and three times the p99 of the profile's time to first token.

    ``name``: of a deployment. The p99 is that at the planned load.
    """
    ttft_s = _ttft_p99_s(plan, name)
    if ttft_s is None:
        limit_s = UNKNOWN_FACTOR * least_s
        return Patience(
            limit_s, f"{UNKNOWN_FACTOR:g} x {least_s:g} s, as no profile tells its TTFT"
        )
    if TTFT_FACTOR * ttft_s > least_s:
        why = f"{TTFT_FACTOR:g} x the p99 TTFT of its profile, {ttft_s:.3g} s"
        return Patience(TTFT_FACTOR * ttft_s, why)
    return Patience(least_s, "the least; its profile's TTFT is shorter")


def _ttft_p99_s(plan: Plan, name: str) -> float | None:
    """The longest among the loads up to the planned one; None where nobody measured it."""
    llm = plan.llms[name]
    scale = llm.engine_args.get("time_scale", 1.0) if llm.engine == "simulated" else 1.0
    points = [point for bundle in _bundles(plan, llm) for point in bundle.points]
    alike = [point for point in points if _is_alike(point, llm)]
    found = [t for p in _at_load(alike, _in_flight(plan, name)) if (t := _p99_s(p)) is not None]
    return max(found) * float(str(scale)) if found else None


def _in_flight(plan: Plan, name: str) -> float | None:
    """Calls in flight at one replica as simulated; None where that is not known."""
    figures = plan.simulated.per_llm.get(name) if plan.simulated else None
    if figures is None or figures.calls_in_flight_mean is None:
        return None
    return figures.calls_in_flight_mean / plan.llms[name].num_replicas


def _at_load(points: Sequence[Point], in_flight: float | None) -> list[Point]:
    """Points up to the first at or past twice the mean load: it swings. All where it is unknown."""
    if in_flight is None:
        return list(points)
    loads = {p: p.concurrency or p.throughput_rps * p.latency_mean_s for p in points}
    limit = min((k for k in loads.values() if k >= 2.0 * in_flight), default=math.inf)
    return [p for p, k in loads.items() if k <= limit]


def _is_alike(point: Point, llm: Deployment) -> bool:
    shape = (point.tp_degree, point.gpu_share_pct)
    return shape == (llm.tp_degree, llm.gpu_share_pct) and not point.saturated


def _p99_s(point: Point) -> float | None:
    if point.ttft_p95_s is not None:
        return point.ttft_p95_s * P99_OF_P95
    return None if point.ttft_mean_s is None else point.ttft_mean_s * P99_OF_MEAN


def _bundles(plan: Plan, llm: Deployment) -> Iterator[Bundle]:
    """The profile it was planned from, where a node can read it."""
    for folder in _folders(plan, llm):
        with contextlib.suppress(InputError, OSError):
            yield load_bundle(folder)


def _folders(plan: Plan, llm: Deployment) -> Sequence[Path]:
    if llm.engine == "simulated":
        with contextlib.suppress(InputError):
            return [resolve_bundle(str(llm.engine_args.get("timing_bundle", "")))]
        return []
    named = [i for i in plan.inputs if i.role == "profile" and i.sha256 == llm.bundle_sha256]
    return [Path(item.path).parent for item in named]
