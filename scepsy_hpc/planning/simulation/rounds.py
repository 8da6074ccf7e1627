"""How long calls take that are sent together to one deployment: draws of a common state.

The calls of a round find one state: the calls of others that a replica holds, from the chain of the
group (Poisson arrivals see time averages). That much stays beside them while they share their
replicas among themselves: of calls alike but for their work the smallest ends first, and the rest
go on in better company. So a fork-join waits for its largest call, which is not the slowest for its
size.

The state itself moves on, with a time constant of twice variance / (load x calls of a burst); what
a call sees is the mean over its life, of less variance, and rounds of one run that follow each
other are alike as far as the state is.
Latencies are stretched to have the mean that the pipeline has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.pipeline.pipeline import GroupLoad

_NUM_STATES = 24
_NUM_CELLS = 1024
_MOST_SIGMAS = 4.5
_MEMORY = 2.0
"""Replay's tails of serial chains agree best with simulation so (``bench/queueing.py``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """The calls of one deployment, by round and work.

    ``nodes``: index of each call in the replay; ``works`` in mean calls; ``rounds``: which round of
    all deployments, of ``round_runs`` which run. ``ranks``: place in the round, the least work
    first; ``sizes``: calls of the round.
    """

    nodes: Ints
    works: Floats
    rounds: Ints
    runs: Ints
    ranks: Ints
    sizes: Ints

    @classmethod
    def of(cls, nodes: Ints, works: Floats, rounds: Ints, round_runs: Ints) -> Rounds:
        """Put in order."""
        order = np.lexsort((works, rounds))
        nodes, works, rounds = nodes[order], works[order], rounds[order]
        _, first, counts = np.unique(rounds, return_index=True, return_counts=True)
        ranks = np.arange(len(nodes)) - np.repeat(first, counts)
        return cls(nodes, works, rounds, round_runs[rounds], ranks, np.repeat(counts, counts))

    def latencies_s(self, load: GroupLoad, found: Floats) -> Floats:
        """Latencies where the rounds found so many calls a replica; both (calls, draws)."""
        before = np.where(self.ranks > 0, np.roll(self.works, 1), 0.0)
        beside = np.maximum((self.sizes - self.ranks) / load.num_replicas, 1.0)
        steps_s = load.curve.slowness_s(found + beside[:, None])
        steps_s *= (self.works - before)[:, None]
        for rank in range(1, int(self.ranks.max(initial=0)) + 1):
            at = np.flatnonzero(self.ranks == rank)
            steps_s[at] += steps_s[at - 1]
        return steps_s


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What rounds find at a load, as a function of a standard normal draw.

    ``calls`` a replica at ``_NUM_CELLS`` equal steps of it; ``memory_s`` is the time constant,
    ``stretch`` what latencies are multiplied by.
    """

    load: GroupLoad
    calls: Floats
    mean: float
    memory_s: float
    latency_s: float

    @classmethod
    def of(cls, load: GroupLoad) -> States:
        """Of a group that keeps up."""
        weights, calls = load.curve.seen_by_a_call(
            load.arrivals_rps, load.num_replicas, load.bursts
        )
        mean = float(weights @ calls)
        variance = float(weights @ (calls - mean) ** 2) * load.num_replicas**2
        order = np.argsort(calls)
        up_to = np.cumsum(weights[order])
        # Calls that differ leave one by one: the state of their lots is forgotten sooner.
        lots_rps = max(load.arrivals_rps * load.bursts.size, 1e-12)
        memory_s = _MEMORY * variance / lots_rps
        place = np.searchsorted(up_to, _normal_cells() * up_to[-1])
        table = calls[order][np.minimum(place, len(calls) - 1)]
        return cls(load, table, mean, memory_s, load.latency_s)

    def found(self, rounds: Rounds, draws: Floats) -> Floats:
        """Calls a replica beside those of the round, averaged over the life of each call."""
        place = (draws / _MOST_SIGMAS + 1.0) * 0.5 * (_NUM_CELLS - 1)
        cells = np.clip(np.rint(place), 0, _NUM_CELLS - 1).astype(np.int64)
        lives = rounds.works * self.latency_s / max(self.memory_s, 1e-12)
        lives = np.maximum(lives, 1e-3)
        kept = np.sqrt(2.0 * (lives - 1.0 + np.exp(-lives)) / lives**2)
        return np.asarray(self.mean + (self.calls[cells] - self.mean) * kept[:, None])

    def likeness(self, rounds: Rounds) -> float:
        """Mean correlation of two rounds of one run that follow each other without a pause."""
        number = len(np.unique(rounds.rounds)) / max(len(np.unique(rounds.runs)), 1)
        if number <= 1.0:
            return 0.0
        step: float = math.exp(-self.latency_s / max(self.memory_s, 1e-12))
        step = min(step, 1.0 - 1e-6)
        total = step / (1.0 - step) * (number - (1.0 - step**number) / (1.0 - step))
        return float(min(max(2.0 * total / (number * (number - 1.0)), 0.0), 1.0))

    def stretch(self, rounds: Rounds) -> float:
        """What makes the mean latency that of the pipeline."""
        draws = np.interp(
            (np.arange(_NUM_STATES) + 0.5) / _NUM_STATES,
            _normal_cells(),
            np.linspace(-_MOST_SIGMAS, _MOST_SIGMAS, _NUM_CELLS),
        )
        found = self.found(rounds, np.broadcast_to(draws, (len(rounds.nodes), _NUM_STATES)))
        mean_s = float(rounds.latencies_s(self.load, found).mean())
        wanted_s = self.latency_s * float(rounds.works.mean())
        return wanted_s / mean_s if mean_s > 0 else 1.0


@cache
def _normal_cells() -> Floats:
    """Distribution function of the standard normal at equal steps."""
    steps = np.linspace(-_MOST_SIGMAS, _MOST_SIGMAS, _NUM_CELLS)
    return np.array([0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) for x in steps])
