"""How calls that come together and replicas out of balance change a birth-death chain.

A fan-out of b equal calls over balanced replicas of a processor-sharing group begins and ends as
one: the group is exactly a birth-death server whose members are fan-outs, with rate X(b j) / b at
j of them, whatever their sizes (insensitivity). Calls that differ end one by one, so fewer go
together: 1 + (b - 1) m of them. With iid pairs within a fan-out, m is

- E[min] / E[w] in an idle replica: how long one keeps the other company;
- E[w1 w2] / E[w^2] in a full one: heavy traffic, where the work in the replica decides, and work
  left over belongs to calls by E[w^2] (both are 1 for equal calls, 1/2 for exponential ones, for
  which a flat curve then has the latency of M^[b]/M/1 exactly).

Where n fan-outs of a run follow each other, the work in a full replica is that of whole runs, and
belongs to calls in flight by what is left of their runs: of b calls (c^2 + n b) / ((1 + c^2) +
(n - 1) E[max]) then go together.

On several replicas the calls of a fan-out share no replica at first; they go together less tightly
the longer one lasts than another, but more than on one replica. That and the imbalance of
replicas behind the least-in-flight rule are tables made by simulation (``bench/queueing.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.metrics import Floats

_NUM_REPLICAS = (1, 2, 4, 8, 16, 64, 1024)
_UTILISATION = (0.0, 0.4, 0.7, 0.85, 0.95)
_UNEVEN = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.058, 0.108, 0.130, 0.128],
        [0.0, 0.037, 0.098, 0.125, 0.140],
        [0.0, 0.011, 0.070, 0.095, 0.108],
        [0.0, 0.001, 0.035, 0.066, 0.075],
        [0.0, 0.0, 0.002, 0.022, 0.032],
        [0.0, 0.0, 0.0, 0.002, 0.006],
    ]
)
"""Part of the replicas one call below the balanced number, and as many one above, for sizes of
cv 1; rows by replicas, columns by utilisation."""

_SPREAD_OVER_REPLICAS = 1.05


@dataclass(frozen=True, slots=True)
class Bursts:
    """Calls of a deployment that start together, and how their work differs.

    ``size`` is the burst that a call is in, in the mean. ``work_cv``: standard deviation over mean
    of the work of all calls; ``pair_cv``: the same for two of one burst, from half their mean
    squared difference; ``pair_gap``: half their mean absolute difference over the mean. What is
    unknown is taken as exponential.
    """

    size: float = 1.0
    work_cv: float = 1.0
    pair_cv: float = 1.0
    pair_gap: float = 0.5
    rounds: float = 1.0

    def together(self, num_replicas: Floats, utilisation: Floats) -> Floats:
        """Calls that begin and end as one, by replicas and part of the limit in use (arrays)."""
        if self.size <= 1.0:
            return np.ones(len(num_replicas))
        busy = np.clip(utilisation, 0.0, 1.0)
        alone = 1.0 - self.pair_gap
        full, follow = self._full(1.0), self._full(self.rounds)
        bend = 1.0 + 1.0 / max(self.rounds, 1.0)
        one = alone + (full - alone) * busy**bend + (follow - full) * busy
        spread = (1.0 - 1.0 / num_replicas) * np.sqrt(num_replicas / self.size) * (1.0 - busy)
        part = one + (1.0 - one) * np.minimum(_SPREAD_OVER_REPLICAS * spread, 1.0)
        return np.asarray(1.0 + (self.size - 1.0) * part)

    def _full(self, rounds: float) -> float:
        """m in heavy traffic, runs being so many bursts that follow each other."""
        others, square = self.size - 1.0, 1.0 + self.work_cv**2
        product = max(square - self.pair_cv**2, 0.0)
        # The largest of b: exact for equal and for exponential calls (the harmonic number of b).
        harmonic = np.log(self.size) + 0.5772157 + 0.5 / self.size - 1.0 / (12.0 * self.size**2)
        largest = 1.0 + 2.0 * self.pair_gap * max(float(harmonic) - 1.0, 0.0)
        together = square + others * product + (rounds - 1.0) * self.size
        return (together / (square + (rounds - 1.0) * largest) - 1.0) / others

    def uneven(self, num_replicas: Floats, utilisation: Floats) -> Floats:
        """Part of the replicas one call below the balanced number, and as many above it."""
        column = np.clip(utilisation, 0.0, _UTILISATION[-1])
        at = np.stack([np.interp(column, _UTILISATION, row) for row in _UNEVEN])
        place = np.interp(np.log2(num_replicas), np.log2(_NUM_REPLICAS), np.arange(len(at)))
        low = np.minimum(place.astype(np.int64), len(at) - 2)
        lane, part = np.arange(len(place)), place - low
        found = at[low, lane] * (1.0 - part) + at[low + 1, lane] * part
        square = self.work_cv**2
        # Equal calls end in turn, as they came: hardly out of balance.
        return np.asarray(found * (0.2 + 0.95 * square / (square + 0.18)))


def mixed(parts: Sequence[tuple[float, float, Bursts]]) -> Bursts:
    """Calls of several kinds: the part of the calls, work of a mean call, bursts of each kind.

    The parts sum to 1, and so does part x work.
    """
    size = sum(part * of.size for part, _, of in parts)
    square = sum(part * work**2 * (1.0 + of.work_cv**2) for part, work, of in parts)
    # Pairs of one burst: as many as its other calls.
    pairs = [part * max(of.size - 1.0, 0.0) for part, _, of in parts]
    total = sum(pairs)
    if total <= 0.0:
        pairs, total = [part for part, _, _ in parts], 1.0
    differ = sum(n * (w * of.pair_cv) ** 2 for n, (_, w, of) in zip(pairs, parts, strict=True))
    gap = sum(n * w * of.pair_gap for n, (_, w, of) in zip(pairs, parts, strict=True))
    return Bursts(
        max(size, 1.0),
        float(np.sqrt(max(square - 1.0, 0.0))),
        float(np.sqrt(differ / total)),
        min(gap / total, 1.0),
        sum(part * of.rounds for part, _, of in parts),
    )


def gap_of(work_cv: float) -> float:
    """``pair_gap`` of calls of which only the cv is known: cv / (1 + cv), 1/2 if exponential."""
    return work_cv / (1.0 + work_cv)
