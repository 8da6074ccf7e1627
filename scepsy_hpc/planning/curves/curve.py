"""Curve of one (model, GPU type, link, TP, share) under given token lengths.

``making`` makes them from profiles; here is what they answer: latency, TTFT and the
distribution of a call at a load. What a curve rests on is said in its ``flags``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scepsy_hpc.bundles.shapes import MeanLengths, difference
from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import RestsOn
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.curves.basis import Basis
from scepsy_hpc.planning.curves.bursts import Bursts
from scepsy_hpc.planning.curves.group import group_states
from scepsy_hpc.planning.curves.many import lanes_of, many_latencies_s
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.tracing.demand.bursts import OUTPUT_TOKEN_WORK

MAX_UTILISATION = 0.95

_WIDE_PCT = 50.0
"""Half-widths of an interval above this are worth a flag."""


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

    def rests_on(self, arrivals_rps: float) -> RestsOn:
        """Parts of this curve's statement at a load of one replica: by where its calls end.

        Weighed by the stationary states of a replica that gets single arrivals at that rate; a
        load that it cannot keep up with rests on its end.
        """
        limit = self.server.limit_rps
        if arrivals_rps >= limit * (1.0 - 1e-6):
            return self.basis.rests_on([self.server.concurrency[-1]], [1.0])
        states = np.arange(1.0, math.ceil(self.server.concurrency[-1]) + 2.0)
        rates = self.server.rate_rps(states)
        load = max(arrivals_rps, 1e-9 * limit)
        logs = np.cumsum(np.log(load / rates))
        ending = np.exp(logs - logs.max()) * rates
        # The last state stands for all after it: X is flat there, so they fall off evenly.
        ending[-1] /= 1.0 - load / limit
        return self.basis.rests_on(states, ending)

    def latency_s(
        self, arrivals_rps: float, num_replicas: int = 1, bursts: Bursts | None = None
    ) -> float:
        """Mean latency of a call where so many replicas share the arrivals; may be infinite."""
        replicas, loads_rps = np.array([float(num_replicas)]), np.array([arrivals_rps])
        which = np.zeros(1, dtype=np.int64)
        return float(latencies_s([self], which, replicas, loads_rps, [bursts or Bursts()])[0])

    def seen_by_a_call(
        self, arrivals_rps: float, num_replicas: int = 1, bursts: Bursts | None = None
    ) -> tuple[Floats, Floats]:
        """What a fan-out finds when it comes: (weights, calls in flight a replica).

        Raises ValueError where the replicas cannot keep up.
        """
        bursts = bursts or Bursts()
        which, replicas = np.zeros(1, dtype=np.int64), np.array([float(num_replicas)])
        lanes = lanes_of([self.server], which, replicas, np.array([arrivals_rps]), [bursts])
        calls, weights, _ = group_states(self.server, lanes)
        # Poisson arrivals find one lot less than there are with them.
        return weights, np.maximum(calls - lanes.together[0] / num_replicas, 0.0)

    def slowness_s(self, in_flight: Floats) -> Floats:
        """Seconds that a mean call's work takes with so many calls in flight, itself included."""
        return np.asarray(in_flight / self.server.rate_rps(np.maximum(in_flight, 1e-9)))

    def flags_at(
        self, arrivals_rps: float, num_replicas: int = 1, bursts: Bursts | None = None
    ) -> tuple[str, ...]:
        """All flags that hold at this load of so many replicas."""
        each_rps = arrivals_rps / num_replicas
        return self.flags_with(each_rps * self.latency_s(arrivals_rps, num_replicas, bursts))

    def flags_with(self, in_flight: float) -> tuple[str, ...]:
        """All flags that hold with so many calls in flight at a replica."""
        found = list(self.flags)
        first = self.server.concurrency[0]
        if in_flight < first and first > 1.0:
            found.append(
                f"below_first_concurrency: {in_flight:.1f} calls in flight, latency held flat "
                f"below {first:g}"
            )
        off_pct = self.interval_pct(max(in_flight, 1.0)) if np.isfinite(in_flight) else 0.0
        if off_pct > _WIDE_PCT:
            found.append(
                f"wide_interval: the mean latency of a call may be off by a factor of "
                f"{1.0 + off_pct / 100.0:.1f} either way (95%)"
            )
        return tuple(found)


def _alone_s(engine: EngineModel, tokens: TokenLengths) -> float:
    """Latency of a call that is alone; whether it fits the KV cache is not asked here."""
    free = replace(engine, kv_tokens=None)
    outputs = max(tokens.outputs, 1.0)
    return free.closed_loop(1.0, max(tokens.inputs, 1.0), outputs, tokens.cached).latency_s


def latencies_s(
    curves: Sequence[Curve],
    which: Ints,
    num_replicas: Floats,
    loads_rps: Floats,
    bursts: Sequence[Bursts],
) -> Floats:
    """Mean latencies of many groups at once; infinite where they cannot keep up.

    ``which`` indexes ``curves`` and ``bursts``; ``loads_rps`` are those of whole groups.
    """
    return many_latencies_s([c.server for c in curves], which, num_replicas, loads_rps, bursts)
