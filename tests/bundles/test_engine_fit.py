"""The solver and the equations, against engines simulated step by step."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest
from planning_cases import open_point, point

from scepsy_hpc.bundles.engine_fit import BatchLimits, in_flight_of, non_negative, seats_seen
from scepsy_hpc.bundles.engine_model import fit_configuration, fit_engine_model
from scepsy_hpc.bundles.roofline import Proportions
from scepsy_hpc.bundles.step_time import Experts
from scepsy_hpc.formats.points import Point

BUDGET = 8192


class Steps:
    """A batching engine, step by step: decodes first, then prompts, each token to its experts."""

    def __init__(self, factors: tuple[float, ...], experts: tuple[int, int] | None, seed: int):
        self.step, self.prefill, self.sequence, self.context, self.expert = factors
        self.experts = experts
        self.draw = random.Random(seed)

    def closed_s(self, k: int, inputs: int, outputs: int, calls: int) -> float:
        """Mean latency with k calls always in flight, the first batch of them left out."""
        now, done, total = 0.0, 0, 0.0
        # Calls start at different stages, as they do once the engine has run for a while.
        running = [[0.0, 1 + i * (outputs - 1) // k] for i in range(k)]
        waiting: deque[float] = deque()
        while done < calls + k:
            prompts, budget = [], BUDGET - len(running)
            while waiting and budget >= inputs:
                prompts.append(waiting.popleft())
                budget -= inputs
            context = sum(inputs + made for _, made in running)
            length = self.step + self.prefill * inputs * len(prompts)
            length += self.sequence * len(running) + self.context * context
            length += self.expert * self._woken(len(running) + inputs * len(prompts))
            now += length
            for call in running:
                call[1] += 1
            for begun in [call[0] for call in running if call[1] >= outputs]:
                done += 1
                total += now - begun if done > k else 0.0
                waiting.append(now)
            running = [call for call in running if call[1] < outputs]
            running += [[begun, 1] for begun in prompts]
        return total / (done - k)

    def _woken(self, tokens: int) -> float:
        if self.experts is None:
            return 0.0
        part, total = self.experts
        if tokens > 20 * total:
            return 1.0
        every = range(total)
        return len({e for _ in range(tokens) for e in self.draw.sample(every, part)}) / total


def _point(k: int, inputs: int, outputs: int, latency_s: float, tp: int = 1) -> Point:
    return point(
        float(k),
        k / latency_s,
        input_tokens_mean=float(inputs),
        output_tokens_mean=float(outputs),
        tp_degree=tp,
    )


SHAPES = ((256, 60), (1024, 40), (512, 120))


def test_a_mixture_simulated_step_by_step_is_found_and_foretold() -> None:
    """Experts drawn at random for each token: other loads and shapes come out within 5%.

    Without the expert term the same points are missed by more.
    """
    engine = Steps((0.002, 2e-5, 5e-5, 2e-8, 0.02), (4, 128), seed=1)
    points = [
        _point(k, i, o, engine.closed_s(k, i, o, 6 * k)) for i, o in SHAPES for k in (1, 4, 16, 64)
    ]
    with_term = fit_engine_model(points, experts=Experts(4, 128), refuse=False)
    without = fit_engine_model(points, refuse=False)
    errors = {True: [], False: []}
    for k, inputs, outputs in ((2, 512, 80), (8, 512, 80), (32, 256, 60), (100, 512, 80)):
        true_s = engine.closed_s(k, inputs, outputs, 6 * k)
        for known, model in ((True, with_term), (False, without)):
            said_s = model.closed_loop(k, inputs, outputs).latency_s
            errors[known].append(abs(said_s / true_s - 1.0))
    assert max(errors[True]) < 0.05
    assert max(errors[False]) > 2.0 * max(errors[True])


def test_an_unmeasured_tp_degree_follows_from_the_others() -> None:
    """Factors that are a / t + b: the model at TP 4 is foretold from TP 1, 2 and 8."""
    points = []
    for tp in (1, 2, 8):
        engine = Steps((0.016 / tp + 0.004, 8e-5 / tp + 8e-6, 4e-5, 8e-8 / tp, 0.0), None, seed=2)
        for i, o in SHAPES:
            points += [_point(k, i, o, engine.closed_s(k, i, o, 4 * k), tp) for k in (1, 8, 32)]
    known = Proportions((0.02, 6e-5, 0.0, 1e-7), (0.005, 6e-6, 5e-5, 0.0))
    fitted = fit_configuration(points, lambda _: BatchLimits(BUDGET), None, known)
    model = fitted.model(4)
    assert model.derived
    assert not fitted.model(2).derived
    truth = Steps((0.008, 2.8e-5, 4e-5, 2e-8, 0.0), None, seed=3)
    for k in (1, 8, 32):
        true_s = truth.closed_s(k, 512, 60, 4 * k)
        assert model.closed_loop(k, 512, 60).latency_s == pytest.approx(true_s, rel=0.06)


def test_the_solver_is_least_squares_where_no_bound_holds() -> None:
    """Random consistent equations: the factors that made them, whatever it leans to."""
    rng = np.random.default_rng(7)
    for _ in range(50):
        true = rng.uniform(0.1, 2.0, 4) * 10.0 ** rng.integers(-8, 0, 4)
        rows = rng.uniform(0.1, 3.0, (12, 4)) / true
        rows /= (rows @ true)[:, None]
        found = non_negative(rows, np.ones(12), np.zeros(4), 0.1)
        assert found == pytest.approx(true, rel=1e-3)


def test_the_solver_never_goes_below_zero() -> None:
    """Where plain least squares would be negative the factor is none."""
    rng = np.random.default_rng(8)
    for _ in range(50):
        rows = rng.uniform(0.1, 1.0, (10, 3))
        assert non_negative(rows, np.ones(10), np.zeros(3), 1e-3).min() >= 0.0


def test_what_points_cannot_tell_apart_leans() -> None:
    """Two equal columns share what they explain as the proportions say, not by chance."""
    rows = np.array([[1.0, 1.0, 0.1], [1.0, 1.0, 0.5], [1.0, 1.0, 0.9]]) / 2.0
    found = non_negative(rows, np.ones(3), np.array([1.5, 0.5, 0.0]), 0.1)
    assert found[:2] == pytest.approx([1.5, 0.5], rel=0.02)


def test_an_open_call_finds_what_littles_law_says_and_is_one_more() -> None:
    """Two calls a second for three seconds: six in flight, and the call itself."""
    assert in_flight_of(open_point(2.0, 2.0, 3.0)) == pytest.approx(7.0)
    assert in_flight_of(point(5, 1.0)) == 5.0


def test_a_batch_limit_shows_in_first_tokens() -> None:
    """512 in flight of which a fifth decode: a hundred seats; without waiting none is seen."""
    full = point(512, 10.0, output_tokens_mean=4000.0)
    waits = _with_ttft(full, 0.8)
    limits = [BatchLimits(BUDGET)]
    assert seats_seen([waits], limits) == pytest.approx(0.2 * 512)
    assert seats_seen([_with_ttft(full, 0.3)], limits) is None
    # Where the KV cache is too small for all, that is why they wait.
    assert seats_seen([waits], [BatchLimits(BUDGET, None, 100_000.0)]) is None
    # And where prompts alone fill all steps, that.
    assert seats_seen([_with_ttft(point(512, 10.0, output_tokens_mean=20.0), 0.8)], limits) is None


@pytest.mark.parametrize("output_tokens", [1, 2, 3])
def test_a_short_answer_is_no_wait_for_a_seat(output_tokens: int) -> None:
    """Steps of equal length and no queue: one and a half of them until the first token."""
    steps = output_tokens + 0.5
    # Seen by a client the last byte comes a little after the first token, even of one.
    after = max(output_tokens - 1.0, 0.002) / steps
    waits_for_none = _with_ttft(point(8, 0.1, output_tokens_mean=output_tokens), 1.0 - after)
    assert seats_seen([waits_for_none], [BatchLimits(BUDGET)]) is None


def _with_ttft(made: Point, part: float) -> Point:
    from dataclasses import replace

    return replace(made, ttft_mean_s=part * made.latency_mean_s)
