"""Curves from profiles: measured points as they are, elsewhere by the fitted engine model.

A point is evidence at its own TP, share and token lengths. Between and below the points of one
shape the curve follows the fitted engine model through them. At other tokens and shares it is the
model's, held to the nearest measured shape: part of what the model misses there is carried over.
What rests on what is said in ``flags``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from scepsy_hpc.bundles.engine_model import BadFitError, fit_bundle
from scepsy_hpc.bundles.step_time import EngineModel, kv_tokens_that_fit
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Link, Parallelism, can_be_shared, usable_memory_gib
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence
from scepsy_hpc.planning.curves.filling import (
    ClosedPoints,
    FittedShape,
    below,
    by_model,
    filled,
    grid_of,
    most_bent,
)
from scepsy_hpc.planning.curves.queueing import Server

SAME_SHAPE = 0.05
"""Token lengths within this part of each other are one shape."""

_STILL_RISING = 1.02
_BENT = 0.02
"""Off a straight line by more than this, the fitted model between two points is worth a flag."""

_CARRIED = 0.5
"""Part (as a power) of the model's miss at the nearest shape that is carried to another one.

Half of it did better than none or all on the measured and modelled bundles shipped here.
"""


class NoCurveError(Exception):
    """This kind cannot host the model, or nothing is known about it; the message says why."""


@dataclass(frozen=True, slots=True)
class _Making:
    """A curve in the making: what is asked for, and the points of the nearest shape.

    ``most_calls`` have room for their KV cache; None is unknown. ``flags`` grow on the way.
    """

    evidence: Evidence
    kind: Parallelism
    tokens: TokenLengths
    points: Sequence[Point]
    most_calls: float | None
    flags: list[str]

    def fitted(self, closed: ClosedPoints) -> FittedShape:
        """The points with the engine model of their share. Raises BadFitError."""
        share, link = self.points[0].gpu_share_pct, self.kind.link
        model = _fitted(self.evidence, self.kind.tp_degree, share, link)
        return FittedShape(closed, model, _lengths(self.points[0]))


def make_curve(
    evidence: Evidence, kind: Parallelism, tokens: TokenLengths, min_memory_gib: float | None = None
) -> Curve:
    """The curve of one kind. Raises NoCurveError that says why there is none."""
    points, derived = _points_of(evidence.merged, kind)
    most_calls = _calls_that_fit(evidence, kind, tokens, min_memory_gib)
    miss = min(tokens.miss(p) for p in points)
    shape = _lengths(next(p for p in points if tokens.miss(p) <= miss + 1e-12))
    near = [p for p in points if _lengths(p) == shape]
    flags = _source_flags(evidence.merged, kind, near)
    making = _Making(evidence, kind, tokens, near, most_calls, flags)
    if miss <= SAME_SHAPE and not derived:
        return _measured(making)
    if miss > SAME_SHAPE:
        flags.append(
            f"transferred: from calls of {shape.inputs:.0f} input and {shape.outputs:.0f} output "
            f"tokens to {tokens.inputs:.0f} and {tokens.outputs:.0f} by the fitted engine model"
        )
    if derived:
        flags.append(
            f"derived: share {kind.gpu_share_pct}% from the whole GPU by slow-downs that others "
            "measured on an A100"
        )
    return _scaled(making)


def with_engine_args(curve: Curve, evidence: Evidence, engine_args: EngineArgs) -> Curve:
    """The curve, flagged where the engine is to run with other arguments than it was profiled."""
    profiled = evidence.merged.header.engine_args
    other = sorted(key for key, value in engine_args.items() if profiled.get(key) != value)
    if not other:
        return curve
    flag = f"transferred: engine_args {', '.join(other)} are not those of the profile"
    return replace(curve, flags=(*curve.flags, flag))


def _over(link: Link | None) -> str:
    return f" over {link}" if link else ""


def _points_of(bundle: Bundle, kind: Parallelism) -> tuple[list[Point], bool]:
    """Points of the kind, else of the whole GPU to derive it from; and whether it is derived."""
    at_link = [
        p
        for p in bundle.points
        if p.tp_degree == kind.tp_degree and (kind.link is None or p.link in (None, kind.link))
    ]
    if not at_link:
        raise NoCurveError(f"no points at TP {kind.tp_degree}" + _over(kind.link))
    own = [p for p in at_link if p.gpu_share_pct == kind.gpu_share_pct]
    if own:
        return own, False
    whole = [p for p in at_link if p.gpu_share_pct == 100]
    _check_derivable(kind, whole)
    return whole, True


def _check_derivable(kind: Parallelism, whole: Sequence[Point]) -> None:
    """A share without points is derived only where the slow-down table can speak for it."""
    what = f"share {kind.gpu_share_pct}% has no points"
    if not whole:
        raise NoCurveError(f"{what}, and there is no whole-GPU curve to derive it from")
    if kind.tp_degree > 1:
        raise NoCurveError(f"{what} at TP {kind.tp_degree}: groups share GPUs only where measured")
    if not can_be_shared(kind.gpu_type):
        raise NoCurveError(f"{what}, and {kind.gpu_type} is not shared by MPS")


def _calls_that_fit(
    evidence: Evidence, kind: Parallelism, tokens: TokenLengths, min_memory_gib: float | None
) -> float | None:
    """Calls whose KV cache fits beside the weights; None where the sizes are unknown."""
    memory_gib = evidence.merged.header.gpu_memory_gib
    total_gib = usable_memory_gib(memory_gib, kind.gpu_share_pct, kind.tp_degree)
    if min_memory_gib is not None and total_gib < min_memory_gib:
        raise NoCurveError(f"{total_gib:.1f} GiB is below min_memory_gib {min_memory_gib:g}")
    sizes = evidence.sizes
    if sizes is None:
        return None
    cache_tokens = kv_tokens_that_fit(
        memory_gib, kind.tp_degree, kind.gpu_share_pct, sizes.weights_gib, sizes.kv_bytes_per_token
    )
    calls = cache_tokens / max(tokens.inputs + tokens.outputs, 1.0)
    if calls < 1.0:
        needs = "weights" if cache_tokens <= 0 else "weights and the KV cache of one call"
        raise NoCurveError(f"{needs} do not fit {total_gib:.1f} GiB ({sizes.weights_gib:g} GiB)")
    return calls


def _lengths(point: Point) -> TokenLengths:
    return TokenLengths(
        point.input_tokens_mean, point.output_tokens_mean, point.cached_tokens_mean or 0.0
    )


def _source_flags(bundle: Bundle, kind: Parallelism, points: Sequence[Point]) -> list[str]:
    header = bundle.header
    flags = []
    if header.engine == "simulated":
        flags.append("simulated: no engine was measured")
    elif header.how != "measured":
        flags.append(f"{header.how}: {header.source}")
    if kind.link not in (None, "nvlink") and all(p.link is None for p in points):
        flags.append(f"transferred: the profile does not say its link; taken for {kind.link}")
    return flags


def _closed_points(points: Sequence[Point]) -> ClosedPoints:
    """Concurrency to (throughput, TTFT), ascending; several at one concurrency are averaged."""
    found: dict[float, list[tuple[float, float]]] = {}
    for p in points:
        if p.load == "closed" and p.concurrency is not None:
            ttft_s = p.ttft_mean_s if p.ttft_mean_s is not None else float("nan")
            if p.ttft_mean_s is None and p.output_tokens_mean <= 1:
                ttft_s = p.latency_mean_s
            found.setdefault(p.concurrency, []).append((p.throughput_rps, ttft_s))
    means = {k: np.mean(values, axis=0) for k, values in sorted(found.items())}
    return {k: (float(m[0]), float(m[1])) for k, m in means.items()}


def _measured(making: _Making) -> Curve:
    """Points of this very shape and share, as they are, and the fitted model between them."""
    closed = _closed_points(making.points)
    if making.evidence.bundles[0].header.how == "measured":
        making = replace(making, most_calls=None)  # what was measured has fitted
    rates, times_s = _open_points(making.points)
    if closed:
        held = tuple(closed)
        closed = _filled(making, closed)
    else:
        if not rates:
            raise NoCurveError("only saturated open points: they give capacity, never latency")
        ceiling = max(p.throughput_rps for p in making.points)
        closed = _closed_from_open(rates, times_s, ceiling)
        held = tuple(closed)
    return replace(_curve(making, closed, held), open_rps=rates, open_latency_s=times_s)


def _filled(making: _Making, closed: ClosedPoints) -> ClosedPoints:
    """Points below the first and between points, where a fitted model passed its hold-out."""
    first = min(closed)
    if first <= 1.0 and len(closed) == 1:
        return closed
    try:
        fitted = making.fitted(closed)
    except BadFitError:
        return closed
    found = filled(fitted)
    if first > 1.0:
        making.flags.append(
            f"transferred: below {first:g} calls in flight by the fitted engine model"
        )
    bend = most_bent(closed, found)
    if bend > _BENT:
        making.flags.append(
            f"between points: fitted engine model, up to {100 * bend:.0f}% off straight lines"
        )
    return {**by_model(fitted, fitted.model, fitted.tokens, below(first)), **found}


def _open_points(points: Sequence[Point]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Arrival rates and latencies of the open points that are not saturated, ascending."""
    found: dict[float, list[float]] = {}
    for p in points:
        if p.load == "open" and not p.saturated and p.arrival_rate_rps is not None:
            found.setdefault(p.arrival_rate_rps, []).append(p.latency_mean_s)
    rates = tuple(sorted(found))
    return rates, tuple(float(np.mean(found[rate])) for rate in rates)


