"""One replica as a load-dependent server: throughput X(k) at k calls in flight.

Source: the contract, "A replica group under its routing rule"; what a group of them does under
arrivals is in ``group``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scepsy_hpc.metrics import Floats


@dataclass(frozen=True, slots=True)
class Server:
    """Throughput X(k) of one replica at k calls in flight, by its closed points.

    Linear between points, flat after the last; below the first the latency is held flat, which
    is a line through the origin. ``concurrency`` ascends strictly; both are positive.
    """

    concurrency: tuple[float, ...]
    throughput_rps: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = (self.concurrency, self.throughput_rps)
        if not self.concurrency or len(self.concurrency) != len(self.throughput_rps):
            raise ValueError(f"a server needs as many concurrencies as throughputs, got {pairs}")
        if min(map(min, pairs)) <= 0 or not np.all(np.isfinite(pairs)):
            raise ValueError(f"concurrency and throughput must be above 0 and finite, got {pairs}")
        if np.any(np.diff(self.concurrency) <= 0):
            raise ValueError(f"concurrency ({self.concurrency}) must ascend strictly")

    @property
    def capacity_rps(self) -> float:
        """The largest measured throughput."""
        return max(self.throughput_rps)

    @property
    def limit_rps(self) -> float:
        """Arrivals at or above this pile up without end: the throughput after the last point."""
        return self.throughput_rps[-1]

    def rate_rps(self, in_flight: float | Floats) -> Floats:
        """X(k) for any k >= 0, whole or not."""
        return np.asarray(
            np.interp(in_flight, (0.0, *self.concurrency), (0.0, *self.throughput_rps))
        )

    def closed(self, in_flight: float) -> tuple[float, float]:
        """Throughput (calls/s) and latency (s) with a fixed number of calls in flight."""
        rate_rps = float(self.rate_rps(max(in_flight, 1e-9)))
        return rate_rps, max(in_flight, 1e-9) / rate_rps
