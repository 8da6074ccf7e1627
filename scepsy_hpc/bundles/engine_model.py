"""Fit the engine model of a configuration to all that is known of it, and judge the fit.

One fit over all token shapes, TP degrees and loads, closed and open, of one (bundle, share, link);
each TP degree's factors are then fitted to its own points, leaning to that. What a TP degree that
nobody measured does follows from the common structure. The judgement holds out one concurrency,
one token shape, one TP degree at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from scepsy_hpc.bundles.batch_limits import batch_limit
from scepsy_hpc.bundles.engine_fit import (
    BatchLimits,
    Equations,
    Structure,
    equations_of,
    in_flight_of,
    non_negative,
    prefill_tokens,
    seats_seen,
)
from scepsy_hpc.bundles.held_out_fits import Judgement, judge
from scepsy_hpc.bundles.model_sizes import architecture_of
from scepsy_hpc.bundles.roofline import Proportions, proportions, read_times_s
from scepsy_hpc.bundles.shapes import shapes_of
from scepsy_hpc.bundles.step_time import (
    DEFAULT_BATCHED_TOKENS,
    EngineModel,
    Experts,
    FitQuality,
    kv_tokens_that_fit,
)
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.points import Point
from scepsy_hpc.metrics import Floats

MIN_POINTS = 4
TTFT_LEAN = 0.1

LimitsAt = Callable[[int], BatchLimits]
"""What bounds the batch at a TP degree."""


class BadFitError(InputError):
    """The points do not carry an engine model; the message holds the figure."""


@dataclass(frozen=True, slots=True, eq=False)
class Configuration:
    """The engine models of one configuration at any TP degree, fitted together.

    ``own`` holds the factors, ``ttft`` the TTFT factors, of each measured TP degree.
    """

    points: tuple[Point, ...]
    limits_at: LimitsAt
    experts: Experts | None
    structure: Structure
    own: Mapping[int, Floats]
    ttft: Mapping[int, Floats]
    judgement: Judgement

    def quality(self, tp_degree: int) -> FitQuality:
        """How well the fit did, at one TP degree where enough was held out there."""
        return self.judgement.at(tp_degree)

    def model(self, tp_degree: int) -> EngineModel:
        """The engine model at a TP degree; ``derived`` where no point is of that degree."""
        measured = tp_degree in self.own
        factors = self.own[tp_degree] if measured else self.structure.at(tp_degree)
        nearest = min(self.ttft, key=lambda t: (abs(np.log(t / tp_degree)), t))
        step, own, others = (float(f) for f in self.ttft[nearest])
        return replace(
            _model(factors, self.limits_at(tp_degree), self.experts),
            ttft_step_factor=step,
            ttft_own_factor=own,
            ttft_others_factor=others,
            quality=self.quality(tp_degree),
            derived=not measured,
        )


def _model(factors: Floats, limits: BatchLimits, experts: Experts | None) -> EngineModel:
    step, prefill, sequence, context = (float(f) for f in factors[:4])
    return EngineModel(
        step_s=step,
        prefill_token_s=prefill,
        sequence_s=sequence,
        context_token_s=context,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        kv_tokens=limits.kv_tokens,
        expert_s=0.0 if experts is None else float(factors[4]),
        experts=experts,
    )


def is_evidence(point: Point) -> bool:
    """Whether a point's latency says how fast the engine is: not that of a saturated open one."""
    return point.load == "closed" or (point.arrival_rate_rps is not None and not point.saturated)


def fit_configuration(
    points: Sequence[Point], limits_at: LimitsAt, experts: Experts | None, known: Proportions
) -> Configuration:
    """Fit to all points (of one share and link) that are evidence. Raises BadFitError for none."""
    used = tuple(p for p in points if is_evidence(p))
    if not used:
        raise BadFitError("no closed-loop points and no unsaturated open ones to fit on")
    limits = [limits_at(p.tp_degree) for p in used]
    equations = equations_of(used, limits, experts, known, _lone(used))
    every = np.ones(len(used))
    structure = equations.structure(every, known)
    degrees = sorted({p.tp_degree for p in used})
    own = {tp: equations.own(every, tp, structure) for tp in degrees}
    ttft = {
        tp: _ttft(_model(own[tp], limits_at(tp), experts), [p for p in used if p.tp_degree == tp])
        for tp in degrees
    }
    judgement = judge(used, equations, known, _in_sample(equations, own))
    return Configuration(used, limits_at, experts, structure, own, ttft, judgement)


