"""Simulation of a plan until its figures are known well enough: what every plan is checked by.

A load without end (a rate, so many runs always in flight) is simulated until the 95% interval of
the mean run latency of every workflow is narrow enough, twice in a row, as intervals looked at
again and again are too narrow the first time they please; warm-up is dropped. A batch or given
arrival times are simulated whole, under several seeds. Either ends at ``max_calls``, and a wider
interval is flagged. A load that the plan cannot carry is said to be `overloaded`, without figures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import Figures, LlmFigures, ReplicaServer, RunFigures
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.case import Case
from scepsy_hpc.planning.pipeline.pipeline import HostedStage
from scepsy_hpc.planning.simulation.arrivals import Arrivals
from scepsy_hpc.planning.simulation.events import Simulation
from scepsy_hpc.planning.simulation.outcome import (
    SimulatedBatch,
    SteadyWindow,
    mean_of_batches,
    steady_llms,
    steady_runs,
)
from scepsy_hpc.planning.simulation.run_graph import RunGraph
from scepsy_hpc.planning.simulation.steady import replicated
from scepsy_hpc.planning.simulation.tally import Series, Tally

HALF_WIDTH_PCT = 5.0
MAX_CALLS = 200_000
_FEWEST_RUNS = 256
_FEWEST_CALLS = 2048
_FEWEST_BATCHES = 5
_MOST_BATCHES = 200
_PILE_PART, _PILE_RUNS = 0.01, 50
_FILLED = 4.0  # mean runs after which a system without overload is full
_AS_TRACED = 4.0
_BEYOND = 1.25
"""Calls beyond the most that may be sent while the last wanted runs end."""


def checked(
    plan: Plan,
    graphs: Mapping[str, Sequence[RunGraph]],
    hosted: Sequence[HostedStage],
    load: Arrivals | Mapping[str, Arrivals],
    *,
    half_width_pct: float = HALF_WIDTH_PCT,
    max_calls: int = MAX_CALLS,
    seed: int = 0,
    num_runs: int | None = None,
    cores: float | None = None,
    engine_models: Mapping[str, EngineModel] | None = None,
    profiled_on_spans: Collection[str] = (),
    server: ReplicaServer | None = None,
) -> Figures:
    """Simulated figures of traced runs on a plan. Raises InputError.

    ``hosted`` gives the curve of each deployment of ``plan.llms``; its engine model is the curve's
    own, else that of ``engine_models``. ``load``: `Open(None, rate)` and `Closed(None, in_flight)`
    are steady states, with a number of runs whole batches; open ones for all workflows are split by
    the plan's mix of rates. ``num_runs``: of a steady state so many runs, whatever the interval.
    ``cores``: those of the agents, where waiting for them is to be simulated. ``server``: what a
    replica is (see ``hosts.engines_used``).
    """
    case = Case.of(
        plan, graphs, hosted, load, engine_models or {}, profiled_on_spans, cores, server
    )
    endless = {mine.num_runs is None for mine in case.arrivals.values()}
    if len(endless) > 1:
        raise InputError("arrivals: some workflows have a number of runs and some go on for ever")
    if endless == {False}:
        return _batches(case, half_width_pct, max_calls, seed)
    verdict = case.offered.flags
    if verdict:
        return _overloaded(case, verdict, seed)
    return _steady(case, half_width_pct, max_calls, num_runs, seed)


def _overloaded(case: Case, flags: Sequence[str], seed: int) -> Figures:
    """No figures, as there is no steady state."""
    llms = {
        name: LlmFigures(
            utilisation=case.offered.utilisation.get(name),
            num_replicas=host.num_replicas,
            server=host.server,
        )
        for name, host in case.hosts.items()
    }
    return Figures(
        how="simulated",
        seed=seed,
        per_workflow={name: RunFigures() for name in case.graphs},
        per_llm=llms,
        flags=(*flags, *case.flags()),
    )


def _targets(case: Case, max_calls: int) -> Iterator[int]:
    """Numbers of runs after which the interval is looked at: powers of 2 and one in between."""
    most = max(int(max_calls / max(case.calls_per_run, 1e-9)), 1)
    most = min(most, max_calls)
    target = _FEWEST_RUNS
    while target < _FILLED * (case.all_in_flight or 0):
        target *= 2
    while target * case.calls_per_run < _FEWEST_CALLS and target < _FEWEST_CALLS:
        target *= 2
    while target < most:
        yield target
        half = 1 << (target.bit_length() - 1)
        target = 3 * half // 2 if target == half else 2 * half
    yield most


def _steady(
    case: Case, half_width_pct: float, max_calls: int, num_runs: int | None, seed: int
) -> Figures:
    wanted = half_width_pct / 100.0
    targets = [num_runs] if num_runs is not None else list(_targets(case, max_calls))
    tally = case.tally(targets[0])
    simulation = case.simulation(tally, seed)
    most = _BEYOND * max(max_calls, (num_runs or 0) * case.calls_per_run)
    simulation.most_calls = most + 1000.0 + 2.0 * (case.all_in_flight or 0) * case.calls_per_run
    narrow = 0
    for number, target in enumerate(targets):
        if number:
            tally.want(target)
        simulation.run()
        if not tally.is_done:
            break
        window = SteadyWindow.of(tally)
        widths = [window.estimate(series).half_width for series in tally.runs]
        narrow = narrow + 1 if window.settled and max(widths) <= wanted else 0
        if narrow == 2 and num_runs is None:
            break
    grown = _growth(case, simulation, tally)
    if grown:
        return _overloaded(case, [grown], seed)
    return _steady_figures(case, simulation, tally, wanted, seed)


def _growth(case: Case, simulation: Simulation, tally: Tally) -> str | None:
    """Whether runs pile up, although no deployment's capacity says so."""
    in_flight, come = tally.num_in_flight, tally.num_runs
    if tally.is_done and case.all_in_flight is not None:
        return None  # as many as were sent at the start
    said = f"{in_flight} of {come} runs were in flight after {simulation.num_calls} calls"
    lengths = [graph.traced_s for mine in case.graphs.values() for graph in mine]
    if not tally.is_done and simulation.now_s < 2.0 * sum(lengths) / len(lengths):
        return f"no_steady_state: {said}, no run's length after the start; simulate more calls"
    if tally.is_done and in_flight < max(_PILE_PART * come, _PILE_RUNS):
        return None
    size = tally.flush()
    ended = max(float(tally.all_runs.counts.sum()), 1.0)
    # Runs that wait without end take long, too: only such as are about as long as traced ones fill.
    longest_s = _AS_TRACED * sum(lengths) / len(lengths)
    length_s = min(float(tally.all_runs.sums.sum()) / ended, longest_s)
    if tally.is_done and simulation.now_s < _FILLED * length_s:
        return None  # as many runs come as are in flight in the end: they do not pile up, they fill
    if not tally.is_done and simulation.now_s < _FILLED * length_s:
        return f"too_few_calls: {said}, which is not enough to fill it; simulate more calls"
    last = come // size
    counts, sums = tally.seen.counts[:last], tally.seen.sums[:last]
    ends = [last * i // 4 for i in range(5)]
    means = [float(sums[a:b].sum()) / max(float(counts[a:b].sum()), 1.0) for a, b in pairwise(ends)]
    if means[1] < means[2] < means[3] and means[3] > 1.3 * means[1]:
        return f"overloaded: {said}, and the number grew: there is no steady state"
    if tally.is_done:
        return None
    return f"no_steady_state: {said}; simulate more calls"


def _steady_figures(
    case: Case, simulation: Simulation, tally: Tally, wanted: float, seed: int
) -> Figures:
    window = SteadyWindow.of(tally)
    runs = {
        name: steady_runs(window, series, ended, case.in_flight(name))
        for name, series, ended in zip(case.graphs, tally.runs, tally.ended, strict=True)
    }
    ended = Series()
    for one in tally.ended:
        ended.counts += one.counts
        ended.sums += one.sums
    flags = case.flags()
    if not window.settled:
        flags.append(
            f"no_steady_state: warm-up had not ended after half of {tally.wanted} runs; simulate "
            "more"
        )
    for name, series in zip(case.graphs, tally.runs, strict=True):
        flags += _wide(name, window.estimate(series).half_width, wanted, simulation.num_calls)
    overall = steady_runs(window, tally.all_runs, ended, case.all_in_flight)
    return Figures.of(
        overall,
        how="simulated",
        seed=seed,
        per_workflow=runs,
        per_llm=steady_llms(window, tally, case.hosts),
        flags=tuple(dict.fromkeys([*flags, *simulation.flags()])),
    )


def _wide(name: str, half_width: float, wanted: float, num_calls: int) -> list[str]:
    if half_width <= wanted:
        return []
    if not math.isfinite(half_width):
        return [
            f"{name}: wide_interval: no interval: too few runs to say how well the mean latency is "
            f"known, after {num_calls} calls; simulate more"
        ]
    return [
        f"{name}: wide_interval: the mean latency is known within {100 * half_width:.1f}%, not "
        f"{100 * wanted:g}%, after {num_calls} calls"
    ]


def _batches(case: Case, half_width_pct: float, max_calls: int, seed: int) -> Figures:
    made, flags = replications(case, half_width_pct, max_calls, seed)
    return mean_of_batches(made, seed, flags)


def replications(
    case: Case, half_width_pct: float, max_calls: int, seed: int
) -> tuple[list[SimulatedBatch], list[str]]:
    """A batch under several seeds, from ``seed`` on, and what its figures rest on."""
    wanted = half_width_pct / 100.0
    made: list[SimulatedBatch] = []
    num_calls, half_width = 0, math.inf
    flags: dict[str, None] = {}
    while len(made) < _MOST_BATCHES:
        number = sum(mine.num_runs or 0 for mine in case.arrivals.values())
        tally = case.tally(number)
        simulation = case.simulation(tally, seed + len(made))
        simulation.run()
        made.append(SimulatedBatch.of(tally, list(case.graphs), case.hosts))
        flags |= dict.fromkeys(simulation.flags())
        num_calls += simulation.num_calls
        half_width = _widest(made)
        if len(made) >= _FEWEST_BATCHES and half_width <= wanted:
            break
        if len(made) >= 2 and num_calls * (1 + 1 / len(made)) > max_calls:
            break
    said = [
        *case.flags(),
        *_wide("batch", half_width, wanted, num_calls),
        f"replicated: means over {len(made)} simulated batches, seeds {seed} to "
        f"{seed + len(made) - 1}",
    ]
    return made, [*said, *flags]


def _widest(made: Sequence[SimulatedBatch]) -> float:
    widths = []
    for name in made[0].per_workflow:
        means = [batch.per_workflow[name].latency_mean_s for batch in made]
        if all(mean is not None for mean in means):
            widths.append(replicated(np.array(means, dtype=np.float64)).half_width)
    return max(widths, default=0.0)
