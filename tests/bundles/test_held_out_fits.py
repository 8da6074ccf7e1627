"""Intervals: true of points that were not seen, and wide where the points cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from planning_cases import ENGINE, SHAPES, engine_points

from scepsy_hpc.bundles.engine_model import fit_engine_model
from scepsy_hpc.bundles.step_time import EngineModel, Spread
from scepsy_hpc.formats.points import Point


def _spread(model: EngineModel) -> Spread:
    assert model.quality is not None
    assert model.quality.spread is not None
    return model.quality.spread


def _noisy(points: tuple[Point, ...], sigma: float, seed: int) -> list[Point]:
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    found = []
    for p in points:
        factor = float(np.exp(sigma * rng.standard_normal()))
        found.append(
            replace(
                p,
                latency_mean_s=p.latency_mean_s * factor,
                throughput_rps=p.throughput_rps / factor,
            )
        )
    return found


def test_intervals_hold_the_truth_where_it_is_known() -> None:
    """Points with 5% noise: at other shapes the true latency lies within the interval."""
    inside, count = 0, 0
    for seed in range(12):
        fitted = fit_engine_model(_noisy(engine_points(SHAPES), 0.05, seed))
        half = _spread(fitted).shape
        for inputs, outputs in ((800.0, 150.0), (3000.0, 100.0), (1500.0, 600.0)):
            for k in (2.0, 8.0, 32.0):
                said = fitted.closed_loop(k, inputs, outputs).latency_s
                true = ENGINE.closed_loop(k, inputs, outputs).latency_s
                inside += abs(np.log(said / true)) <= half
                count += 1
    assert inside / count >= 0.95


def test_more_noise_is_a_wider_interval() -> None:
    """Twenty percent of noise cannot be stated as two."""
    points = engine_points(SHAPES, concurrency=(1, 2, 4, 8, 16, 32, 64))
    calm, wild = (
        _spread(fit_engine_model(_noisy(points, s, 3), refuse=False)) for s in (0.01, 0.2)
    )
    assert wild.between > 1.5 * calm.between
    assert wild.between > 0.2


def test_one_shape_says_so_and_is_wide() -> None:
    """With one shape what other token lengths take is not known to a factor of two."""
    one = fit_engine_model(engine_points(SHAPES[:1])).quality
    many = fit_engine_model(engine_points(SHAPES)).quality
    assert one is not None
    assert many is not None
    assert (one.num_shapes, many.num_shapes) == (1, len(SHAPES))
    assert one.held_out_shape is None
    assert one.spread is not None
    assert many.spread is not None
    assert one.spread.shape > np.log(2.0) > many.spread.shape
    assert many.held_out_shape == pytest.approx(0.0, abs=0.02)
