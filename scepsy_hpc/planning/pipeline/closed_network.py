"""A fixed number of runs in flight over load-dependent stages: throughput of a closed batch.

Each stage holds the runs that are waiting for one LLM; tool time is a delay. Throughput and queue
lengths come from the product form of a closed network (Buzen's convolution), exact for one stage
without tools, where k runs in flight simply keep k x parallelism calls in flight. All weights are
tilted to near the answer, so that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from scepsy_hpc.errors import InputError
from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.pipeline.pipeline import run_latency_s

_MAX_POPULATION = 20_000
_NUM_TILTS = 6


@dataclass(frozen=True, slots=True)
class ClosedStage:
    """One LLM as a batch of equal runs sees it.

    ``calls_per_run`` calls, ``parallelism`` of them in flight while the run is at this LLM, over
    ``num_replicas`` replicas that share them evenly.
    """

    server: Server
    num_replicas: int
    calls_per_run: float
    parallelism: float

    def runs_rps(self, num_runs: Floats) -> Floats:
        """Runs per second that leave the stage with so many runs at it."""
        in_flight = self.parallelism * num_runs / self.num_replicas
        return self.num_replicas * self.server.rate_rps(in_flight) / self.calls_per_run


@dataclass(frozen=True, slots=True)
class ClosedState:
    """Steady state: runs per second, length of a run, latency of a call in each stage.

    ``waiting_s``: what waiting for cores adds to a run.
    """

    throughput_rps: float
    run_s: float
    call_latency_s: tuple[float, ...]
    waiting_s: float = 0.0


def closed_batch(
    stages: Sequence[ClosedStage],
    num_runs: int,
    overlap: float,
    tool_time_s: float,
    host: ClosedStage | None = None,
    with_calls: bool = True,
) -> ClosedState:
    """Steady state with ``num_runs`` runs in flight, by Little's law.

    Without ``with_calls`` the latencies of calls, which take the most work, are left out.
    ``host``: the cores that agents share, whose CPU time is part of the tool time.
    Different LLMs of one run overlap: while it is at any of them it stands at 1 / ``overlap``
    stages at once. So the network holds the population at which throughput x run length equals
    ``num_runs``. Raises ValueError for a population below 1.
    """
    if num_runs < 1:
        raise ValueError(f"num_runs ({num_runs}) must be at least 1")
    population, waiting_s = float(num_runs), 0.0
    cpu_s = float(1.0 / host.runs_rps(np.ones(1))[0]) if host else 0.0
    delay_s = max(tool_time_s - cpu_s, 0.0)
    llms, stages = len(stages), [*stages, *([host] if host else [])]
    # Steps that come close to each other lie between the same whole populations.
    at: _At = cache(lambda whole: _throughput(stages, whole, delay_s))
    for _ in range(40):
        rate_rps = _between(at, population)
        host_s = _time_at_last(at, population, llms) if host else 0.0
        waiting_s = max(host_s - cpu_s, 0.0)
        llm_s = max(population / rate_rps - delay_s - host_s, 0.0)
        run_s = run_latency_s(llm_s, tool_time_s + waiting_s, overlap)
        num_now = rate_rps * run_s
        if abs(num_now - num_runs) < 1e-6 * num_runs:
            break
        population *= 1.0 + 0.8 * (num_runs / num_now - 1.0)
    if not with_calls:
        return ClosedState(rate_rps, run_s, (), waiting_s)
    whole = max(round(population), 1)
    times_s = [_time_s(at, whole, index) for index in range(llms)]
    # Queues at the nearest whole population, stretched to the length at the one between.
    stretch = llm_s / sum(times_s)
    latencies = tuple(
        stretch * time_s * stage.parallelism / stage.calls_per_run
        for time_s, stage in zip(times_s, stages[:llms], strict=True)
    )
    return ClosedState(rate_rps, run_s, latencies, waiting_s)


_At = Callable[[int], tuple[float, list[Floats]]]


def _time_s(at: _At, population: int, index: int) -> float:
    """Seconds of a run at a stage."""
    rate_rps, weights = at(population)
    return _mean_queue(weights, index, population) / rate_rps


def _time_at_last(at: _At, population: float, index: int) -> float:
    """Seconds of a run at the last stage, linear between whole populations."""
    low = max(int(population), 1)
    times_s = [_time_s(at, n, index) for n in (low, low + 1)]
    return times_s[0] + min(population - low, 1.0) * (times_s[1] - times_s[0])


def _between(at: _At, population: float) -> float:
    """Throughput, linear between whole populations."""
    low = max(int(population), 1)
    part = min(max(population - low, 0.0), 1.0)
    rate_rps = at(low)[0]
    if part < 1e-9:
        return rate_rps
    return rate_rps + part * (at(low + 1)[0] - rate_rps)


def closed_times(
    stages: Sequence[ClosedStage], population: int, tool_time_s: float
) -> tuple[float, list[float]]:
    """Throughput (runs/s) and seconds at each stage with ``population`` runs, one place each.

    Raises ValueError for a population that would take too long.
    """
    rate_rps, weights = _throughput(stages, population, tool_time_s)
    queues = [_mean_queue(weights, index, population) for index in range(len(stages))]
    return rate_rps, [queue / rate_rps for queue in queues]


def _throughput(
    stages: Sequence[ClosedStage], population: int, tool_time_s: float
) -> tuple[float, list[Floats]]:
    """Throughput, and the weights of each station at a tilt close to it."""
    if population > _MAX_POPULATION:
        raise InputError(
            f"{population} runs in flight are more than can be predicted: at most {_MAX_POPULATION}"
        )
    tilt = _first_guess(stages, population, tool_time_s)
    found = tilt
    for _ in range(_NUM_TILTS):
        weights = [_stage_weights(stage, population, tilt) for stage in stages]
        if tool_time_s > 0:
            weights.append(_delay_weights(tool_time_s, population, tilt))
        total = weights[0]
        for other in weights[1:]:
            total = _convolve(total, other, population)
        if total[population] <= 0 or total[population - 1] <= 0:
            tilt *= 1.5 if total[population] <= 0 else 0.5
            continue
        found = float(tilt * total[population - 1] / total[population])
        if abs(found / tilt - 1.0) < 0.2:
            break
        tilt = found
    return found, weights


def _first_guess(stages: Sequence[ClosedStage], population: int, tool_time_s: float) -> float:
    """The smaller of what the stages can do and what an idle system would."""
    one = np.ones(1)
    idle_s = sum(float(1.0 / stage.runs_rps(one)[0]) for stage in stages) + tool_time_s
    most = min(float(stage.runs_rps(one * population)[0]) for stage in stages)
    return min(most, population / idle_s)


def _stage_weights(stage: ClosedStage, population: int, tilt: float) -> Floats:
    rates = stage.runs_rps(np.arange(1, population + 1, dtype=np.float64))
    return _normal(np.concatenate([[0.0], np.cumsum(np.log(tilt) - np.log(rates))]))


def _delay_weights(delay_s: float, population: int, tilt: float) -> Floats:
    steps = np.log(tilt * delay_s) - np.log(np.arange(1, population + 1, dtype=np.float64))
    return _normal(np.concatenate([[0.0], np.cumsum(steps)]))


def _normal(logs: Floats) -> Floats:
    return np.asarray(np.exp(logs - logs.max()))


def _convolve(left: Floats, right: Floats, population: int) -> Floats:
    found = np.convolve(left, right)[: population + 1]
    return np.asarray(found / found.max())


def _mean_queue(weights: Sequence[Floats], index: int, population: int) -> float:
    """Mean runs at one stage: its weights against all the others'."""
    others = np.zeros(population + 1)
    others[0] = 1.0
    for other in (w for i, w in enumerate(weights) if i != index):
        others = _convolve(others, other, population)
    joint = weights[index] * others[::-1]
    return float((np.arange(population + 1) * joint).sum() / joint.sum())