def _closed_from_open(
    rates: Sequence[float], times_s: Sequence[float], ceiling: float
) -> ClosedPoints:
    """A server for bursts from open points: by Little's law rate x latency calls are in flight."""
    closed: ClosedPoints = {}
    for rate, time_s in zip(rates, times_s, strict=True):
        closed[rate * time_s] = (rate, float("nan"))
    if ceiling > rates[-1]:
        # The latency at 95% of the ceiling, were the replica one server from here on.
        time_s = times_s[-1] * (ceiling - rates[-1]) / (0.05 * ceiling)
        in_flight = max(ceiling * time_s, max(closed) * ceiling / rates[-1])
        closed[in_flight] = (ceiling, float("nan"))
    return dict(sorted(closed.items()))


def _scaled(making: _Making) -> Curve:
    """The engine model at these tokens and share, held to the points of the nearest shape."""
    closed = _closed_points(making.points)
    if not closed:
        raise NoCurveError("only open points, of other token lengths or shares")
    try:
        fitted = making.fitted(closed)
    except BadFitError as error:
        raise NoCurveError(str(error)) from None
    source, share = making.points[0], making.kind.gpu_share_pct
    target = fitted.model if source.gpu_share_pct == share else fitted.model.at_share(share)
    carried = 1.0 if making.tokens.miss(source) <= SAME_SHAPE else _CARRIED
    held = tuple(closed)
    return _curve(making, by_model(fitted, target, making.tokens, grid_of(held), carried), held)


