"""Curves from profiles: measured points as they are, elsewhere by the fitted engine model.

A point is evidence at its own TP, share and token shape. Between, below and past the points of one
shape the curve follows the engine model fitted to the whole configuration, through the points. At
other tokens, shares and TP degrees it is the model's, held to the nearest measured shape: part of
what the model misses there is carried over. Where no model passed its hold-out the points are
joined by lines. What rests on what is said in ``flags`` and ``basis``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from scepsy_hpc.bundles.batch_limits import batch_limit
from scepsy_hpc.bundles.engine_model import (
    MIN_POINTS,
    BadFitError,
    Configuration,
    configuration_of,
    kv_tokens_at,
    read_s_of,
)
from scepsy_hpc.bundles.shapes import SAME_SHAPE, Shape, shapes_of
from scepsy_hpc.bundles.step_time import EngineModel, Spread
from scepsy_hpc.formats.bundle import Bundle, BundleHeader
from scepsy_hpc.formats.parallelism import Link, Parallelism, can_be_shared, usable_memory_gib
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.planning.curves.basis import DERIVED, MODELLED, Basis, Kind
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence
from scepsy_hpc.planning.curves.filling import (
    FittedShape,
    below,
    beyond,
    by_model,
    filled,
    grid_of,
    most_bent,
    past,
)
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.curves.sweep import ClosedPoints, ceiling_of, sweep_of

_STILL_RISING = 1.02
_FALLEN = 0.98
"""Below this part of its best throughput at its last point, a curve falls after its peak."""

_BENT = 0.02
"""Off a straight line by more than this, the fitted model between two points is worth a flag."""

_EXTRAPOLATED = 1.1
"""Capacity above the measured throughput by more than this factor is worth a flag."""

_CARRIED = 0.5
"""Part (as a power) of the model's miss at the nearest shape that is carried to another one.

Half of it did better than none or all on the measured and modelled bundles shipped here.
"""

_WIDEST = math.log(4.0)
"""A figure off by more than this factor either way, by its own interval, is none: refused."""

_LINES = Spread(0.3, 0.5, 0.7, math.inf, math.inf)
"""Half-widths where straight lines are all there is."""


class NoCurveError(Exception):
    """This kind cannot host the model, or nothing is known about it; the message says why."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a curve comes from: the points of the nearest shape, and what must be made of them.

    ``kind`` is where they were measured: at another share it is derived, at another TP degree
    transferred.
    """

    kind: Parallelism
    shape: Shape

    @property
    def tokens(self) -> TokenLengths:
        return TokenLengths(*self.shape.lengths)


@dataclass(frozen=True, slots=True)
class _Making:
    """A curve in the making: what is asked for, and what it is made of.

    ``fit`` None: there is none; ``passed``: its hold-out. ``end``: calls in flight up to which
    batch and KV cache go, ``room`` those that the cache holds; None is unknown. ``flags`` grow.
    """

    evidence: Evidence
    kind: Parallelism
    tokens: TokenLengths
    source: _Source
    fit: Configuration | None
    passed: bool
    room: float | None
    batch: int | None
    flags: list[str]

    @property
    def moved(self) -> bool:
        """Whether no point is of this TP degree and share."""
        return self.source.kind != self.kind

    @property
    def own(self) -> bool:
        """Whether the points are of this very kind and shape."""
        return not self.moved and self.tokens.miss(self.source.shape.lengths) <= SAME_SHAPE

    @property
    def model(self) -> EngineModel:
        """The fitted model where the points are."""
        assert self.fit is not None
        return self.fit.model(self.source.kind.tp_degree)

    @property
    def spread(self) -> Spread:
        found = self.fit.quality(self.source.kind.tp_degree).spread if self.fit else None
        return found if found is not None and self.passed else _widened(found)

    def end(self, last: float) -> float:
        """Calls in flight up to which the curve goes; the last point's where nothing says."""
        if self.batch is None:
            return last
        return min(float(self.batch), self.room or math.inf)


def _widened(found: Spread | None) -> Spread:
    if found is None:
        return _LINES
    return Spread(
        max(found.between, _LINES.between),
        max(found.below, _LINES.below),
        max(found.beyond, _LINES.beyond),
        found.shape,
        found.tp_degree,
    )


