"""Judge a fit by what it says of points it has not seen: medians, and how wide an interval is.

Held out in turn: the points at one number of calls in flight, of one token shape, of one TP
degree. A curve carries the misses at the points left on to a held-out concurrency (linear in the
logarithm of the calls in flight between points, held outside), so intervals there are of what
remains of them. With few held-out points an interval leans to what is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scepsy_hpc.bundles.engine_fit import Equations, in_flight_of
from scepsy_hpc.bundles.roofline import Proportions
from scepsy_hpc.bundles.shapes import shapes_of
from scepsy_hpc.bundles.step_time import FitQuality, Spread
from scepsy_hpc.formats.points import Point
from scepsy_hpc.metrics import Floats, Ints

_LEAST_KEPT = 3
_MOST_GROUPS = 10
_ENOUGH, _ENOUGH_FOR_INTERVAL = 4, 20
"""Held-out points of a TP degree from which on its medians, and its intervals, are its own."""

_USUAL = {"between": 0.15, "below": 0.25, "beyond": 0.3, "shape": 0.35, "tp_degree": 0.45}
_USUAL_ONE_SHAPE, _USUAL_FEW, _FEW = 0.8, 1.3, 4
_NUM_USUAL = 3
"""Half-widths of 95% intervals (logarithms) that count as this many held-out points."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """Misses of held-out points, by what was held out, as logarithms of measured / predicted.

    ``model`` are those of the model alone, ``curve`` those that a curve would be left with;
    NaN where nothing could be said. All have one entry for each point.
    """

    tp: Ints
    num_shapes: int
    in_sample: Floats
    model: dict[str, Floats] = field(default_factory=dict)
    curve: dict[str, Floats] = field(default_factory=dict)

    def at(self, tp_degree: int) -> FitQuality:
        """How well the fit did at one TP degree."""
        here = self.tp == tp_degree
        own = here if here.any() else np.ones_like(here)
        return FitQuality(
            num_points=int(own.sum()),
            in_sample=float(np.median(np.abs(self.in_sample[own] - 1.0))),
            held_out_point=self._median("point", here),
            held_out_shape=self._median("shape", here),
            num_shapes=self.num_shapes,
            spread=Spread(*(self._half_width(kind, here) for kind in _USUAL)),
        )

    def _median(self, kind: str, here: Ints) -> float | None:
        known = np.isfinite(self.model[kind])
        mine = known & here
        chosen = self.model[kind][mine if mine.sum() >= _ENOUGH else known]
        return float(np.median(np.abs(np.expm1(-chosen)))) if len(chosen) else None

    def _half_width(self, kind: str, here: Ints) -> float:
        usual = _USUAL[kind]
        if kind in ("shape", "tp_degree") and len(self.tp) < _FEW:
            usual = _USUAL_FEW
        elif kind in ("shape", "tp_degree") and self.num_shapes == 1:
            usual = _USUAL_ONE_SHAPE
        known = np.isfinite(self.curve[kind])
        mine = known & here
        chosen = mine if mine.sum() >= _ENOUGH_FOR_INTERVAL else known
        pretended = usual * (np.arange(_NUM_USUAL) + 1.0) / _NUM_USUAL
        both = np.concatenate([np.abs(self.curve[kind][chosen]), pretended])
        return float(np.quantile(both, 0.95, method="higher"))


def judge(
    points: Sequence[Point], equations: Equations, known: Proportions, in_sample: Floats
) -> Judgement:
    """Hold out everything in turn. ``in_sample``: predicted over measured of the whole fit."""
    count = len(points)
    shapes = shapes_of(points)
    shape_of = {id(p): i for i, shape in enumerate(shapes) for p in shape.points}
    shape = np.array([shape_of[id(p)] for p in points], dtype=np.int64)
    tp = np.array([p.tp_degree for p in points], dtype=np.int64)
    in_flight = np.array([in_flight_of(p) for p in points])
    found = Judgement(tp, len(shapes), in_sample)
    everywhere = np.arange(count, dtype=np.int64)
    alone = np.full(count, np.nan)
    left: dict[str, Floats] = {k: np.full(count, np.nan) for k in ("between", "below", "beyond")}
    groups = _groups(in_flight)
    for group in np.unique(groups):
        out = groups == group
        if (~out).sum() >= _LEAST_KEPT:
            misses = equations.misses((~out).astype(float), known, everywhere)
            alone[out] = misses[out]
            _carry(misses, out, tp * len(shapes) + shape, np.log(in_flight), left)
    found.model["point"] = alone
    found.curve.update(left)
    for kind, labels in (("shape", shape), ("tp_degree", tp)):
        found.model[kind] = found.curve[kind] = _by_label(equations, known, labels)
    return found


def _by_label(equations: Equations, known: Proportions, labels: Ints) -> Floats:
    misses = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        out = labels == label
        if (~out).sum() >= _LEAST_KEPT:
            wanted = np.flatnonzero(out)
            misses[out] = equations.misses((~out).astype(float), known, wanted)
    return misses


def _groups(in_flight: Floats) -> Ints:
    """Which points are held out together: one concurrency, or neighbours where there are many."""
    values, which = np.unique(np.round(in_flight, 6), return_inverse=True)
    if len(values) <= _MOST_GROUPS:
        return np.asarray(which, dtype=np.int64)
    return np.asarray(which * _MOST_GROUPS // len(values), dtype=np.int64)


def _carry(
    misses: Floats, out: Ints, curves: Ints, log_in_flight: Floats, left: dict[str, Floats]
) -> None:
    """What is left of the held-out misses once the others of their curve are carried over."""
    for curve in np.unique(curves[out]):
        mine = curves == curve
        kept = np.flatnonzero(mine & ~out)
        if not len(kept):
            continue
        kept = kept[np.argsort(log_in_flight[kept])]
        for i in np.flatnonzero(mine & out):
            at = log_in_flight[i]
            first, last = log_in_flight[kept[0]], log_in_flight[kept[-1]]
            kind = "below" if at < first else "beyond" if at > last else "between"
            carried = np.interp(at, log_in_flight[kept], misses[kept])
            left[kind][i] = misses[i] - carried
