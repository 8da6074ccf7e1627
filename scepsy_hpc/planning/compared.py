"""Predicted and simulated side by side: each plan is simulated before its figures are printed.

The simulation takes the curves that the search took, so it does not ask whether a profile is right;
it asks whether what the pipeline says of queues, bursts, fork-joins and drains comes about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.planning.batch_ends import makespans_s
from scepsy_hpc.planning.case import Case
from scepsy_hpc.planning.check import HALF_WIDTH_PCT, checked, replications
from scepsy_hpc.planning.offers import Offers
from scepsy_hpc.planning.outline import outline
from scepsy_hpc.planning.pipeline.makespan import ClosedBatch, makespan
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline
from scepsy_hpc.planning.pipeline.predict import closed_state
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, Open
from scepsy_hpc.planning.simulation.outcome import mean_of_batches
from scepsy_hpc.planning.simulation.run_graph import RunGraph

SEED = 0
MOST_DIFFERENCE = 0.15
"""Beyond the simulation's interval, as a part of the simulated figure: more is flagged."""

_COMPARED = ("latency_mean_s", "latency_p50_s", "latency_p95_s", "makespan_s")
_CLOSED_PART = 0.25  # of the calls: a throughput is known sooner than a latency


@dataclass(frozen=True, slots=True)
class BatchCheck:
    """A simulated batch: its mean figures, and the makespan of each that was simulated."""

    figures: Figures
    makespans_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Checker:
    """Simulates choices on the traced runs; what was simulated once is kept."""

    graphs: Mapping[str, Sequence[RunGraph]]
    offers: Mapping[str, Offers]
    max_calls: int
    routing: Routing = Routing()  # noqa: RUF009 (it is frozen)
    known: dict[object, Figures] = field(default_factory=dict)

    def at_rates(
        self, pipeline: Pipeline, hosted: Sequence[HostedStage], part: float = 1.0
    ) -> Figures:
        """Poisson arrivals at the pipeline's rates; ``part`` of the calls are enough."""
        load = {name: Open(None, rate) for name, rate in pipeline.rates_rps.items()}
        return self._simulated(pipeline, hosted, load, part)

    def in_flight(
        self, pipeline: Pipeline, hosted: Sequence[HostedStage], num_runs: Mapping[str, int]
    ) -> Figures:
        """So many runs of each workflow always in flight."""
        load = {name: Closed(None, number) for name, number in num_runs.items()}
        return self._simulated(pipeline, hosted, load, _CLOSED_PART)

    def _simulated(
        self,
        pipeline: Pipeline,
        hosted: Sequence[HostedStage],
        load: Mapping[str, Arrivals],
        part: float,
    ) -> Figures:
        kinds = tuple((h.stage.name, h.curve.kind, h.num_replicas) for h in hosted)
        key = (kinds, tuple(load.items()), part, pipeline.agent_cores, self.routing)
        if key not in self.known:
            plan = outline(pipeline, hosted, self.offers, self.routing)
            self.known[key] = checked(
                plan,
                self.graphs,
                hosted,
                load,
                max_calls=max(int(part * self.max_calls), 1),
                seed=SEED,
                cores=pipeline.host.cores if pipeline.host else None,
                profiled_on_spans=self._on_spans(plan),
            )
        return self.known[key]

    def batch(
        self,
        pipeline: Pipeline,
        hosted: Sequence[HostedStage],
        batch: ClosedBatch,
        part: float = 1.0,
    ) -> BatchCheck:
        """The only workflow's batch, several times over; ``part`` of the calls are enough.

        A batch of more calls than half of those allowed is simulated in part: its makespan is
        then that part's, times what the prediction says of the whole against the part.
        """
        (name,) = self.graphs
        case, some = self._case(pipeline, hosted, batch, part)
        made, flags = replications(case, HALF_WIDTH_PCT, self._calls(part), SEED)
        factor = 1.0
        if some.num_tasks < batch.num_tasks:
            factor = _times_longer(pipeline, hosted, batch, some)
            flags.append(
                f"{name}: makespan_s: scaled: {some.num_tasks} of {batch.num_tasks} tasks were "
                f"simulated, the makespan is {factor:.3g} times theirs as predicted"
            )
        found = _scaled(mean_of_batches(made, SEED, flags), factor)
        return BatchCheck(found, tuple(factor * (b.overall.makespan_s or 0.0) for b in made))

    def ends_s(
        self,
        pipeline: Pipeline,
        hosted: Sequence[HostedStage],
        batch: ClosedBatch,
    ) -> list[float]:
        """Makespans of many such batches, as the calls allow."""
        case, some = self._case(pipeline, hosted, batch, 1.0)
        factor = 1.0
        if some.num_tasks < batch.num_tasks:
            factor = _times_longer(pipeline, hosted, batch, some)
        return [factor * time_s for time_s in makespans_s(case, SEED, self.max_calls)]

    def _calls(self, part: float) -> int:
        return max(int(part * self.max_calls), 1)

    def _case(
        self, pipeline: Pipeline, hosted: Sequence[HostedStage], batch: ClosedBatch, part: float
    ) -> tuple[Case, ClosedBatch]:
        """What is simulated of a batch: all of it, or the tasks for which there are calls."""
        (name,) = self.graphs
        graphs, plan = self.graphs[name], outline(pipeline, hosted, self.offers, self.routing)
        calls = sum(n.llm is not None for graph in graphs for n in graph.nodes) / len(graphs)
        most = int(self._calls(part) / 2 / max(calls, 1.0))
        most = max(most, 2 * batch.max_runs_in_flight, 1)
        some = replace(batch, num_tasks=min(batch.num_tasks, most))
        load = Closed(some.num_tasks, some.max_runs_in_flight)
        cores = pipeline.host.cores if pipeline.host else None
        return Case.of(plan, self.graphs, hosted, load, {}, self._on_spans(plan), cores), some

    def _on_spans(self, plan: Plan) -> set[str]:
        """Deployments whose points were measured on traced lengths, their dispersion included."""
        traced = {
            offer.bundle.sha256
            for offers in self.offers.values()
            for offer in offers.found
            if offer.bundle.header.spans_sha256
        }
        return {name for name, llm in plan.llms.items() if llm.bundle_sha256 in traced}