def _lone(points: Sequence[Point]) -> list[bool]:
    """Which points have the fewest calls in flight of their (TP, shape): TTFT is clear there."""
    shape = {id(p): i for i, s in enumerate(shapes_of(points)) for p in s.points}
    least: dict[tuple[int, int], float] = {}
    for p in points:
        key = p.tp_degree, shape[id(p)]
        least[key] = min(in_flight_of(p), least.get(key, np.inf))
    return [in_flight_of(p) <= least[p.tp_degree, shape[id(p)]] for p in points]


def _in_sample(equations: Equations, own: Mapping[int, Floats]) -> Floats:
    count = equations.num_points
    return np.array(
        [
            float(row @ own[int(tp)])
            for row, tp in zip(equations.rows[:count], equations.tp[:count], strict=True)
        ]
    )


def _ttft(model: EngineModel, points: Sequence[Point]) -> Floats:
    """The TTFT factors, as far as the points say; latency does not depend on them."""
    usual = np.array([model.ttft_step_factor, model.ttft_own_factor, model.ttft_others_factor])
    limits = BatchLimits(model.max_num_batched_tokens, model.max_num_seqs, model.kv_tokens)
    rows = []
    for point in points:
        inputs, outputs = point.input_tokens_mean, point.output_tokens_mean
        in_flight = in_flight_of(point)
        running = limits.running(in_flight, inputs + outputs)
        if point.ttft_mean_s is None or outputs <= 1.0 or running < in_flight:
            continue
        lengths = (running, prefill_tokens(point), inputs, outputs)
        terms = model.ttft_terms(*lengths, point.latency_mean_s)
        rows.append([term / point.ttft_mean_s for term in terms])
    if not rows:
        return usual
    return non_negative(np.array(rows), np.ones(len(rows)), usual, TTFT_LEAN)


def fit_engine_model(
    points: Sequence[Point],
    *,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    kv_tokens: float | None = None,
    where: str = "engine model",
    refuse: bool = True,
    experts: Experts | None = None,
) -> EngineModel:
    """Fit on points of one (TP, share, link), of a model whose sizes are not known.

    With ``refuse`` a fit whose median hold-out error is above what is allowed, or which has fewer
    than MIN_POINTS points, raises BadFitError with the figure.
    """
    limits = BatchLimits(max_num_batched_tokens or DEFAULT_BATCHED_TOKENS, max_num_seqs, kv_tokens)
    _check_number([p for p in points if is_evidence(p)], where)
    part = None if experts is None else experts.per_token / experts.total
    known = proportions("", None, None, 2.0, part)
    fitted = fit_configuration(points, lambda _: limits, experts, known)
    if refuse:
        refuse_bad(fitted.quality(points[0].tp_degree), where)
    return fitted.model(fitted.points[0].tp_degree)


def _check_number(points: Sequence[Point], where: str) -> None:
    if len(points) < MIN_POINTS:
        raise BadFitError(
            f"{where}: {len(points)} points are too few to fit an engine model; "
            f"at least {MIN_POINTS}"
        )


def refuse_bad(quality: FitQuality, where: str) -> None:
    """Raise BadFitError where a fit failed its hold-out."""
    if quality.failing is not None:
        what, miss, allowed = quality.failing
        raise BadFitError(
            f"{where}: the fitted engine model misses the latency of {what} by {100 * miss:.1f}% "
            f"(median of {quality.num_points} points); allowed is {100 * allowed:.0f}%"
        )


