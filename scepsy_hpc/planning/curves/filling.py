"""Points that nobody measured, by the fitted engine model held to those that somebody did.

At a measured concurrency the model misses by some factor; at others that factor is taken as linear
in the logarithm of the calls in flight, and beyond the ends as it is there. So a curve goes through
its points and bends between them as an engine does. In between, the contract's rule (throughput
linear in calls in flight) is left with gaps too short to matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.curves.sweep import ClosedPoints

_APART, _NOISE = 1.4, 0.03

STEP = 1.25
"""Largest factor between two neighbouring concurrencies of a curve, as far as whole calls allow."""


@dataclass(frozen=True, slots=True)
class FittedShape:
    """Points of one shape, and the model fitted to them."""

    closed: ClosedPoints
    model: EngineModel
    tokens: TokenLengths

    def misses(self, grid: Sequence[float], smooth: bool = False) -> list[tuple[float, float]]:
        """Points over model, throughput and TTFT, at each concurrency; the ends are held.

        ``smooth``: each the median of itself and its neighbours, so that an odd point counts here
        and not elsewhere.
        """
        measured = list(self.closed)
        alone = [_alone(self.model, k, self.tokens) for k in measured]
        columns = []
        for column in (0, 1):
            miss = [
                self.closed[k][column] / max(m[column], 1e-12)
                for k, m in zip(measured, alone, strict=True)
            ]
            # What no point knows stays unknown; what some know counts for all.
            usual = 1.0 if any(np.isfinite(miss)) else math.nan
            miss = [x if np.isfinite(x) and x > 0 else usual for x in miss]
            if smooth:
                padded = [miss[0], *miss, miss[-1]]
                miss = [sorted(padded[i : i + 3])[1] for i in range(len(miss))]
            columns.append(np.interp(np.log(grid), np.log(measured), miss))
        return list(zip(*(column.tolist() for column in columns), strict=True))


def below(first: float) -> list[float]:
    """Concurrencies from one call on, below the first point."""
    return [1.0, *_whole_between(1.0, first)] if first > 1.0 else []


def beyond(last: float, end: float) -> list[float]:
    """Concurrencies past the last point, up to where batch or KV cache end."""
    return [*_whole_between(last, end), end] if end > last else []


def grid_of(measured: Sequence[float], end: float) -> list[float]:
    """Concurrencies of a curve from the model: around the points and between them, up to an end."""
    between = [k for low, high in pairwise(measured) for k in _whole_between(low, high)]
    grid = {*below(measured[0]), *measured, *between, *beyond(measured[-1], end)}
    return sorted({*(k for k in grid if k < end), end})


def _whole_between(low: float, high: float) -> list[float]:
    """Whole numbers strictly between, each at most ``STEP`` times the one before or one more."""
    number = math.ceil(math.log(high / low) / math.log(STEP))
    steps = {float(round(low * (high / low) ** (i / number))) for i in range(1, number)}
    return sorted(k for k in steps if low < k < high)


def by_model(
    fitted: FittedShape,
    target: EngineModel,
    tokens: TokenLengths,
    grid: Sequence[float],
    carried: float = 1.0,
) -> ClosedPoints:
    """Throughput and TTFT by the target's model, times ``carried`` of what it misses there.

    Only what is carried whole is carried point by point.
    """
    found = {}
    misses = fitted.misses(grid, smooth=carried < 1.0)
    for k, (rate_miss, ttft_miss) in zip(grid, misses, strict=True):
        rate, ttft_s = _alone(target, k, tokens)
        rate *= rate_miss**carried
        found[k] = (rate, min(ttft_s * ttft_miss**carried, k / rate))
    return found


def plateau(fitted: FittedShape) -> float:
    """Part of the model's growth that the points show from the last but one to the last; 0 to 1.

    Both in logarithms, and up to noise: a sweep that has stopped growing where the model goes on
    has met a limit that the model does not know.
    """
    last = max(fitted.closed)
    before = [k for k in fitted.closed if k <= last / _APART]
    if not before:
        return 1.0
    ends = max(before), last
    (x0, _), (x1, _) = (fitted.closed[k] for k in ends)
    (m0, _), (m1, _) = (_alone(fitted.model, k, fitted.tokens) for k in ends)
    shown, expected = math.log(x1 / x0) + _NOISE, math.log(m1 / m0) + _NOISE
    return min(max(shown / expected, 0.0), 1.0) if expected > 0 else 1.0


def past(fitted: FittedShape, grid: Sequence[float]) -> ClosedPoints:
    """The model past the last point, its factor held, growing as far as the points still did."""
    if not grid:
        return {}
    last = max(fitted.closed)
    rate_last, part = fitted.closed[last][0], plateau(fitted)
    found = {}
    for k, (rate, ttft_s) in by_model(fitted, fitted.model, fitted.tokens, grid).items():
        grown = rate_last * (rate / rate_last) ** part
        found[k] = (grown, min(ttft_s, k / grown))
    return found


def filled(fitted: FittedShape) -> ClosedPoints:
    """The points, and others between them by their own model.

    A throughput between two points is never above the larger nor below the smaller of them:
    capacity is what was measured. TTFT stays unknown beside an unknown one.
    """
    found = dict(fitted.closed)
    for low, high in pairwise(fitted.closed):
        ends = fitted.closed[low], fitted.closed[high]
        slow, fast = sorted(rate for rate, _ in ends)
        unknown = any(math.isnan(ttft_s) for _, ttft_s in ends)
        made = by_model(fitted, fitted.model, fitted.tokens, _whole_between(low, high))
        for k, (rate, ttft_s) in made.items():
            found[k] = (min(max(rate, slow), fast), math.nan if unknown else ttft_s)
    return dict(sorted(found.items()))


def most_bent(points: Mapping[float, object], closed: ClosedPoints) -> float:
    """Largest part by which a filled curve leaves the straight lines between its points."""
    grid = list(closed)
    ends = [k for k in grid if k in points]
    line = np.interp(grid, ends, [closed[k][0] for k in ends])
    made = np.array([closed[k][0] for k in grid])
    return float(np.abs(made / line - 1.0).max())


def _alone(model: EngineModel, in_flight: float, tokens: TokenLengths) -> tuple[float, float]:
    """Throughput and TTFT of the engine model, were its KV cache no limit."""
    state = _unlimited(model).closed_loop(in_flight, tokens.inputs, tokens.outputs, tokens.cached)
    return state.throughput_rps, state.ttft_s


@lru_cache(maxsize=256)
def _unlimited(model: EngineModel) -> EngineModel:
    return replace(model, kv_tokens=None)