def make_curve(
    evidence: Evidence,
    kind: Parallelism,
    tokens: TokenLengths,
    min_memory_gib: float | None = None,
    engine_args: EngineArgs | None = None,
) -> Curve:
    """The curve of one kind. Raises NoCurveError that says why there is none.

    ``engine_args`` are those that the engine is to run with, over the profile's; here they bound
    the batch.
    """
    at, points = _points_of(evidence.merged, kind)
    room = _calls_that_fit(evidence, kind, tokens, min_memory_gib)
    shape = min(shapes_of(points), key=lambda s: (tokens.miss(s.lengths), s.lengths))
    flags = _source_flags(evidence.merged, kind, shape.points)
    fit, why = _fit_of(evidence, at)
    batch, stated = _batch_of(evidence.merged.header, kind.tp_degree, engine_args or {}, fit)
    source = _Source(at, shape)
    making = _Making(evidence, kind, tokens, source, fit, not why, room, batch, flags)
    if making.own:
        return _measured(making, why, stated)
    return _transferred(making, why)


def _batch_of(
    header: BundleHeader, tp_degree: int, engine_args: EngineArgs, fit: Configuration | None
) -> tuple[int | None, float]:
    """Calls that the batch holds, and a bound that even measured points are cut at.

    The latter is that of a ``max_num_seqs`` which the profile did not run with.
    """
    batch = batch_limit(header, tp_degree, {**header.engine_args, **engine_args})
    stated = engine_args.get("max_num_seqs")
    if stated is not None and stated != header.engine_args.get("max_num_seqs"):
        return batch, float(batch) if batch is not None else math.inf
    seen = fit.limits_at(tp_degree).max_num_seqs if fit is not None else None
    known = [n for n in (batch, seen) if n is not None]
    return min(known, default=None), math.inf


def with_engine_args(curve: Curve, evidence: Evidence, engine_args: EngineArgs) -> Curve:
    """The curve, flagged where the engine is to run with other arguments than it was profiled."""
    profiled = evidence.merged.header.engine_args
    other = sorted(key for key, value in engine_args.items() if profiled.get(key) != value)
    if not other:
        return curve
    flag = f"transferred: engine_args {', '.join(other)} are not those of the profile"
    return replace(curve, flags=(*curve.flags, flag))


@lru_cache(maxsize=256)
def _configuration(evidence: Evidence, gpu_share_pct: int, link: Link | None) -> Configuration:
    return configuration_of(evidence.merged, gpu_share_pct, link)


def _fit_of(evidence: Evidence, at: Parallelism) -> tuple[Configuration | None, str]:
    """The fit to all points of that share and link, and why no curve may rest on it, if so."""
    known = {p.link for p in evidence.merged.points if p.tp_degree > 1}
    link = at.link if at.link in known else None
    try:
        fit = _configuration(evidence, at.gpu_share_pct, link)
    except BadFitError as error:
        return None, str(error)
    if len(fit.points) < MIN_POINTS:
        return fit, f"{len(fit.points)} points are too few for one"
    failing = fit.quality(at.tp_degree).failing
    if failing is None:
        return fit, ""
    what, miss, allowed = failing
    return fit, f"it misses {what} by {100 * miss:.0f}% (median), {100 * allowed:.0f}% is allowed"


def _over(link: Link | None) -> str:
    return f" over {link}" if link else ""


