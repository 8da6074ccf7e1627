"""Hold points out of measured bundles and compare what the planner says without them.

Two experiments on a bundle: a concurrency (all points at one number of calls in flight) and a
token shape (all points of one pair of input and output lengths, at every TP degree). The curve is
what a plan uses; the engine model alone is judged beside it, and latency taken as linear in calls
in flight for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.bundles.engine_model import BadFitError, fit_engine_model
from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.bundles.step_time import EngineModel, kv_tokens_that_fit
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.points import Point
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence, evidence_for
from scepsy_hpc.planning.curves.making import NoCurveError, make_curve


@dataclass(frozen=True)
class Miss:
    """One held-out point as one predictor saw it; errors are (predicted - measured) / measured.

    ``place`` of a held-out concurrency: whether the points left lie on both sides of it.
    ``latency`` None: a plan gives no figure there.
    """

    held_out: str  # concurrency | shape
    by: str  # curve | engine | line
    bundle: str
    tp_degree: int
    shape: tuple[float, float]
    concurrency: float
    place: str = "between"  # between | below | above
    latency: float | None = None
    throughput: float | None = None
    ttft: float | None = None


def label(bundle: Bundle) -> str:
    """Model, engine and precision of a bundle."""
    h = bundle.header
    return f"{h.model.split('/')[-1]}, {h.engine} {h.engine_version}, {h.precision}"


def shape_of(point: Point) -> tuple[float, float]:
    """Input and output tokens."""
    return point.input_tokens_mean, point.output_tokens_mean


def curve_of(point: Point) -> tuple[int, float, float]:
    """TP degree and shape: the points of one curve."""
    return point.tp_degree, *shape_of(point)


def evidence_of(bundle: Bundle) -> Evidence:
    """The bundle as the planner takes it up. Raises InputError where sizes are unknown."""
    return next(evidence_for(bundle.header.model, bundle.header.gpu_type, [bundle]))


def of_curve(curve: Curve, in_flight: float) -> tuple[float, float, float]:
    """(latency_s, throughput_rps, ttft_s) of the curve at a number of calls in flight."""
    throughput_rps, latency_s = curve.server.closed(in_flight)
    last = curve.server.concurrency[-1]
    ttft_s = float(np.interp(in_flight, curve.server.concurrency, curve.ttft_s))
    if in_flight > last:  # more calls than were measured wait for their first token
        ttft_s += latency_s - curve.server.closed(last)[1]
    return latency_s, throughput_rps, ttft_s


def of_engine(model: EngineModel, point: Point) -> tuple[float, float, float]:
    """The same of the engine model alone."""
    state = model.closed_loop(point.concurrency or 1.0, *shape_of(point))
    return state.latency_s, state.throughput_rps, state.ttft_s


def compared(base: Miss, point: Point, said: tuple[float, float, float]) -> Miss:
    """``base`` with the errors filled in."""
    latency_s, throughput_rps, ttft_s = said
    known = point.ttft_mean_s is not None and np.isfinite(ttft_s)
    return replace(
        base,
        latency=latency_s / point.latency_mean_s - 1.0,
        throughput=throughput_rps / point.throughput_rps - 1.0,
        ttft=ttft_s / point.ttft_mean_s - 1.0 if known and point.ttft_mean_s else None,
    )


def place_of(point: Point, rest: Sequence[Point]) -> str | None:
    """Where a held-out point lies among the points left of its curve; None: none is left."""
    counts = [p.concurrency or 0.0 for p in rest if curve_of(p) == curve_of(point)]
    mine = point.concurrency or 0.0
    if not counts:
        return None
    return "below" if mine < min(counts) else "above" if mine > max(counts) else "between"


def by_curve(evidence: Evidence, held: Iterable[Point], held_out: str) -> Iterator[Miss]:
    """What a plan would say of held-out points, from the evidence without them."""
    header = evidence.merged.header
    for point in held:
        place = place_of(point, evidence.merged.points)
        if held_out == "concurrency" and place is None:
            continue  # a curve of one point
        base = blank(held_out, "curve", evidence.merged, point, place or "between")
        kind = Parallelism(header.gpu_type, header.link, point.tp_degree, point.gpu_share_pct)
        try:
            curve = make_curve(evidence, kind, TokenLengths(*shape_of(point)))
        except NoCurveError:
            yield base
        else:
            yield compared(base, point, of_curve(curve, point.concurrency or 1.0))


def by_line(evidence: Evidence, held: Iterable[Point]) -> Iterator[Miss]:
    """Latency taken as linear in calls in flight between the points left; for comparison."""
    bundle = evidence.merged
    for point in held:
        if place_of(point, bundle.points) == "between":
            same = [p for p in bundle.points if curve_of(p) == curve_of(point)]
            known = {p.concurrency or 0.0: p.latency_mean_s for p in same}
            in_flight, counts = point.concurrency or 1.0, sorted(known)
            latency_s = float(np.interp(in_flight, counts, [known[k] for k in counts]))
            base = blank("concurrency", "line", bundle, point, "between")
            yield compared(base, point, (latency_s, in_flight / latency_s, float("nan")))


def by_engine(evidence: Evidence, held: Sequence[Point], held_out: str) -> Iterator[Miss]:
    """The engine model fitted without the held-out points; a fit is judged even if refused."""
    for tp_degree in dict.fromkeys(p.tp_degree for p in held):
        model = fitted(evidence, tp_degree)
        for point in held:
            if model is not None and point.tp_degree == tp_degree:
                place = place_of(point, evidence.merged.points) or "between"
                base = blank(held_out, "engine", evidence.merged, point, place)
                yield compared(base, point, of_engine(model, point))


def fitted(evidence: Evidence, tp_degree: int) -> EngineModel | None:
    """The engine model of one TP degree with its KV cache as limit; None: too few points."""
    memory_gib, sizes, tokens = evidence.merged.header.gpu_memory_gib, evidence.sizes, None
    if sizes is not None:
        of_model = (sizes.weights_gib, sizes.kv_bytes_per_token)
        tokens = kv_tokens_that_fit(memory_gib, tp_degree, 100, *of_model)
    points = [p for p in evidence.merged.points if p.tp_degree == tp_degree]
    try:
        return fit_engine_model(points, kv_tokens=tokens, refuse=False)
    except BadFitError:
        return None


def blank(held_out: str, by: str, bundle: Bundle, point: Point, place: str) -> Miss:
    """A comparison before its errors are known."""
    in_flight = point.concurrency or 0.0
    return Miss(held_out, by, label(bundle), point.tp_degree, shape_of(point), in_flight, place)


KEYS: dict[str, Callable[[Point], object]] = {
    "concurrency": lambda point: point.concurrency,
    "shape": shape_of,
}


def hold_out(bundle: Bundle) -> list[Miss]:
    """Every concurrency and every token shape of a bundle left out in turn.

    Raises InputError where the model's sizes are unknown: no plan could use the bundle.
    """
    evidence_of(bundle)
    found: list[Miss] = []
    for held_out, key in KEYS.items():
        for value in dict.fromkeys(map(key, bundle.points)):
            held = [p for p in bundle.points if key(p) == value]
            rest = tuple(p for p in bundle.points if key(p) != value)
            if not rest:
                continue
            evidence = evidence_of(replace(bundle, points=rest))
            found += by_curve(evidence, held, held_out)
            found += by_engine(evidence, held, held_out)
            if held_out == "concurrency":
                found += by_line(evidence, held)
    return found


def measured_bundles(only: str = "") -> list[Bundle]:
    """The shipped measured H100 bundles whose label contains ``only``."""
    found = find_bundles(shipped_path("profiles") / "h100_sxm")
    return [b for b in found if b.header.how == "measured" and only in label(b)]


def measure(bundles: Iterable[Bundle]) -> tuple[list[Miss], list[str]]:
    """All comparisons, and one line for each bundle that no plan could use."""
    misses, left_out = [], []
    for bundle in bundles:
        try:
            misses += hold_out(bundle)
        except InputError as error:
            left_out.append(f"{label(bundle)}: {str(error).partition(': ')[2]}")
    return misses, left_out
