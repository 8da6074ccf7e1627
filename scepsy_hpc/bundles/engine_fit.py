"""The numbers behind an engine model: points as equations, solved without negative factors.

Latency is linear in the factors of the step time, so a point is one equation, divided by its
latency: all points weigh alike, whatever they last. The solver is scipy's non-negative least
squares, re-weighted so that it approaches the least absolute error: a few odd points must not bend
the rest. The solution leans a little towards a given one, the less the better the points agree, so
that what the points cannot tell apart is not left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.bundles.roofline import Proportions
from scepsy_hpc.bundles.step_time import Experts, expert_steps, life_terms
from scepsy_hpc.formats.points import Point
from scepsy_hpc.metrics import Floats, Ints

NUM_REWEIGHTINGS, NUM_HELD_OUT = 6, 3
"""Rounds of re-weighting, and those of a fit to what is not held out: there are many of them."""

MISS_FLOOR = 0.01
"""A miss below this weighs as this much: no point is met exactly at the cost of all others."""

SHARED_LEAN, OWN_LEAN = 0.1, 0.03
"""Weight, in points, of the proportions against all points, and of the fit to all TP degrees
against the points of one. Held-out errors of the shipped bundles change little from a third to
three times as much."""

TTFT_WEIGHT = 0.1
"""Weight of a TTFT as an equation, in points: more helps some dense models and hurts mixtures."""

_MOSTLY_WAITING = 0.5

_AGREEMENT = 0.02
"""Points that miss by this much (median) lean as stated; by less, less in its square."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What bounds the batch at one TP degree."""

    max_num_batched_tokens: int
    max_num_seqs: int | None = None
    kv_tokens: float | None = None

    def running(self, in_flight: float, tokens: float) -> float:
        """Calls of so many tokens that are in the batch, of so many in flight."""
        running = in_flight
        if self.max_num_seqs is not None:
            running = min(running, float(self.max_num_seqs))
        if self.kv_tokens is not None:
            running = min(running, max(self.kv_tokens / max(tokens, 1.0), 1.0))
        return running


def in_flight_of(point: Point) -> float:
    """Calls in flight that a call of this point shares the engine with, itself included.

    Under Poisson arrivals a call finds as many as there are on average (rate x latency by
    Little's law), and is one more: with a latency linear in the calls in flight that is exact.
    """
    if point.load == "closed" or point.arrival_rate_rps is None:
        return float(point.concurrency or 1.0)
    return 1.0 + point.arrival_rate_rps * point.latency_mean_s


def seats_seen(points: Sequence[Point], limits: Sequence[BatchLimits]) -> float | None:
    """Sequences that the batch had room for, where TTFT shows that most calls waited for a seat.

    Once it has its first token a call is in the batch: by Little's law so many are, of those in
    flight, as is the part of the latency after it. Where half of the time and more is spent before
    that, though all prompts together do not fill the steps of one answer and the KV cache has
    room (``limits`` of each point), seats were short. Half, that is, of what a call that waits for
    none would have: a call of one token has nothing after its first. The median of such points;
    None without any.
    """
    seen = []
    for point, known in zip(points, limits, strict=True):
        in_flight, outputs = in_flight_of(point), point.output_tokens_mean
        prompts = in_flight * prefill_tokens(point) / known.max_num_batched_tokens
        fits = known.running(in_flight, point.input_tokens_mean + outputs) >= in_flight
        if point.ttft_mean_s is None or prompts > outputs or not fits:
            continue
        after = 1.0 - point.ttft_mean_s / point.latency_mean_s
        if 0.0 < after <= _MOSTLY_WAITING * _part_after_first(outputs):
            seen.append(in_flight * after)
    return float(np.median(seen)) if seen else None


def _part_after_first(output_tokens: float) -> float:
    """Part of a call's steps that follow its first token, if it never waits for a seat.

    Before that are half a step under way, on average, and its own first.
    """
    return max(output_tokens - 1.0, 0.0) / (max(output_tokens, 1.0) + 0.5)


def prefill_tokens(point: Point) -> float:
    """Input tokens that are not in the prefix cache; at least one."""
    return max(point.input_tokens_mean - (point.cached_tokens_mean or 0.0), 1.0)


def latency_row(point: Point, limits: BatchLimits, experts: Experts | None) -> list[float]:
    """Coefficients of the factors in a point's latency."""
    in_flight = in_flight_of(point)
    inputs, outputs = point.input_tokens_mean, max(point.output_tokens_mean, 1.0)
    running, prefill = limits.running(in_flight, inputs + outputs), prefill_tokens(point)
    budget = limits.max_num_batched_tokens
    steps, work = life_terms(running, prefill, inputs, outputs, budget)
    row = [in_flight / running * steps, *(in_flight * w for w in work)]
    if experts is not None:
        row.append(in_flight / running * expert_steps(experts, running, prefill, steps, budget))
    return row


def ttft_row(
    point: Point, limits: BatchLimits, experts: Experts | None, prefill_s: float
) -> list[float] | None:
    """Coefficients of the factors in a point's TTFT; None where it says nothing of them.

    Half a step under way, the own one, and half of the others' prefills while the engine is at
    them; ``prefill_s`` is about what a token's prefill takes, for that last part only.
    """
    in_flight = in_flight_of(point)
    inputs, outputs = point.input_tokens_mean, point.output_tokens_mean
    running = limits.running(in_flight, inputs + outputs)
    if point.ttft_mean_s is None or outputs <= 1.0 or running < in_flight:
        return None
    prefill = prefill_tokens(point)
    decoding = running * (outputs - 1.0) / outputs
    busy = min(running * prefill_s * prefill / point.latency_mean_s, 1.0)
    own = prefill * (1.0 + 0.5 * max(running - 1.0, 0.0) * busy)
    row = [1.5, own, 1.5 * decoding, 1.5 * decoding * (inputs + outputs / 2.0)]
    return row if experts is None else [*row, 1.5]