def _points_of(bundle: Bundle, kind: Parallelism) -> tuple[Parallelism, list[Point]]:
    """Points of the kind, else of the nearest one it can be made from, and which that is.

    A share comes from the whole GPU, a TP degree from the nearest measured one at that share.
    """
    linked = [
        p
        for p in bundle.points
        if p.tp_degree == 1 or kind.link is None or p.link in (None, kind.link)
    ]
    degrees = {p.tp_degree for p in linked if kind.tp_degree > 1 or kind.link is None}
    if not degrees:
        raise NoCurveError(f"no points at TP {kind.tp_degree}" + _over(kind.link))
    if kind.tp_degree in degrees:
        mine = [p for p in linked if p.tp_degree == kind.tp_degree]
        own = [p for p in mine if p.gpu_share_pct == kind.gpu_share_pct]
        if own:
            return kind, own
        whole = [p for p in mine if p.gpu_share_pct == 100]
        _check_derivable(kind, whole)
        return kind._replace(gpu_share_pct=100), whole
    if kind.gpu_share_pct != 100:
        raise NoCurveError(f"no points at TP {kind.tp_degree}, of which a share could be derived")
    whole = [p for p in linked if p.gpu_share_pct == 100]
    if not whole:
        raise NoCurveError(f"no points of whole GPUs to transfer to TP {kind.tp_degree}")
    nearest = min(
        {p.tp_degree for p in whole}, key=lambda t: (abs(math.log(t / kind.tp_degree)), t)
    )
    at = kind._replace(tp_degree=nearest)
    return at, [p for p in whole if p.tp_degree == nearest]


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
    cache_tokens = kv_tokens_at(evidence.merged, kind.tp_degree, kind.gpu_share_pct) or 0.0
    calls = cache_tokens / sizes.cached_tokens(max(tokens.inputs + tokens.outputs, 1.0))
    if calls < 1.0:
        needs = "weights" if cache_tokens <= 0 else "weights and the KV cache of one call"
        raise NoCurveError(f"{needs} do not fit {total_gib:.1f} GiB ({sizes.weights_gib:g} GiB)")
    return calls


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


def _measured(making: _Making, why: str, stated_end: float) -> Curve:
    """Points of this very shape and kind, as they are, and the fitted model around them."""
    closed = sweep_of(making.source.shape.points)
    if not closed:
        raise NoCurveError("only saturated open points: they give capacity, never latency")
    if making.evidence.bundles[0].header.how == "measured" and making.room is not None:
        # What was measured has fitted.
        making = replace(making, room=max(making.room, max(closed)))
    held = tuple(closed)
    if making.passed:
        closed = _filled(making, closed)
    else:
        making.flags.append(
            f"straight_lines: no engine model ({why}): linear between points, flat outside"
        )
    closed = _ended(making, closed, held, stated_end)
    return _curve(making, closed, held, _kind_of(making), _widths(making, making.spread.between))


def _filled(making: _Making, closed: ClosedPoints) -> ClosedPoints:
    """Points below the first, between points, and past the last, by the fitted model."""
    fitted = FittedShape(closed, making.model, making.source.tokens)
    first, last = min(closed), max(closed)
    found = filled(fitted)
    if first > 1.0:
        making.flags.append(
            f"below_first_concurrency: below {first:g} calls in flight by the fitted engine model"
        )
    bend = most_bent(closed, found)
    if bend > _BENT:
        making.flags.append(
            f"between points: fitted engine model, up to {100 * bend:.0f}% off straight lines"
        )
    best = max(rate for rate, _ in closed.values())
    if closed[last][0] < _FALLEN * best:
        making.flags.append(
            f"falls_after_peak: throughput at {last:g} calls in flight is below its best; not "
            "driven past"
        )
        more: ClosedPoints = {}
    else:
        more = past(fitted, beyond(last, making.end(last)))
    made = {**by_model(fitted, fitted.model, fitted.tokens, below(first)), **found, **more}
    return _never_slower(dict(sorted(made.items())), last)


def _never_slower(closed: ClosedPoints, last: float) -> ClosedPoints:
    """Past the last point more calls in flight never do less: the others would wait."""
    found: ClosedPoints = {}
    best = closed[last][0]
    for k, (rate, ttft_s) in closed.items():
        if k > last:
            best = max(best, rate)
            rate = best
        found[k] = (rate, ttft_s)
    return found


def _ended(
    making: _Making, closed: ClosedPoints, held: Sequence[float], stated_end: float = math.inf
) -> ClosedPoints:
    """The curve cut at what memory and batch hold, at a measured capacity, and flagged for it."""
    room = making.room if making.room is not None else math.inf
    end, last = min(room, stated_end), max(closed)
    if end < last:
        what = "kv_limited: the KV cache" if room <= stated_end else "batch_limited: the batch"
        making.flags.append(f"{what} holds {end:.0f} calls of this length")
        closed = _cut(closed, end)
    ceiling = ceiling_of(making.source.shape.points) if making.own else None
    if ceiling is not None:
        closed = _at_ceiling(closed, held, ceiling)
        return closed
    best = max((closed[k][0] for k in held if k in closed), default=0.0)
    capacity = list(closed.values())[-1][0]
    if best and capacity > _EXTRAPOLATED * best:
        making.flags.append(
            f"extrapolated: capacity, {capacity / best:.1f} times the most that was measured (at "
            f"{max(held):g} calls in flight), is the fitted engine model's at {max(closed):.0f}"
        )
    elif making.own and max(closed) <= max(held):
        _flag_unknown_end(making, closed, held)
    return closed


