"""Percentiles of run latency by replay, and plans that keep a limit on the 95th.

A percentile does not add up over LLMs, so the search cannot minimise it: ``ranking`` replays plans
of low mean in order and takes the first that keeps the limit. The plan says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline
from scepsy_hpc.planning.simulation.replay import Replay
from scepsy_hpc.planning.simulation.run_graph import RunGraph, run_graphs

_LATENCIES = tuple(f"latency_{key}_s" for key in ("mean", "p50", "p95", "p99"))
MOST_CALLS = 20_000
"""Calls replayed for a plan; of more, whole runs are left out, evenly."""


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """Traced runs by workflow, ready to be replayed."""

    graphs: Mapping[str, Sequence[RunGraph]]
    known: dict[object, Replay] = field(default_factory=dict)

    @classmethod
    def of(cls, spans: Mapping[str, Iterable[Span]]) -> Tails:
        """From the spans of each workflow. Raises InputError for spans that make no graph."""
        return cls({name: _thinned(run_graphs(mine)) for name, mine in spans.items()})

    def figures(
        self, pipeline: Pipeline, hosted: Sequence[HostedStage], with_intervals: bool = True
    ) -> dict[str, RunFigures]:
        """Percentiles of each workflow at the pipeline's rates. Raises InputError."""
        rates = pipeline.rates_rps
        loads = {host.stage.name: host.load(rates) for host in hosted}
        found = self._replay(pipeline.aliases).figures(loads, with_intervals=with_intervals)
        # A trace's runs waited for no cores: the mean wait is added to each.
        waiting_s = pipeline.waiting_s
        return {name: _later(figures, waiting_s[name]) for name, figures in found.items()}

    def p95_s(self, pipeline: Pipeline, hosted: Sequence[HostedStage]) -> float:
        """The largest 95th percentile over the workflows; infinite where it is unknown."""
        found = self.figures(pipeline, hosted, with_intervals=False).values()
        return max(f.latency_p95_s if f.latency_p95_s is not None else math.inf for f in found)

    def _replay(self, names: Mapping[str, Mapping[str, str]]) -> Replay:
        """The runs as one graph; candidates of one plan share it."""
        key = tuple((name, *sorted(mine.items())) for name, mine in names.items())
        if key not in self.known:
            self.known[key] = Replay.of(self.graphs, names)
        return self.known[key]


def _later(figures: RunFigures, by_s: float) -> RunFigures:
    """The figures of runs that all take longer by ``by_s``; null where that is unbounded."""
    if math.isinf(by_s):
        return RunFigures(num_runs=figures.num_runs)
    said = {name: getattr(figures, name) for name in _LATENCIES}
    moved = {name: value_s + by_s for name, value_s in said.items() if value_s is not None}
    both = {n: (low + by_s, high + by_s) for n, (low, high) in figures.intervals.items()}
    return replace(figures, intervals=both, **moved)


def _thinned(graphs: Sequence[RunGraph]) -> list[RunGraph]:
    total = sum(len(graph.nodes) for graph in graphs)
    step = max(-(-total // MOST_CALLS), 1)
    return list(graphs[::step])


def with_tails(predicted: Figures, found: Mapping[str, RunFigures]) -> Figures:
    """The prediction with replayed percentiles; unknown ones, and those of one run, stay null."""
    workflows = dict(predicted.per_workflow)
    flags = list(predicted.flags)
    for name, figures in found.items():
        if not figures.intervals or figures.latency_p95_s is None:
            flags.append(f"{name}: latency_p50_s, latency_p95_s: unknown; too few runs to replay")
            continue
        workflows[name] = replace(
            workflows[name],
            latency_p50_s=figures.latency_p50_s,
            latency_p95_s=figures.latency_p95_s,
        )
        flags += list(_notes(name, figures))
    only = next(iter(workflows.values())) if len(workflows) == 1 else None
    return replace(
        predicted,
        per_workflow=workflows,
        latency_p50_s=only.latency_p50_s if only else None,
        latency_p95_s=only.latency_p95_s if only else None,
        flags=tuple(flags),
    )


def _notes(name: str, figures: RunFigures) -> Iterator[str]:
    low_s, high_s = figures.intervals.get("latency_p95_s", (float("nan"), float("nan")))
    yield (
        f"{name}: latency_p50_s, latency_p95_s: by replay of {figures.num_runs} runs; 95% interval "
        f"of the latter {low_s:.4g} to {high_s:.4g} s"
    )