def non_negative(
    rows: Floats, weights: Floats, lean_to: Floats, lean: float, rounds: int = NUM_REWEIGHTINGS
) -> Floats:
    """Non-negative factors for which ``rows @ factors`` is nearly 1, leaning to ``lean_to``."""
    from scipy.optimize import nnls

    scale = np.sqrt((rows**2).mean(axis=0))
    scale = np.where(scale > 0.0, scale, 1.0)
    scaled, aim = rows / scale, lean_to * scale
    effective, pull = weights.copy(), lean
    found = aim
    for _ in range(rounds):
        gram = scaled.T @ (scaled * effective[:, None])
        gram[np.diag_indices(len(aim))] += pull + 1e-12 * np.trace(gram)
        target = scaled.T @ effective + pull * aim
        lower = np.linalg.cholesky(gram)
        found, _ = nnls(lower.T, np.linalg.solve(lower, target))
        miss = np.abs(scaled @ found - 1.0)
        effective = weights * MISS_FLOOR / np.maximum(miss, MISS_FLOOR)
        agreement = float(np.median(miss)) / _AGREEMENT
        pull = lean * min(max(agreement * agreement, 1e-8), 1.0)
    return np.asarray(found / scale)


@dataclass(frozen=True, slots=True)
class Structure:
    """Factors at any TP degree t: divided / t + serial. Shape of both: (terms,)."""

    divided: Floats
    serial: Floats

    def at(self, tp_degree: float) -> Floats:
        """The factors at one TP degree."""
        return self.divided / tp_degree + self.serial


@dataclass(frozen=True, slots=True)
class Equations:
    """Points of one configuration as equations.

    ``rows`` (shape: equations x terms) are divided by what was measured; the first ``num_points``
    are latencies in the order of the points, the rest TTFTs. ``point``: which one it came from.
    """

    rows: Floats
    tp: Floats
    weights: Floats
    point: Ints
    num_points: int

    def structure(
        self, kept: Floats, known: Proportions, rounds: int = NUM_REWEIGHTINGS
    ) -> Structure:
        """One fit over the points with ``kept`` above 0, of all TP degrees."""
        which = np.flatnonzero(kept[self.point] > 0.0)
        rows, tp = self.rows[which], self.tp[which]
        both = np.hstack([rows / tp[:, None], rows])
        aim = np.array([*known.divided, *known.serial])
        latencies = which < self.num_points
        aim /= max(float(np.median(both[latencies] @ aim)), 1e-300)
        found = non_negative(both, self.weights[which], aim, SHARED_LEAN, rounds)
        half = rows.shape[1]
        return Structure(found[:half], found[half:])

    def own(
        self, kept: Floats, tp_degree: int, shared: Structure, rounds: int = NUM_REWEIGHTINGS
    ) -> Floats:
        """Factors of one TP degree: of its own points, leaning to the shared structure."""
        which = np.flatnonzero((kept[self.point] > 0.0) & (self.tp == tp_degree))
        aim = shared.at(tp_degree)
        if not len(which):
            return aim
        return non_negative(self.rows[which], self.weights[which], aim, OWN_LEAN, rounds)

    def misses(self, kept: Floats, known: Proportions, wanted: Ints) -> Floats:
        """log(measured / predicted latency) of the wanted points, from a fit to the kept ones."""
        shared = self.structure(kept, known, NUM_HELD_OUT)
        predicted = np.empty(len(wanted))
        for tp_degree in np.unique(self.tp[wanted]):
            here = self.tp[wanted] == tp_degree
            factors = self.own(kept, int(tp_degree), shared, NUM_HELD_OUT)
            predicted[here] = self.rows[wanted[here]] @ factors
        return -np.log(np.maximum(predicted, 1e-9))


def equations_of(
    points: Sequence[Point],
    limits: Sequence[BatchLimits],
    experts: Experts | None,
    known: Proportions,
    lone: Sequence[bool],
) -> Equations:
    """The points (with the limits of each) as equations; TTFT counts where ``lone`` says so."""
    latencies = np.array([p.latency_mean_s for p in points])
    rows = [latency_row(p, own, experts) for p, own in zip(points, limits, strict=True)]
    table = np.array(rows) / latencies[:, None]
    tp = np.array([float(p.tp_degree) for p in points])
    aim = np.array(known.divided) / tp[:, None] + np.array(known.serial)
    scale = 1.0 / max(float(np.median((table * aim).sum(axis=1))), 1e-300)
    extra, source = [], []
    for i, (point, own, counts) in enumerate(zip(points, limits, lone, strict=True)):
        row = ttft_row(point, own, experts, scale * float(aim[i, 1])) if counts else None
        if row is not None and point.ttft_mean_s is not None:
            extra.append([value / point.ttft_mean_s for value in row])
            source.append(i)
    which = np.array([*range(len(points)), *source], dtype=np.int64)
    weights = np.ones(len(which))
    weights[len(points) :] = TTFT_WEIGHT
    every = np.vstack([table, np.array(extra)]) if extra else table
    return Equations(every, tp[which], weights, which, len(points))
