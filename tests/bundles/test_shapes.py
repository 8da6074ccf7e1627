"""Which points are one token shape: 5% around the group's mean, weighted by calls."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from planning_cases import point

from scepsy_hpc.bundles.shapes import SAME_SHAPE, difference, lengths_of, shapes_of


def _points(*lengths: tuple[float, float]) -> list:
    return [
        point(float(i + 1), 1.0, input_tokens_mean=a, output_tokens_mean=b)
        for i, (a, b) in enumerate(lengths)
    ]


def test_a_sweep_whose_means_differ_a_little_is_one_shape() -> None:
    """0.1% apart, as sampled lengths are: one shape, with the mean of all."""
    (shape,) = shapes_of(_points((1000, 100), (1001, 100.1), (999, 99.9), (1000.5, 100.05)))
    assert len(shape.points) == 4
    assert shape.lengths[:2] == pytest.approx((1000.125, 100.0125))


def test_a_clear_difference_parts_shapes() -> None:
    """Inputs, outputs and cached tokens each make a shape of their own."""
    base = _points((1000, 100), (1000, 120), (1200, 100))
    cached = replace(base[0], cached_tokens_mean=500.0)
    assert len(shapes_of([*base, cached])) == 4


def test_means_are_weighted_by_calls() -> None:
    """A point of a thousand calls counts a thousand times one of a single call."""
    a, b = _points((1000, 100), (1040, 100))
    (shape,) = shapes_of([replace(a, num_requests=999), replace(b, num_requests=1)])
    assert shape.lengths[0] == pytest.approx(1000.04)


def test_no_chain_joins_what_is_far_apart() -> None:
    """Lengths that drift by 4% a point are not one shape from end to end."""
    points = _points(*((1000 * 1.04**i, 100) for i in range(10)))
    shapes = shapes_of(points)
    assert len(shapes) > 3
    for shape in shapes:
        for p in shape.points:
            assert difference(lengths_of(p), shape.lengths) <= SAME_SHAPE


def test_the_order_in_the_file_does_not_matter() -> None:
    """Random lengths, shuffled: each point in one group within 5%, and the same groups."""
    draw = random.Random(5)
    for _ in range(30):
        points = _points(*((draw.uniform(500, 900), draw.uniform(50, 90)) for _ in range(25)))
        found = shapes_of(points)
        assert sorted(map(id, points)) == sorted(id(p) for s in found for p in s.points)
        shuffled = draw.sample(points, len(points))
        again = shapes_of(shuffled)
        assert np.array([s.lengths for s in again]) == pytest.approx(
            np.array([s.lengths for s in found])
        )
        for shape in found:
            for p in shape.points:
                assert difference(lengths_of(p), shape.lengths) <= SAME_SHAPE