def fit_bundle(
    bundle: Bundle, tp_degree: int, gpu_share_pct: int = 100, link: Link | None = None
) -> EngineModel:
    """Engine model of one (TP, share, link) of a bundle, with its memory and batch limits.

    A share without points of its own is derived from the whole GPU's, a TP degree without points
    from the others: ``derived``. ``link`` None takes any. Raises BadFitError; InputError when
    there are no points or the weights do not fit.
    """
    where = f"{bundle.path}: {bundle.header.model}, TP {tp_degree}, share {gpu_share_pct}%"
    shares = {p.gpu_share_pct for p in at_link(bundle, link) if p.tp_degree == tp_degree}
    source = gpu_share_pct if gpu_share_pct in shares else 100
    kv_tokens = kv_tokens_at(bundle, tp_degree, gpu_share_pct)
    if kv_tokens is not None and kv_tokens <= 0:
        raise InputError(
            f"{where}: weights_gib {bundle.header.weights_gib:g} does not fit {tp_degree} x "
            f"{gpu_share_pct}% of {bundle.header.gpu_memory_gib:g} GiB"
        )
    fitted = configuration_of(bundle, source, link)
    _check_number(fitted.points, where)
    refuse_bad(fitted.quality(tp_degree), where)
    model = fitted.model(tp_degree)
    if source != gpu_share_pct:
        model = model.at_share(gpu_share_pct, read_s_of(bundle, tp_degree))
    return replace(model, kv_tokens=kv_tokens)


def at_link(bundle: Bundle, link: Link | None) -> tuple[Point, ...]:
    """The points at TP 1, and those of groups over that link (None: over any)."""
    header = bundle.header
    return tuple(
        p
        for p in bundle.points
        if p.tp_degree == 1 or link is None or (p.link or header.link) in (None, link)
    )


def configuration_of(bundle: Bundle, gpu_share_pct: int, link: Link | None) -> Configuration:
    """The fit to a bundle's points of one share and link. Raises BadFitError for none."""
    points = [p for p in at_link(bundle, link) if p.gpu_share_pct == gpu_share_pct]
    header = bundle.header
    sizes = architecture_of(header.model)
    budget = _int_arg(bundle, "max_num_batched_tokens") or DEFAULT_BATCHED_TOKENS

    @cache
    def by_default(tp_degree: int) -> BatchLimits:
        tokens = kv_tokens_at(bundle, tp_degree, gpu_share_pct)
        room = tokens if tokens is not None and tokens > 0 else None
        return BatchLimits(budget, batch_limit(header, tp_degree), room)

    used = [p for p in points if is_evidence(p)]
    seats = seats_seen(used, [by_default(p.tp_degree) for p in used])

    def limits_at(tp_degree: int) -> BatchLimits:
        known = by_default(tp_degree)
        if seats is None or (known.max_num_seqs or math.inf) <= seats:
            return known
        return replace(known, max_num_seqs=max(round(seats), 1))

    part = None if sizes.experts is None else sizes.experts.per_token / sizes.experts.total
    known = proportions(
        header.gpu_type,
        header.weights_gib,
        header.kv_bytes_per_token,
        BYTES_PER_WEIGHT.get(header.precision, 2.0),
        part,
    )
    return fit_configuration(points, limits_at, sizes.experts, known)


BYTES_PER_WEIGHT = {"fp8": 1.0, "int8": 1.0, "fp4": 0.55, "int4": 0.55, "fp32": 4.0}
"""Bytes a weight takes, about; 2 where the precision is another."""


def kv_tokens_at(bundle: Bundle, tp_degree: int, gpu_share_pct: int) -> float | None:
    """Tokens that the KV cache holds; None where sizes are unknown, not above 0: no room."""
    header = bundle.header
    if header.weights_gib is None or header.kv_bytes_per_token is None:
        return None
    return kv_tokens_that_fit(
        header.gpu_memory_gib,
        tp_degree,
        gpu_share_pct,
        header.weights_gib,
        header.kv_bytes_per_token,
        architecture_of(header.model).num_kv_heads,
    )


def read_s_of(bundle: Bundle, tp_degree: int) -> tuple[float, float] | None:
    """Least reading times of the whole memory of each GPU: weights, and a token of context."""
    header = bundle.header
    return read_times_s(header.gpu_type, tp_degree, header.weights_gib, header.kv_bytes_per_token)


def _int_arg(bundle: Bundle, key: str) -> int | None:
    value = bundle.header.engine_args.get(key)
    return int(value) if isinstance(value, int | float | str) else None
