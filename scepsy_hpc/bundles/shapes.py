"""Token shapes: points whose mean lengths are close enough to count as one sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scepsy_hpc.formats.points import Point

SAME_SHAPE = 0.05
"""Token lengths within this part of their group's means are one shape."""

_MOST_ROUNDS = 8

MeanLengths = tuple[float, float, float]
"""Mean input tokens, output tokens, and input tokens found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Points of one shape; ``lengths`` are their means weighted by calls."""

    lengths: MeanLengths
    points: tuple[Point, ...]


def lengths_of(point: Point) -> MeanLengths:
    """The lengths of one point; a cached part that is unknown is none."""
    return point.input_tokens_mean, point.output_tokens_mean, point.cached_tokens_mean or 0.0


def num_calls(point: Point) -> float:
    """Calls that a point is the mean of; 1 where nobody says."""
    return float(point.num_requests or 1)


def difference(one: MeanLengths, other: MeanLengths) -> float:
    """Largest relative difference of input, output and uncached tokens; below half a token: 0."""
    pairs = (
        (one[0], other[0]),
        (one[1], other[1]),
        (one[0] - one[2], other[0] - other[2]),
    )
    return max(0.0 if abs(a - b) < 0.5 else abs(a - b) / max(a, b, 1.0) for a, b in pairs)


def shapes_of(points: Sequence[Point]) -> tuple[Shape, ...]:
    """The points in groups: each within SAME_SHAPE of its group's means, in order of lengths.

    Points join the nearest group in order of their lengths, so their order in a file does not
    matter; one that its group's mean has drifted away from looks again, at last for its own.
    """
    alike: dict[MeanLengths, list[Point]] = {}
    for point in points:
        alike.setdefault(lengths_of(point), []).append(point)
    waiting, groups = sorted(alike), list[list[MeanLengths]]()
    weights = {lengths: sum(map(num_calls, same)) for lengths, same in alike.items()}
    for _ in range(_MOST_ROUNDS):
        for lengths in waiting:
            near = [(difference(lengths, _mean(g, weights)), i) for i, g in enumerate(groups)]
            miss, nearest = min(near, default=(1.0, -1))
            if miss <= SAME_SHAPE:
                groups[nearest].append(lengths)
            else:
                groups.append([lengths])
        waiting = sorted(
            one for g in groups for one in g if difference(one, _mean(g, weights)) > SAME_SHAPE
        )
        groups = [kept for g in groups if (kept := [one for one in g if one not in waiting])]
        if not waiting:
            break
    groups += [[lengths] for lengths in waiting]
    return tuple(
        Shape(_mean(group, weights), tuple(p for lengths in sorted(group) for p in alike[lengths]))
        for group in sorted(groups, key=min)
    )


def _mean(group: Sequence[MeanLengths], weights: Mapping[MeanLengths, float]) -> MeanLengths:
    total = sum(weights[one] for one in group)
    inputs, outputs, cached = (
        sum(weights[one] * one[i] for one in group) / total for i in range(3)
    )
    return inputs, outputs, cached
