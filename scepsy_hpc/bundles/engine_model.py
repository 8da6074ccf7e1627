"""Fit the engine model to the closed-loop points of one (TP, share, link), and judge the fit.

Latency is linear in the four step-time factors, so the fit is a non-negative least squares on
relative errors, re-weighted so that it approaches the least absolute error: a few odd points
must not bend the rest. With four unknowns the active set is found by trying all fifteen, which
needs no solver; importing one would cost more than every fit of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.bundles.step_time import (
    DEFAULT_BATCHED_TOKENS,
    EngineModel,
    FitQuality,
    kv_tokens_that_fit,
    life_terms,
)
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.points import Point

MIN_POINTS = 4
MAX_POINT_ERROR = 0.15
MAX_SHAPE_ERROR = 0.25
NUM_REWEIGHTINGS = 4
ERROR_FLOOR = 0.005

Array = NDArray[np.float64]


class BadFitError(InputError):
    """The points do not carry an engine model; the message holds the figure."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """What bounds the batch while fitting."""

    max_num_batched_tokens: int
    max_num_seqs: int | None
    kv_tokens: float | None

    def running(self, point: Point) -> float:
        running = float(point.concurrency or 1.0)
        if self.max_num_seqs is not None:
            running = min(running, float(self.max_num_seqs))
        if self.kv_tokens is not None:
            tokens = max(point.input_tokens_mean + point.output_tokens_mean, 1.0)
            running = min(running, max(self.kv_tokens / tokens, 1.0))
        return running


def fit_bundle(
    bundle: Bundle, tp_degree: int, gpu_share_pct: int = 100, link: Link | None = None
) -> EngineModel:
    """Engine model of one (TP, share, link) of a bundle, with its memory and batch limits.

    A share without points of its own is derived from the whole GPU's. ``link`` None takes any.
    Raises BadFitError; InputError when there are no points or the weights do not fit.
    """
    header = bundle.header
    points = [
        p
        for p in bundle.points
        if p.tp_degree == tp_degree and link in (None, p.link or header.link)
    ]
    own = [p for p in points if p.gpu_share_pct == gpu_share_pct]
    whole = [p for p in points if p.gpu_share_pct == 100]
    where = f"{bundle.path}: {header.model}, TP {tp_degree}, share {gpu_share_pct}%"
    if not own and not whole:
        raise InputError(f"{where}: the bundle has no points for this TP degree")
    kv_at = {pct: _kv_tokens(bundle, tp_degree, pct, where) for pct in (gpu_share_pct, 100)}
    model = fit_engine_model(
        own or whole,
        max_num_batched_tokens=_int_arg(bundle, "max_num_batched_tokens", DEFAULT_BATCHED_TOKENS),
        max_num_seqs=_int_arg(bundle, "max_num_seqs", None),
        kv_tokens=kv_at[gpu_share_pct if own else 100],
        where=where,
    )
    return model if own else replace(model.at_share(gpu_share_pct), kv_tokens=kv_at[gpu_share_pct])


def _kv_tokens(bundle: Bundle, tp_degree: int, gpu_share_pct: int, where: str) -> float | None:
    header = bundle.header
    if header.weights_gib is None or header.kv_bytes_per_token is None:
        return None
    tokens = kv_tokens_that_fit(
        header.gpu_memory_gib,
        tp_degree,
        gpu_share_pct,
        header.weights_gib,
        header.kv_bytes_per_token,
    )
    if tokens <= 0:
        raise InputError(
            f"{where}: weights_gib {header.weights_gib:g} does not fit {tp_degree} x "
            f"{gpu_share_pct}% of {header.gpu_memory_gib:g} GiB"
        )
    return tokens


def _int_arg(bundle: Bundle, key: str, default: int | None) -> int | None:
    value = bundle.header.engine_args.get(key, default)
    return int(value) if isinstance(value, int | float | str) else default


def fit_engine_model(
    points: Sequence[Point],
    *,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    kv_tokens: float | None = None,
    where: str = "engine model",
    refuse: bool = True,
) -> EngineModel:
    """Fit on the closed points among ``points``, all of one (TP, share, link).

    With ``refuse`` a fit whose hold-out error is above MAX_POINT_ERROR (one concurrency left
    out) or MAX_SHAPE_ERROR (one token shape left out), or which has fewer than MIN_POINTS points,
    raises BadFitError with the figure.
    """
    limits = _Limits(max_num_batched_tokens or DEFAULT_BATCHED_TOKENS, max_num_seqs, kv_tokens)
    closed = [p for p in points if p.load == "closed"]
    if len(closed) < MIN_POINTS:
        raise BadFitError(
            f"{where}: {len(closed)} closed-loop points are too few to fit an engine model; "
            f"at least {MIN_POINTS}"
        )
    factors = _fit(*_table(closed, limits))
    quality = _quality(closed, limits, factors)
    if refuse:
        _refuse_bad(quality, where)
    model = EngineModel(
        step_s=float(factors[0]),
        prefill_token_s=float(factors[1]),
        sequence_s=float(factors[2]),
        context_token_s=float(factors[3]),
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        kv_tokens=limits.kv_tokens,
        quality=quality,
    )
    return _with_ttft(model, closed, limits)


def _table(points: Sequence[Point], limits: _Limits) -> tuple[Array, Array]:
    """Coefficients of the factors in each point's latency, and the latencies.

    Where fewer than three token shapes cannot tell prefill from decoding, the TTFT of a call
    that is alone (one step over its own prompt) is one more equation.
    """
    rows, times_s = [], []
    few_shapes = len({(p.input_tokens_mean, p.output_tokens_mean) for p in points}) < 3
    for point in points:
        rows.append(_row(point, limits))
        times_s.append(point.latency_mean_s)
        alone = limits.running(point) <= 1.0 and point.output_tokens_mean > 1.0
        if few_shapes and alone and point.ttft_mean_s is not None:
            prefill = _prefill_tokens(point)
            steps = max(prefill / limits.max_num_batched_tokens, 1.0)
            rows.append([steps, prefill, 0.0, 0.0])
            times_s.append(point.ttft_mean_s)
    return np.asarray(rows), np.asarray(times_s)


def _row(point: Point, limits: _Limits) -> list[float]:
    running = limits.running(point)
    inputs, outputs = point.input_tokens_mean, max(point.output_tokens_mean, 1.0)
    budget = limits.max_num_batched_tokens
    steps, work = life_terms(running, _prefill_tokens(point), inputs, outputs, budget)
    in_flight = float(point.concurrency or 1.0)
    return [in_flight / running * steps, *(in_flight * w for w in work)]


def _prefill_tokens(point: Point) -> float:
    return max(point.input_tokens_mean - (point.cached_tokens_mean or 0.0), 1.0)


def _fit(table: Array, latency_s: Array) -> Array:
    """Non-negative factors that nearly minimise the mean absolute relative error."""
    relative = table / latency_s[:, None]
    weights = np.ones(len(latency_s))
    factors = np.zeros(table.shape[1])
    for _ in range(NUM_REWEIGHTINGS):
        factors = _non_negative(relative, weights)
        miss = np.abs(relative @ factors - 1.0)
        weights = 1.0 / np.maximum(miss, ERROR_FLOOR)
    return factors


def _non_negative(relative: Array, weights: Array) -> Array:
    """Exact weighted least squares of ``relative @ x = 1`` under x >= 0."""
    scale = np.maximum(np.sqrt((relative**2).mean(axis=0)), 1e-300)
    scaled = relative / scale
    gram = scaled.T @ (scaled * weights[:, None])
    target = scaled.T @ weights
    count = len(target)
    # Columns that the points cannot tell apart share what they explain, evenly.
    gram[np.diag_indices(count)] += 1e-9 * weights.sum()
    for size in range(count, 0, -1):
        for chosen in combinations(range(count), size):
            index = list(chosen)
            part = np.linalg.solve(gram[np.ix_(index, index)], target[index])
            if part.min() < 0.0:
                continue
            full = np.zeros(count)
            full[index] = part
            if (gram @ full - target).min() >= -1e-9 * target.max():
                best: Array = full / scale  # the conditions of Karush, Kuhn and Tucker hold
                return best
    raise AssertionError("a strictly convex problem has an optimum")


def _quality(points: Sequence[Point], limits: _Limits, factors: Array) -> FitQuality:
    rows = np.asarray([_row(p, limits) for p in points])
    rows /= np.asarray([p.latency_mean_s for p in points])[:, None]
    shapes = [(p.input_tokens_mean, p.output_tokens_mean) for p in points]
    return FitQuality(
        num_points=len(points),
        in_sample=float(np.median(np.abs(rows @ factors - 1.0))),
        held_out_point=_held_out(points, [p.concurrency for p in points], limits, rows),
        held_out_shape=_held_out(points, shapes, limits, rows),
    )


def _held_out(
    points: Sequence[Point], groups: Sequence[object], limits: _Limits, rows: Array
) -> float | None:
    """Median relative error of points predicted from a fit without their group.

    ``rows`` are the points' coefficients over their latencies.
    """
    misses: list[float] = []
    for group in dict.fromkeys(groups):
        out = np.asarray([g == group for g in groups])
        kept = [p for p, left in zip(points, out, strict=True) if not left]
        if len(kept) < MIN_POINTS - 1:
            continue
        if len({(p.input_tokens_mean, p.output_tokens_mean) for p in kept}) < 3:
            factors = _fit(*_table(kept, limits))
        else:
            factors = _fit(rows[~out], np.ones(len(kept)))
        misses.extend(np.abs(rows[out] @ factors - 1.0))
    return float(np.median(misses)) if misses else None


def _refuse_bad(quality: FitQuality, where: str) -> None:
    judged = [
        ("a held-out concurrency", quality.held_out_point, MAX_POINT_ERROR),
        ("a held-out token shape", quality.held_out_shape, MAX_SHAPE_ERROR),
    ]
    if quality.held_out_point is None and quality.held_out_shape is None:
        judged = [("its own points", quality.in_sample, MAX_POINT_ERROR)]
    for what, miss, allowed in judged:
        if miss is not None and miss > allowed:
            raise BadFitError(
                f"{where}: the fitted engine model misses the latency of {what} by "
                f"{100 * miss:.1f}% (median of {quality.num_points} points); allowed is "
                f"{100 * allowed:.0f}%"
            )


def _with_ttft(model: EngineModel, points: Sequence[Point], limits: _Limits) -> EngineModel:
    """The TTFT factors, where the points say enough; latency does not depend on them."""
    rows = []
    for point in points:
        outputs = point.output_tokens_mean
        running = limits.running(point)
        waits = running < float(point.concurrency or 1.0)
        if point.ttft_mean_s is None or outputs <= 1.0 or waits:
            continue
        lengths = (running, _prefill_tokens(point), point.input_tokens_mean, outputs)
        life_s = running / point.throughput_rps
        rows.append([v / point.ttft_mean_s for v in model.ttft_terms(*lengths, life_s)])
    if len(rows) < MIN_POINTS:
        return model
    step, own, others = (float(f) for f in _fit(np.asarray(rows), np.ones(len(rows))))
    return replace(model, ttft_step_factor=step, ttft_own_factor=own, ttft_others_factor=others)
