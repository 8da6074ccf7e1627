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
from dataclasses import replace

import numpy as np

from scepsy_hpc.bundles.engine_model import is_evidence, kv_tokens_at, read_s_of
from scepsy_hpc.bundles.model_sizes import architecture_of
from scepsy_hpc.bundles.shapes import SAME_SHAPE, shapes_of
from scepsy_hpc.formats.parallelism import Parallelism, usable_memory_gib
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.planning.curves.basis import DERIVED, MODELLED, Basis, Kind
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.ends import ended, never_slower
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
from scepsy_hpc.planning.curves.sources import (
    Making,
    NoCurveError,
    Source,
    batch_of,
    calls_that_fit,
    fit_of,
    points_of,
    source_flags,
)
from scepsy_hpc.planning.curves.sweep import ClosedPoints, sweep_of

_FALLEN = 0.98
"""Below this part of its best throughput at its last point, a curve falls after its peak."""

_BENT = 0.02
"""Off a straight line by more than this, the fitted model between two points is worth a flag."""


_CARRIED = 0.5
"""Part (as a power) of the model's miss at the nearest shape that is carried to another one.

Half of it did better than none or all on the measured and modelled bundles shipped here.
"""

_WIDEST = math.log(4.0)
"""A figure off by more than this factor either way, by its own interval, is none: refused."""


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
    at, points = points_of(evidence.merged, kind)
    room = calls_that_fit(evidence, kind, tokens, min_memory_gib)
    shapes = shapes_of(points)
    # Points that say nothing of latency are not what a curve is made from, if others are there.
    telling = [s for s in shapes if any(map(is_evidence, s.points))]
    shape = min(telling or shapes, key=lambda s: (tokens.miss(s.lengths), s.lengths))
    flags = source_flags(evidence.merged, kind, shape.points)
    fit, why = fit_of(evidence, at)
    batch, stated = batch_of(evidence.merged.header, kind.tp_degree, engine_args or {}, fit)
    source = Source(at, shape)
    making = Making(evidence, kind, tokens, source, fit, not why, room, batch, flags)
    if making.own:
        return _measured(making, why, stated)
    return _transferred(making, why)


def with_engine_args(curve: Curve, evidence: Evidence, engine_args: EngineArgs) -> Curve:
    """The curve, flagged where the engine is to run with other arguments than it was profiled."""
    profiled = evidence.merged.header.engine_args
    other = sorted(key for key, value in engine_args.items() if profiled.get(key) != value)
    if not other:
        return curve
    flag = f"transferred: engine_args {', '.join(other)} are not those of the profile"
    kind: Kind = "transferred" if curve.basis.kind == "measured" else curve.basis.kind
    return replace(curve, flags=(*curve.flags, flag), basis=replace(curve.basis, kind=kind))


def _measured(making: Making, why: str, stated_end: float) -> Curve:
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
    closed = ended(making, closed, held, stated_end)
    return _curve(
        making, closed, held, _kind_of(making), _widths(making, making.half_widths.between)
    )


def _filled(making: Making, closed: ClosedPoints) -> ClosedPoints:
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
    if last <= making.end(last) and closed[last][0] < _FALLEN * best:
        making.flags.append(
            f"falls_after_peak: throughput at {last:g} calls in flight is below its best; not "
            "driven past"
        )
        more: ClosedPoints = {}
    else:
        more = past(fitted, beyond(last, making.end(last)))
    made = {**by_model(fitted, fitted.model, fitted.tokens, below(first)), **found, **more}
    return never_slower(dict(sorted(made.items())), last)


def _transferred(making: Making, why: str) -> Curve:
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
    made = ended(making, made, [k for k in held if k in made])
    return _curve(making, made, held, _kind_of(making), _widths(making, half))


def _flag_transfer(making: Making, why: str) -> None:
    lengths, tokens, at = making.source.tokens, making.tokens, making.source.kind
    if tokens.miss(making.source.shape.lengths) > SAME_SHAPE:
        making.flags.append(
            f"transferred: from calls of {lengths.inputs:.0f} input and {lengths.outputs:.0f} "
            f"output tokens to {tokens.inputs:.0f} and {tokens.outputs:.0f} by the fitted engine "
            "model"
        )
    if at.tp_degree != making.kind.tp_degree:
        wanted = making.kind.tp_degree
        # Heads of most models are powers of 2 times a small number.
        heads = architecture_of(making.evidence.merged.header.model).num_kv_heads
        doubt = wanted & (wanted - 1) and heads is None
        said = f"; engines start only where the attention heads divide by {wanted}" if doubt else ""
        making.flags.append(
            f"transferred: TP {wanted} from TP {at.tp_degree} by the fitted engine model{said}"
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


def _within_the_whole(making: Making, made: ClosedPoints) -> ClosedPoints:
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


def _transferred_width(making: Making) -> float:
    spread, widths = making.half_widths, [0.0]
    if making.tokens.miss(making.source.shape.lengths) > SAME_SHAPE:
        widths.append(spread.shape)
    if making.source.kind.tp_degree != making.kind.tp_degree:
        widths.append(spread.tp_degree)
    if making.source.kind.gpu_share_pct != making.kind.gpu_share_pct:
        widths += [DERIVED, spread.between]
    return math.hypot(*widths)


def _widths(making: Making, within: float) -> tuple[float, float, float]:
    """Half-widths at the points, below and past them, with what a modelled bundle adds."""
    spread = making.half_widths
    extra = 0.0 if making.evidence.bundles[0].header.how == "measured" else MODELLED
    outside = 0.0 if making.own else within
    return (
        math.hypot(within, extra),
        math.hypot(outside, spread.below, extra),
        math.hypot(outside, spread.beyond, extra),
    )


def _kind_of(making: Making) -> Kind:
    header = making.evidence.bundles[0].header
    if making.source.kind.gpu_share_pct != making.kind.gpu_share_pct or header.how == "derived":
        return "derived"
    if header.how == "modelled" or header.engine == "simulated":
        return "modelled"
    return "measured" if making.own else "transferred"


def _curve(
    making: Making,
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