@lru_cache(maxsize=1024)
def _fitted(
    evidence: Evidence, tp_degree: int, gpu_share_pct: int, link: Link | None
) -> EngineModel:
    bundle = evidence.merged
    known = {p.link for p in bundle.points if p.tp_degree == tp_degree}
    return fit_bundle(bundle, tp_degree, gpu_share_pct, link if link in known else None)


def _ended(making: _Making, closed: ClosedPoints, held: Sequence[float]) -> ClosedPoints:
    """The points cut off at what memory and batch hold; flagged where throughput still rises."""
    most = making.most_calls
    if most is not None and most < max(closed):
        server = Server(tuple(closed), tuple(x for x, _ in closed.values()))
        ttft_s = float(np.interp(most, list(closed), [t for _, t in closed.values()]))
        making.flags.append(f"kv_limited: the KV cache holds {most:.0f} calls of this length")
        kept = {k: v for k, v in closed.items() if k < most}
        return {**kept, most: (float(server.rate_rps(most)), ttft_s)}
    rates = [closed[k][0] for k in held]
    rising = len(rates) == 1 or rates[-1] > _STILL_RISING * max(rates[:-1])
    if rising and not any(p.saturated for p in making.points):
        making.flags.append(
            f"capacity_lower_bound: throughput still rises at {max(closed):g} calls in flight"
        )
    return closed


def _curve(making: _Making, closed: ClosedPoints, held: Sequence[float]) -> Curve:
    """The curve through ``closed``, of which ``held`` rest on points."""
    closed = _ended(making, closed, held)
    gpu_memory_gib = making.evidence.merged.header.gpu_memory_gib
    return Curve(
        making.kind,
        making.tokens,
        Server(tuple(closed), tuple(x for x, _ in closed.values())),
        tuple(t for _, t in closed.values()),
        tuple(making.flags),
        making.evidence.bundle_of(making.points[0]).sha256,
        usable_memory_gib(gpu_memory_gib, making.kind.gpu_share_pct),
        held_at=tuple(k for k in closed if k in {*held, max(closed)}),
    )
