"""Curve of one (model, GPU type, link, TP, share) under given token lengths.

``making`` makes them from profiles; here is what they answer: latency, TTFT and the
distribution of a call at a load. What a curve rests on is said in its ``flags``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scepsy_hpc.bundles.shapes import MeanLengths, difference
from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import RestsOn
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.curves.basis import Basis
from scepsy_hpc.planning.curves.queueing import Server, mean_latencies_s

MAX_UTILISATION = 0.95

OUTPUT_TOKEN_WORK = 28.0
"""Work of an output token in input tokens where no TTFT says: the median of shipped profiles."""


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Mean tokens of the calls of one LLM; ``cached`` of the input need no prefill."""

    inputs: float
    outputs: float
    cached: float = 0.0

    def miss(self, lengths: MeanLengths) -> float:
        """Largest relative difference to a shape's lengths; a token more or less is none."""
        return difference((self.inputs, self.outputs, self.cached), lengths)


@dataclass(frozen=True, slots=True)
class Curve:
    """What one replica does under load. Times in s, loads in calls per second.

    ``ttft_s`` stands beside ``server.concurrency``; NaN is unknown. ``held_at``: those numbers of
    calls in flight at which the curve is held to points; elsewhere it follows the engine model.
    ``engine``: that model, where one passed its hold-out. ``basis``: what the figures rest on.
    """

    kind: Parallelism
    tokens: TokenLengths
    server: Server
    ttft_s: tuple[float, ...]
    flags: tuple[str, ...]
    bundle_sha256: str
    memory_gib: float
    held_at: tuple[float, ...] = ()
    engine: EngineModel | None = None
    basis: Basis = field(default_factory=Basis)

    def work_of(self, tokens: TokenLengths) -> float:
        """Work of a call with these tokens in mean calls: its fitted time alone over theirs.

        Without an engine model prompt and output are weighed as TTFT and latency of the first
        point are. In either case 1 for a mean call, and above 0.
        """
        if self.engine is not None:
            return max(_alone_s(self.engine, tokens) / _alone_s(self.engine, self.tokens), 1e-6)
        mean, part = self.tokens, self.prompt_part
        work = part * max(tokens.inputs - tokens.cached, 1.0) / max(mean.inputs - mean.cached, 1.0)
        if mean.outputs > 1.0:
            work += (1.0 - part) * (max(tokens.outputs, 1.0) - 1.0) / (mean.outputs - 1.0)
        return max(work, 1e-6)

    @property
    def prompt_part(self) -> float:
        """Part of a mean call's work that is its prompt's."""
        if self.tokens.outputs <= 1.0:
            return 1.0
        first_s = self.server.concurrency[0] / self.server.throughput_rps[0]
        part = self.ttft_s[0] / first_s
        if np.isfinite(part):
            return min(max(part, 0.0), 1.0)
        prompt = max(self.tokens.inputs - self.tokens.cached, 1.0)
        return prompt / (prompt + OUTPUT_TOKEN_WORK * (self.tokens.outputs - 1.0))

    @property
    def capacity_rps(self) -> float:
        """Throughput with as many calls in flight as the batch and the KV cache hold.

        The largest where the curve rises up to there; where it falls after its peak less than
        that, since a queue that has once grown past the peak is worked off at this rate.
        """
        return self.server.limit_rps

    @property
    def usable_rps(self) -> float:
        """Capacity: 95% of it is stable."""
        return self.capacity_rps

    def interval_pct(self, in_flight: float) -> float:
        """Half-width of the 95% interval of the latency at so many calls in flight, in percent."""
        return self.basis.interval_pct(in_flight)

    def rests_on(self, arrivals_rps: float, burst: int = 1) -> RestsOn:
        """Parts of this curve's statement at a load: those of the calls that end in each state.

        A load that the replica cannot keep up with rests on its end.
        """
        if arrivals_rps >= self.server.limit_rps * (1.0 - 1e-6):
            return self.basis.rests_on([self.server.concurrency[-1]], [1.0])
        states, weights = self.server.call_states(arrivals_rps, burst)
        return self.basis.rests_on(states, weights)

    def latency_s(self, arrivals_rps: float, burst: int = 1) -> float:
        """Mean latency under Poisson arrivals of ``burst`` calls at a time; may be infinite."""
        one = np.zeros(1, dtype=np.int64)
        return float(latencies_s([self], one, np.array([arrivals_rps]), one + burst)[0])

    def call_times(self, arrivals_rps: float, burst: int = 1) -> tuple[Floats, Floats, Floats]:
        """Distribution of a call at a load: (weights, latency_s, ttft_s) over calls in flight.

        The weighted mean of the latency is ``latency_s``. TTFT is NaN where it is unknown.
        Raises ValueError where the replica cannot keep up.
        """
        states, weights = self.server.call_states(arrivals_rps, burst)
        latency_s = states / self.server.rate_rps(states)
        last_s = self.server.concurrency[-1] / self.server.throughput_rps[-1]
        ttft_s = np.interp(states, self.server.concurrency, self.ttft_s)
        # Beyond the last point calls wait before their first token.
        ttft_s = ttft_s + np.maximum(latency_s - last_s, 0.0) * (
            states > self.server.concurrency[-1]
        )
        return weights, latency_s, np.minimum(ttft_s, latency_s)

    def flags_at(self, arrivals_rps: float, burst: int = 1) -> tuple[str, ...]:
        """All flags that hold at this load."""
        found = list(self.flags)
        first = self.server.concurrency[0]
        in_flight = arrivals_rps * self.latency_s(arrivals_rps, burst)
        if in_flight < first and first > 1.0:
            found.append(
                f"below_first_concurrency: {in_flight:.1f} calls in flight, latency held flat "
                f"below {first:g}"
            )
        return tuple(found)


def _alone_s(engine: EngineModel, tokens: TokenLengths) -> float:
    """Latency of a call that is alone; whether it fits the KV cache is not asked here."""
    free = replace(engine, kv_tokens=None)
    outputs = max(tokens.outputs, 1.0)
    return free.closed_loop(1.0, max(tokens.inputs, 1.0), outputs, tokens.cached).latency_s


def latencies_s(curves: Sequence[Curve], which: Ints, loads_rps: Floats, bursts: Ints) -> Floats:
    """Mean latencies of many (curve, load, burst) at once; ``which`` indexes ``curves``."""
    return mean_latencies_s([c.server for c in curves], which, loads_rps, bursts)
