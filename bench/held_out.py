"""Hold points out of shipped bundles and compare what a plan's curve says without them.

Three experiments on a bundle: a concurrency (all points at one number of calls in flight), a token
shape (all points of one pair of input and output lengths, at every TP degree), and a TP degree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.bundles.model_sizes import architecture_of
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.points import Point
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence, evidence_for
from scepsy_hpc.planning.curves.making import make_curve
from scepsy_hpc.planning.curves.sources import NoCurveError

GPU_TYPES = ("h100_sxm", "a100_sxm")


@dataclass(frozen=True)
class Miss:
    """One held-out point; errors are (predicted - measured) / measured.

    ``place``: `middle`, `lowest` or `highest` of the points of its curve, for a concurrency; else
    what was held out. ``latency`` None: a plan gives no figure there. ``interval``: half-width of
    the 95% interval that the curve states, as a part of the latency predicted.
    """

    place: str
    how: str
    engine: str
    family: str
    bundle: str
    tp_degree: int
    shape: tuple[float, float]
    concurrency: float
    latency: float | None = None
    ttft: float | None = None
    interval: float = 0.0

    @property
    def covered(self) -> bool:
        """Whether the measured latency lies in the stated interval: a factor either way."""
        if self.latency is None:
            return False
        return bool(abs(np.log1p(self.latency)) <= np.log1p(self.interval))


def label(bundle: Bundle) -> str:
    """GPU, model, engine and precision of a bundle."""
    h = bundle.header
    gpu = h.gpu_type.partition("_")[0].upper()
    return f"{gpu}, {h.model.split('/')[-1]}, {h.engine} {h.engine_version}, {h.precision}"


def shape_of(point: Point) -> tuple[float, float]:
    """Input and output tokens."""
    return point.input_tokens_mean, point.output_tokens_mean


def curve_of(point: Point) -> tuple[int, float, float]:
    """TP degree and shape: the points of one curve."""
    return point.tp_degree, *shape_of(point)


def evidence_of(bundle: Bundle) -> Evidence:
    """The bundle as the planner takes it up. Raises InputError where sizes are unknown."""
    return next(evidence_for(bundle.header.model, bundle.header.gpu_type, [bundle]))


def of_curve(curve: Curve, in_flight: float) -> tuple[float, float]:
    """(latency_s, ttft_s) of the curve at a number of calls in flight."""
    latency_s = curve.server.closed(in_flight)[1]
    last = curve.server.concurrency[-1]
    ttft_s = float(np.interp(in_flight, curve.server.concurrency, curve.ttft_s))
    if in_flight > last:  # more calls than fit wait for their first token
        ttft_s += latency_s - curve.server.closed(last)[1]
    return latency_s, ttft_s


def place_of(point: Point, rest: Sequence[Point]) -> str | None:
    """Where a held-out point lies among the points left of its curve; None: none is left."""
    counts = [p.concurrency or 0.0 for p in rest if curve_of(p) == curve_of(point)]
    mine = point.concurrency or 0.0
    if not counts:
        return None
    return "lowest" if mine < min(counts) else "highest" if mine > max(counts) else "middle"


def said_of(evidence: Evidence, point: Point, base: Miss) -> Miss:
    """What a plan would say of a held-out point, from the evidence without it."""
    header = evidence.merged.header
    link = header.link if point.tp_degree > 1 else None
    kind = Parallelism(header.gpu_type, link, point.tp_degree, point.gpu_share_pct)
    try:
        curve = make_curve(evidence, kind, TokenLengths(*shape_of(point)))
    except NoCurveError:
        return base
    in_flight = point.concurrency or 1.0
    latency_s, ttft_s = of_curve(curve, in_flight)
    known = point.ttft_mean_s is not None and np.isfinite(ttft_s)
    return replace(
        base,
        latency=latency_s / point.latency_mean_s - 1.0,
        ttft=ttft_s / point.ttft_mean_s - 1.0 if known and point.ttft_mean_s else None,
        interval=curve.interval_pct(in_flight) / 100.0,
    )


KEYS: dict[str, Callable[[Point], object]] = {
    "concurrency": lambda point: point.concurrency,
    "token shape": shape_of,
    "TP degree": lambda point: point.tp_degree,
}


def hold_out(bundle: Bundle) -> Iterator[Miss]:
    """Every concurrency, token shape and TP degree of a bundle left out in turn.

    Raises InputError where the model's sizes are unknown: no plan could use the bundle.
    """
    header = bundle.header
    family = "dense" if architecture_of(header.model).experts is None else "MoE"
    blank = Miss("", header.how, header.engine, family, label(bundle), 0, (0.0, 0.0), 0.0)
    evidence_of(bundle)
    for held_out, key in KEYS.items():
        for value in dict.fromkeys(map(key, bundle.points)):
            rest = tuple(p for p in bundle.points if key(p) != value)
            if not rest:
                continue
            evidence = evidence_of(replace(bundle, points=rest))
            for point in (p for p in bundle.points if key(p) == value):
                place = place_of(point, rest) if held_out == "concurrency" else held_out
                if place is None:
                    continue  # a curve of one point: nothing is left of it
                at = {"tp_degree": point.tp_degree, "shape": shape_of(point)}
                base = replace(blank, place=place, concurrency=point.concurrency or 0.0, **at)
                yield said_of(evidence, point, base)


def shipped_bundles(only: str = "") -> list[Bundle]:
    """The shipped bundles whose label contains ``only``."""
    found = [b for gpu in GPU_TYPES for b in find_bundles(shipped_path("profiles") / gpu)]
    return [b for b in found if only in label(b)]


def measure(bundles: Iterable[Bundle]) -> tuple[list[Miss], list[str]]:
    """All comparisons, and one line for each bundle that no plan could use."""
    misses: list[Miss] = []
    left_out: list[str] = []
    for bundle in bundles:
        try:
            misses += hold_out(bundle)
        except InputError as error:
            left_out.append(f"{label(bundle)}: {str(error).partition(': ')[2]}")
    return misses, left_out
