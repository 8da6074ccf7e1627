"""Mean and percentiles of run latencies, with 95% percentile-bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scepsy_hpc.formats.figures import Intervals, RunFigures
from scepsy_hpc.metrics import Floats

_NUM_RESAMPLES = 400
_MOST_RESAMPLED = 4_000_000
_MOST_POOLED = 40_000


def latency_figures(latency_s: Floats) -> RunFigures:
    """Mean and percentiles; unknown without runs."""
    if not len(latency_s):
        return RunFigures()
    p50, p95, p99 = np.percentile(latency_s, (50, 95, 99))
    return RunFigures(
        latency_mean_s=float(latency_s.mean()),
        latency_p50_s=float(p50),
        latency_p95_s=float(p95),
        latency_p99_s=float(p99),
    )


def bootstrap_intervals(latency_s: Floats, seed: int) -> Intervals:
    """95% percentile-bootstrap intervals of the figures over runs; empty below two runs.

    Runs of one simulation share its queues, so near saturation the intervals are too narrow.
    """
    number = len(latency_s)
    if number < 2:
        return {}
    chance = np.random.default_rng([seed, 95])
    resamples = max(min(_NUM_RESAMPLES, _MOST_RESAMPLED // number), 40)
    drawn = latency_s[chance.integers(0, number, size=(resamples, number))]
    found = {"latency_mean_s": drawn.mean(axis=1)}
    percentiles = np.percentile(drawn, (50, 95, 99), axis=1)
    for key, values in zip(("p50", "p95", "p99"), percentiles, strict=True):
        found[f"latency_{key}_s"] = values
    return _ends(found)


def run_intervals(lengths_s: Floats, seed: int) -> Intervals:
    """95% bootstrap intervals over runs of shape (runs, draws); empty below two runs.

    A run is drawn with all its draws, which are no new evidence on how much runs differ.
    """
    number = len(lengths_s)
    if number < 2:
        return {}
    draws = max(min(lengths_s.shape[1], _MOST_POOLED // number), 1)
    some = lengths_s[:, :draws]
    order = np.argsort(some, axis=None)
    values, owner = some.ravel()[order], order // draws
    chance = np.random.default_rng([seed, 95])
    times = chance.multinomial(number, np.full(number, 1.0 / number), size=_NUM_RESAMPLES // 2)
    figures: dict[str, list[float]] = {f"latency_{key}_s": [] for key in ("p50", "p95", "p99")}
    for drawn in times:
        above = np.cumsum(drawn[owner])
        for key, pct in (("p50", 50), ("p95", 95), ("p99", 99)):
            rank = np.searchsorted(above, pct / 100.0 * above[-1])
            figures[f"latency_{key}_s"].append(float(values[min(rank, len(values) - 1)]))
    means = times @ lengths_s.mean(axis=1) / number
    every = {"latency_mean_s": means, **{key: np.array(v) for key, v in figures.items()}}
    return _ends(every)


def _ends(resampled: Mapping[str, Floats]) -> Intervals:
    ends = {key: np.percentile(values, (2.5, 97.5)) for key, values in resampled.items()}
    return {key: (float(low), float(high)) for key, (low, high) in ends.items()}
