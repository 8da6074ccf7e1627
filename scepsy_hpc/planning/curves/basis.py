"""What a curve's figures rest on, and how far they may be off.

A figure is of one kind where points are, and extrapolated where there are none; an interval is
that of what was held out in the same way (``bundles/held_out_fits``), wider by what a derived
share or a modelled bundle adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scepsy_hpc.formats.plan import RestsOn
from scepsy_hpc.metrics import Floats

Kind = Literal["measured", "modelled", "derived", "transferred"]

DERIVED = 0.3
"""Half-width (a logarithm) that the slow-downs of a share add: other models on another GPU."""

MODELLED = 0.55
"""The same of points that nobody ran: those shipped miss by 19% (median)."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Where points are, ``first`` to ``last`` calls in flight, and what kind of figure is there.

    ``within``, ``below`` and ``beyond`` are half-widths of 95% intervals of the latency, as
    logarithms of a factor; ``beyond`` one doubling after the last point.
    """

    kind: Kind = "measured"
    first: float = 1.0
    last: float = math.inf
    within: float = 0.3
    below: float = 0.5
    beyond: float = 0.5

    def interval_pct(self, in_flight: float) -> float:
        """Half-width of the 95% interval of the latency at so many calls in flight, in percent."""
        half = self.within
        if in_flight < self.first * (1.0 - 1e-9):
            half = self.below
        elif in_flight > self.last * (1.0 + 1e-9):
            half = self.beyond * math.sqrt(max(math.log2(in_flight / self.last), 1.0))
        return 100.0 * math.expm1(half)

    def rests_on(
        self, states: Sequence[float] | Floats, weights: Sequence[float] | Floats
    ) -> RestsOn:
        """Parts by where the calls in flight lie; the weights sum to 1.

        Modelled and derived figures are that throughout. Others are extrapolated below the first
        and past the last point.
        """
        if self.kind in ("modelled", "derived"):
            return RestsOn(**{f"{self.kind}_pct": 100.0})
        at, parts = np.asarray(states), np.asarray(weights)
        # Whole calls: the state below a first point of 1.2 calls (an open one) is not without it.
        inside = (at >= min(self.first, math.floor(self.first))) & (at <= math.ceil(self.last))
        held_pct = 100.0 * min(float(parts[inside].sum() / parts.sum()), 1.0)
        return RestsOn(**{f"{self.kind}_pct": held_pct, "extrapolated_pct": 100.0 - held_pct})
