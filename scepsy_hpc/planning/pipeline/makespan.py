"""How long a closed batch takes: fill, steady state and drain, run by run.

Each traced run keeps its own tool time; waiting stretches its LLM time only, as far as other runs
are in flight beside it. Starts are spread over the time until the last one, so the last end is the
largest of start + length over all runs: by the places (each start takes any run) or by the runs
(each run stands in any place), whichever says more. As in the simulation, every traced run comes
equally often. List scheduling bounds it: no shorter than the work of one place or the longest run,
no longer than both together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.pipeline.closed_network import ClosedState

_ONE_BY_ONE = 32
"""Longest traced runs that are kept as they are; of the rest as many lots are made."""
_PLACES = 8
_TIMES = 160
_STEPS = 24
_FEWEST_KNOWN = 2


@dataclass(frozen=True, slots=True)
class ClosedBatch:
    """A closed batch: how many tasks, how many runs at a time.

    ``run_lengths_s`` are those of the traced runs, ``tool_times_s`` what of each is outside any LLM
    call; they say how much runs differ.
    """

    num_tasks: int
    max_runs_in_flight: int
    run_lengths_s: tuple[float, ...] = ()
    tool_times_s: tuple[float, ...] = ()

    @property
    def knows_runs(self) -> bool:
        """Whether it is known how much runs differ."""
        return len(self.run_lengths_s) >= _FEWEST_KNOWN


@dataclass(frozen=True, slots=True, eq=False)
class _Lots:
    """Traced runs, short ones that are alike put together: shape (L,), times in s."""

    num: Floats
    tool_s: Floats
    llm_s: Floats

    def mean(self, values: Floats) -> float:
        return float(self.num @ values / self.num.sum())

    def llm_factor(self, state: ClosedState) -> float:
        """What LLM time in this state is, over the traced."""
        llm_s = state.run_s - state.waiting_s - self.mean(self.tool_s)
        return max(llm_s, 0.0) / self.mean(self.llm_s)


@lru_cache(maxsize=8)
def _lots(lengths_s: tuple[float, ...], tool_times_s: tuple[float, ...]) -> _Lots:
    lengths = np.array(lengths_s or (1.0,))
    tools = np.array(tool_times_s) if tool_times_s else np.zeros(len(lengths))
    llms = np.maximum(lengths - tools, 0.0)
    if not llms.any():
        llms = np.ones(len(lengths))  # calls that took no time when traced: all runs alike
    order = np.argsort(lengths, kind="stable")
    short = max(len(order) - _ONE_BY_ONE, 0)
    parts = np.array_split(order[:short], min(short, _ONE_BY_ONE)) if short else []
    parts += np.split(order[short:], len(order) - short)
    return _Lots(
        np.array([float(len(part)) for part in parts]),
        np.array([tools[part].mean() for part in parts]),
        np.array([llms[part].mean() for part in parts]),
    )


def makespan(state: ClosedState, alone: ClosedState, batch: ClosedBatch) -> tuple[float, list[str]]:
    """Expected seconds from the first start to the last end, and flags.

    ``state`` is that of the batch's runs in flight, ``alone`` that of a single one.
    """
    flags = []
    if not batch.knows_runs:
        flags.append("makespan_s: how much runs differ is unknown; the drain is one mean run")
    lots = _lots(batch.run_lengths_s, batch.tool_times_s)
    work_s = batch.num_tasks / state.throughput_rps
    if not lots.tool_s.any():
        return max(_all_llm_s(state, batch, lots), work_s), flags
    starts_s, num_starts = _starts(state, batch, lots)
    ends_s = starts_s + _lengths_s(state, alone, lots, starts_s)
    found_s = _mean_largest_s(ends_s, lots.num, num_starts)
    return max(found_s, work_s), flags


def _all_llm_s(state: ClosedState, batch: ClosedBatch, lots: _Lots) -> float:
    """Where all of a run is LLM time: a steady rate until the last start, then the longest drains.

    A run stays on its replica, so what is left at the end is spread unevenly over them: the longest
    keeps the pace that it had beside the others.
    """
    last = min(batch.num_tasks, batch.max_runs_in_flight)
    lengths_s = (lots.llm_factor(state) * lots.llm_s)[:, None]
    drain_s, longest = (
        _mean_largest_s(lengths_s, lots.num, np.array([float(number)]))
        for number in (last, batch.num_tasks)
    )
    return max((batch.num_tasks - last) / state.throughput_rps + drain_s, longest)


def longest_s(run_s: float, batch: ClosedBatch) -> float:
    """Expected longest run of the batch, where LLMs stretch so far that the mean is ``run_s``."""
    lots = _lots(batch.run_lengths_s, batch.tool_times_s)
    factor = lots.llm_factor(ClosedState(1.0, run_s, ()))
    lengths_s = (lots.tool_s + factor * lots.llm_s)[:, None]
    return _mean_largest_s(lengths_s, lots.num, np.array([float(batch.num_tasks)]))


def _starts(state: ClosedState, batch: ClosedBatch, lots: _Lots) -> tuple[Floats, Floats]:
    """When runs start (s), and how many then: at once, spread out, and the last one."""
    at_once = min(batch.num_tasks, batch.max_runs_in_flight)
    later = batch.num_tasks - at_once
    if later == 0:
        return np.zeros(1), np.array([float(at_once)])
    last_s = _last_start_s(state, batch, lots)
    places = min(later - 1, _PLACES)
    between_s = last_s * (np.arange(places) + 0.5) / max(places, 1)
    each = (later - 1) / max(places, 1)
    return (
        np.concatenate([[0.0], between_s, [last_s]]),
        np.concatenate([[float(at_once)], np.full(places, each), [1.0]]),
    )


def _last_start_s(state: ClosedState, batch: ClosedBatch, lots: _Lots) -> float:
    """When the last run starts: all work, less what is then left of the runs in flight.

    Left is a mean run in each place, or more where some runs are far longer than the mean.
    """
    work_s = batch.num_tasks / state.throughput_rps
    at_once = min(batch.num_tasks, batch.max_runs_in_flight)
    later = batch.num_tasks - at_once
    lengths_s = lots.tool_s + state.waiting_s + lots.llm_factor(state) * lots.llm_s

    def is_too_late(at_s: float) -> bool:
        held_s = np.minimum(lengths_s, at_s)
        spread_s = held_s * (lengths_s - 0.5 * held_s) / at_s
        left_s = at_once * np.maximum(lengths_s - at_s, 0.0) + later * spread_s
        return work_s - lots.mean(left_s) / at_once < at_s

    low_s, high_s = 0.0, max(work_s - state.run_s, 0.0)
    if high_s <= 0.0 or not is_too_late(high_s):
        return high_s
    for _ in range(_STEPS):
        middle_s = 0.5 * (low_s + high_s)
        low_s, high_s = (low_s, middle_s) if is_too_late(middle_s) else (middle_s, high_s)
    return high_s


def _lengths_s(state: ClosedState, alone: ClosedState, lots: _Lots, starts_s: Floats) -> Floats:
    """Length of a run of each lot from each start, shape (L, starts).

    Its LLM time is stretched for that part of it in which the batch still has its runs in flight.
    """
    factor = lots.llm_factor(state)
    idle = min(lots.llm_factor(alone), factor)
    tool_s, llm_s = (lots.tool_s + state.waiting_s)[:, None], lots.llm_s[:, None]
    beside_s = starts_s[-1] + state.run_s - starts_s
    # A run of length x beside the others for b of it: x = tool + LLM (idle + (factor - idle) b/x).
    least_s = tool_s + idle * llm_s
    mixed_s = 0.5 * (least_s + np.sqrt(least_s**2 + 4.0 * (factor - idle) * llm_s * beside_s))
    return np.asarray(np.minimum(tool_s + factor * llm_s, mixed_s))


def _mean_largest_s(ends_s: Floats, num_traced: Floats, num_starts: Floats) -> float:
    """Expected largest end (s) where every traced run comes equally often, in any place.

    ``ends_s`` [L, S] by lot and start; ``num_traced`` [L] runs of a lot, ``num_starts`` [S].
    """
    times_s = np.unique(ends_s)
    if len(times_s) > _TIMES:  # the last ones decide
        half = _TIMES // 2
        rest = np.linspace(0, len(times_s) - half - 1, half).astype(np.int64)
        times_s = np.concatenate([times_s[rest], times_s[-half:]])
    ended = (ends_s[:, :, None] <= times_s).astype(np.float64)
    number, tasks = float(num_traced.sum()), float(num_starts.sum())
    by_place = np.einsum("l,lst->st", num_traced / number, ended)
    by_run = np.einsum("s,lst->lt", num_starts / tasks, ended)
    passes = float(tasks // number)
    rest_part = tasks / number - passes
    with np.errstate(divide="ignore"):
        places = num_starts @ np.log(np.minimum(by_place, 1.0))
        one = np.log(np.maximum(1.0 - rest_part * (1.0 - by_run), 0.0))
        if passes:
            one = one + passes * np.log(np.minimum(by_run, 1.0))
        runs = num_traced @ one
    none_later = np.exp(np.minimum(np.minimum(places, runs), 0.0))
    return float(times_s[0] + (np.diff(times_s) * (1.0 - none_later[:-1])).sum())