def _times_longer(
    pipeline: Pipeline, hosted: Sequence[HostedStage], batch: ClosedBatch, some: ClosedBatch
) -> float:
    """Predicted makespan of a batch over that of some of its tasks."""
    state, _ = closed_state(pipeline, hosted, batch.max_runs_in_flight, with_calls=False)
    alone, _ = closed_state(pipeline, hosted, 1, with_calls=False)
    return makespan(state, alone, batch)[0] / makespan(state, alone, some)[0]


def _scaled(found: Figures, factor: float) -> Figures:
    """With the makespan of the whole batch."""
    if factor == 1.0:
        return found

    def of(runs: RunFigures) -> RunFigures:
        low, high = runs.intervals.get("makespan_s", (math.nan, math.nan))
        intervals = {**runs.intervals}
        if math.isfinite(low):
            intervals["makespan_s"] = (factor * low, factor * high)
        whole_s = None if runs.makespan_s is None else factor * runs.makespan_s
        return replace(runs, makespan_s=whole_s, intervals=intervals)

    flows = {name: of(runs) for name, runs in found.per_workflow.items()}
    whole = of(found)
    assert isinstance(whole, Figures)
    return replace(whole, per_workflow=flows)


def with_differences(predicted: Figures, simulated: Figures) -> Figures:
    """The simulated figures, with a flag for each that the prediction misses by too much."""
    flags = [
        flag
        for name, runs in predicted.per_workflow.items()
        if name in simulated.per_workflow
        for flag in _differences(name, runs, simulated.per_workflow[name])
    ]
    return replace(simulated, flags=tuple(dict.fromkeys([*flags, *simulated.flags])))


def _differences(name: str, predicted: RunFigures, simulated: RunFigures) -> Iterator[str]:
    for key in _COMPARED:
        said, found = getattr(predicted, key), getattr(simulated, key)
        if said is None or found is None:
            continue
        low, high = simulated.intervals.get(key, (found, found))
        beyond = beyond_interval(said, found, (low, high))
        if beyond > MOST_DIFFERENCE and key not in simulated.intervals:
            yield (
                f"{name}: {key}: differs: predicted {said:.4g} s, simulated {found:.4g} s (no "
                "interval: too few runs to say by how much); simulate more"
            )
        elif beyond > MOST_DIFFERENCE:
            yield (
                f"{name}: {key}: differs: predicted {said:.4g} s, simulated {found:.4g} s (95% "
                f"interval {low:.4g} to {high:.4g} s): {100 * beyond:.0f}% beyond it; trust the "
                "simulation"
            )


def beyond_interval(predicted: float, simulated: float, interval: tuple[float, float]) -> float:
    """How far a prediction lies outside the interval, as a part of the simulated figure."""
    outside = max(interval[0] - predicted, predicted - interval[1], 0.0)
    if outside == 0.0:
        return 0.0
    return outside / simulated if simulated > 0 else math.inf


def with_closed_throughput(
    simulated: Figures, closed: Figures, planned_rps: Mapping[str, float], num_runs: int
) -> Figures:
    """The simulated figures with the throughput of a closed load, which must carry the rate."""
    flags, flows = list(simulated.flags), dict(simulated.per_workflow)
    for name, runs in closed.per_workflow.items():
        reached, wanted = runs.throughput_rps, planned_rps[name]
        intervals = {**flows[name].intervals}
        intervals.pop("throughput_rps", None)
        if reached is None:
            flows[name] = replace(flows[name], throughput_rps=None, intervals=intervals)
            continue
        if "throughput_rps" in runs.intervals:
            intervals["throughput_rps"] = runs.intervals["throughput_rps"]
        flows[name] = replace(flows[name], throughput_rps=reached, intervals=intervals)
        high = runs.intervals.get("throughput_rps", (reached, reached))[1]
        if high < (1.0 - MOST_DIFFERENCE) * wanted:
            flags.insert(
                0,
                f"{name}: throughput_rps: differs: planned {wanted:.4g} runs/s, a closed load "
                f"reaches {reached:.4g} runs/s in simulation",
            )
    said = f"simulated with {num_runs} runs always in flight"
    if any(runs.throughput_rps is None for runs in closed.per_workflow.values()):
        said = f"not {said}: that takes more calls (--check-calls)"
    flags.append(
        f"throughput_rps: closed: {said}; latencies are those of Poisson arrivals at the planned "
        "rates"
    )
    total = [runs.throughput_rps for runs in flows.values()]
    whole = sum(x for x in total if x is not None) if None not in total else None
    intervals = {k: v for k, v in simulated.intervals.items() if k != "throughput_rps"}
    if len(flows) == 1:
        (only,) = flows.values()
        intervals |= {k: v for k, v in only.intervals.items() if k == "throughput_rps"}
    return replace(
        simulated,
        throughput_rps=whole,
        per_workflow=flows,
        intervals=intervals,
        flags=tuple(dict.fromkeys(flags)),
    )