def _flag_unknown_end(making: _Making, closed: ClosedPoints, held: Sequence[float]) -> None:
    rates = [closed[k][0] for k in held if k in closed]
    rising = len(rates) == 1 or (rates and rates[-1] > _STILL_RISING * max(rates[:-1]))
    if rising and not any(p.saturated for p in making.source.shape.points):
        making.flags.append(
            f"capacity_lower_bound: throughput still rises at {max(closed):g} calls in flight"
        )
    if making.batch is None and making.passed:
        header = making.evidence.merged.header
        making.flags.append(
            f"batch_limit_unknown: neither max_num_seqs nor a recorded default of {header.engine} "
            f"{header.engine_version}; capacity counted up to the last point"
        )


def _cut(closed: ClosedPoints, end: float) -> ClosedPoints:
    server = Server(tuple(closed), tuple(x for x, _ in closed.values()))
    ttft_s = float(np.interp(end, list(closed), [t for _, t in closed.values()]))
    kept = {k: v for k, v in closed.items() if k < end}
    return {**kept, end: (float(server.rate_rps(end)), ttft_s)}


def _at_ceiling(closed: ClosedPoints, held: Sequence[float], ceiling: float) -> ClosedPoints:
    """The curve held to the capacity of a saturated open point, past the other points."""
    last = max(k for k in held if k in closed) if any(k in closed for k in held) else max(closed)
    ceiling = max(ceiling, closed[last][0])
    found = {
        k: (min(rate, ceiling) if k > last else rate, ttft_s)
        for k, (rate, ttft_s) in closed.items()
    }
    end, (rate, _) = list(found.items())[-1]
    if rate < ceiling:
        # Where it is reached nobody measured; in proportion, and not within the points.
        found[end * max(ceiling / rate, 1.0 + 1e-6) ** 2] = (ceiling, math.nan)
    return found


def _transferred(making: _Making, why: str) -> Curve:
    """The engine model at these tokens, TP and share, held to the points of the nearest shape."""
    source, kind = making.source, making.kind
    closed = sweep_of(source.shape.points)
    if making.fit is None or not closed:
        raise NoCurveError(why or "only saturated open points, of other token lengths or shares")
    half = _transferred_width(making)
    if not half <= _WIDEST:
        raise NoCurveError(
            f"the fitted engine model says it within a factor of {math.exp(half):.1f} only"
            + (f"; {why}" if why else "")
        )
    _flag_transfer(making, why)
    fitted = FittedShape(closed, making.model, source.tokens)
    target = making.fit.model(kind.tp_degree)
    if kind.gpu_share_pct != source.kind.gpu_share_pct:
        target = target.at_share(
            kind.gpu_share_pct, read_s_of(making.evidence.merged, kind.tp_degree)
        )
    same = making.tokens.miss(source.shape.lengths) <= SAME_SHAPE
    carried = 1.0 if same and kind.tp_degree == source.kind.tp_degree else _CARRIED
    held = tuple(closed)
    end = making.end(max(held))
    made = by_model(fitted, target, making.tokens, grid_of(held, max(end, 1.0)), carried)
    if kind.gpu_share_pct < source.kind.gpu_share_pct:
        made = _within_the_whole(making, made)
    made = _ended(making, made, [k for k in held if k in made])
    return _curve(making, made, held, _kind_of(making), _widths(making, half))


def _flag_transfer(making: _Making, why: str) -> None:
    lengths, tokens, at = making.source.tokens, making.tokens, making.source.kind
    if tokens.miss(making.source.shape.lengths) > SAME_SHAPE:
        making.flags.append(
            f"transferred: from calls of {lengths.inputs:.0f} input and {lengths.outputs:.0f} "
            f"output tokens to {tokens.inputs:.0f} and {tokens.outputs:.0f} by the fitted engine "
            "model"
        )
    if at.tp_degree != making.kind.tp_degree:
        making.flags.append(
            f"transferred: TP {making.kind.tp_degree} from TP {at.tp_degree} by the fitted engine "
            "model"
        )
    if at.gpu_share_pct != making.kind.gpu_share_pct:
        making.flags.append(
            f"derived: share {making.kind.gpu_share_pct}% from the whole GPU by slow-downs that "
            "others measured on an A100, within its share of the memory bandwidth"
        )
    quality = making.fit.quality(at.tp_degree) if making.fit else None
    if quality is not None and quality.num_shapes == 1:
        making.flags.append(
            "one_shape: prompt and output are told apart by TTFT and the GPU's proportions only"
        )
    if why:
        making.flags.append(f"weak_fit: the engine model has not passed its hold-out: {why}")


def _within_the_whole(making: _Making, made: ClosedPoints) -> ClosedPoints:
    """A slice of s% with k calls does at most s% of the whole GPU with as many on each slice."""
    part = making.kind.gpu_share_pct / 100.0
    header = making.evidence.merged.header
    args: EngineArgs = {} if making.batch is None else {"max_num_seqs": making.batch}
    whole = make_curve(
        making.evidence,
        making.kind._replace(gpu_share_pct=100),
        making.tokens,
        engine_args={**header.engine_args, **args},
    )
    best = np.maximum.accumulate(whole.server.throughput_rps)
    server = Server(whole.server.concurrency, tuple(best.tolist()))
    return {
        k: (min(rate, part * float(server.rate_rps(k / part))), ttft_s)
        for k, (rate, ttft_s) in made.items()
    }


def _transferred_width(making: _Making) -> float:
    spread, widths = making.spread, [0.0]
    if making.tokens.miss(making.source.shape.lengths) > SAME_SHAPE:
        widths.append(spread.shape)
    if making.source.kind.tp_degree != making.kind.tp_degree:
        widths.append(spread.tp_degree)
    if making.source.kind.gpu_share_pct != making.kind.gpu_share_pct:
        widths += [DERIVED, spread.between]
    return math.hypot(*widths)


def _widths(making: _Making, within: float) -> tuple[float, float, float]:
    """Half-widths at the points, below and past them, with what a modelled bundle adds."""
    spread = making.spread
    extra = 0.0 if making.evidence.bundles[0].header.how == "measured" else MODELLED
    outside = 0.0 if making.own else within
    return (
        math.hypot(within, extra),
        math.hypot(outside, spread.below, extra),
        math.hypot(outside, spread.beyond, extra),
    )


def _kind_of(making: _Making) -> Kind:
    header = making.evidence.bundles[0].header
    if making.source.kind.gpu_share_pct != making.kind.gpu_share_pct or header.how == "derived":
        return "derived"
    if header.how == "modelled" or header.engine == "simulated":
        return "modelled"
    return "measured" if making.own else "transferred"


def _curve(
    making: _Making,
    closed: ClosedPoints,
    held: Sequence[float],
    kind: Kind,
    widths: tuple[float, float, float],
) -> Curve:
    """The curve through ``closed``, of which ``held`` rest on points."""
    gpu_memory_gib = making.evidence.merged.header.gpu_memory_gib
    kept = tuple(k for k in closed if k in held)
    engine = None
    if making.passed and making.fit is not None:
        engine = making.fit.model(making.kind.tp_degree)
        if making.kind.gpu_share_pct != making.source.kind.gpu_share_pct:
            at = read_s_of(making.evidence.merged, making.kind.tp_degree)
            engine = engine.at_share(making.kind.gpu_share_pct, at)
        bundle, where = making.evidence.merged, making.kind
        engine = replace(
            engine,
            kv_tokens=kv_tokens_at(bundle, where.tp_degree, where.gpu_share_pct),
            max_num_seqs=making.batch,
        )
    last = max(kept, default=max(closed))
    return Curve(
        making.kind,
        making.tokens,
        Server(tuple(closed), tuple(x for x, _ in closed.values())),
        tuple(t for _, t in closed.values()),
        tuple(making.flags),
        making.evidence.bundle_of(making.source.shape.points[0]).sha256,
        usable_memory_gib(gpu_memory_gib, making.kind.gpu_share_pct),
        held_at=kept or (max(closed),),
        engine=engine,
        basis=Basis(kind, min(kept, default=last), last, *widths),
    )
