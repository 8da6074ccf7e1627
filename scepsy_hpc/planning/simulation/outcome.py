"""Figures from a tally: of a steady state after its warm-up, and of batches over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.formats.figures import Figures, Intervals, LlmFigures, RunFigures
from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.simulation.hosts import Host
from scepsy_hpc.planning.simulation.steady import (
    Estimate,
    estimate,
    replicated,
    sectioned,
    warm_up_batches,
)
from scepsy_hpc.planning.simulation.tally import (
    NUM_SECTIONS,
    PER_SECTION,
    Seen,
    Series,
    Tally,
    widened,
)

PERCENTILES = {"latency_p50_s": 0.50, "latency_p95_s": 0.95, "latency_p99_s": 0.99}


@dataclass(frozen=True, slots=True)
class SteadyWindow:
    """Batches ``first`` .. ``last`` - 1 of a tally, of ``size`` runs, and how long each lasted.

    ``settled``: the warm-up before it was found.
    """

    first: int
    last: int
    size: int
    duration_s: Floats
    settled: bool

    @classmethod
    def of(cls, tally: Tally) -> SteadyWindow:
        """What is left of the wanted runs after warm-up."""
        size = tally.flush()
        last = tally.wanted // size
        counts, sums = tally.all_runs.counts[:last], tally.all_runs.sums[:last]
        known = counts > 0
        first = 0
        if np.any(known):
            means = sums[known] / counts[known]
            first = int(np.flatnonzero(known)[warm_up_batches(means)]) if len(means) > 1 else 0
        starts_s = tally.starts.sums / np.maximum(tally.starts.counts, 1.0)
        # Runs that were all sent at once, at the start of a closed load, say nothing of its rate.
        at_once = int(np.count_nonzero(starts_s[:last] == 0.0))
        settled = (first < last // 2 and at_once <= last // 2) or last < 4
        first = max(first, min(at_once, last - 1))
        duration_s = np.diff(starts_s[first:last])
        duration_s = np.append(duration_s, duration_s.mean() if len(duration_s) else math.nan)
        return cls(first, last, size, duration_s, settled)

    @property
    def length_s(self) -> float:
        """From its first run's start to the start of the run after its last."""
        return float(self.duration_s.sum())

    def estimate(self, series: Series) -> Estimate:
        """Mean latency."""
        return estimate(series.sums[self.first : self.last], series.counts[self.first : self.last])

    def gap(self, ended: Series, in_flight: int | None) -> Estimate:
        """Mean time (s) between runs, failed ones too."""
        took_s = self.duration_s
        if in_flight is not None:
            took_s = ended.sums[self.first : self.last] / in_flight
        return estimate(took_s, ended.counts[self.first : self.last])

    def count(self, series: Series) -> int:
        """How many there were, those of the warm-up too."""
        return round(float(series.counts[: self.last].sum()))

    def rate_rps(self, series: Series) -> float:
        """How many a second."""
        number = float(series.counts[self.first : self.last].sum())
        return number / self.length_s if self.length_s > 0 else 0.0

    def percentiles_s(self, series: Series) -> tuple[dict[str, float], Intervals]:
        """Percentiles and their intervals, over sections that lie wholly in the window.

        Fewer runs than a section holds are known one by one, and no interval is.
        """
        counts = series.counts[self.first : self.last]
        if self.last < PER_SECTION and counts.max(initial=0.0) == 1.0:
            each_s = series.sums[self.first : self.last][counts > 0]
            found_s = np.quantile(each_s, list(PERCENTILES.values()), method="inverted_cdf")
            return dict(zip(PERCENTILES, found_s.tolist(), strict=True)), {}
        sections = slice(-(-self.first // PER_SECTION), max(self.last // PER_SECTION, 1))
        places = range(NUM_SECTIONS)[sections]
        if not len(places) or not series.histogram[sections].sum():
            sections, places = slice(None), range(NUM_SECTIONS)
        whole = Seen.of(series, sections)
        rows = [Seen.of(series, slice(i, i + 1)) for i in places]
        values, intervals = {}, {}
        for key, part in PERCENTILES.items():
            values[key] = whole.quantile_s(part)
            found = sectioned(values[key], np.array([row.quantile_s(part) for row in rows]))
            if found is not None:
                intervals[key] = widened(found, whole.slack)
        return values, intervals


def steady_runs(
    window: SteadyWindow, series: Series, ended: Series, in_flight: int | None = None
) -> RunFigures:
    """Figures of runs in a steady state; their numbers count the warm-up too.

    ``in_flight``: so many runs are always in flight, and Little's law says how many end a second:
    they start in waves, so the times between starts say it less well.
    """
    mean = window.estimate(series)
    if not math.isfinite(mean.mean):
        return RunFigures(num_runs=window.count(ended), num_failed=window.count(ended))
    values, intervals = window.percentiles_s(series)
    if mean.interval is not None:
        intervals = {"latency_mean_s": mean.interval, **intervals}
    gap = window.gap(ended, in_flight)
    known = in_flight is None or window.settled
    if known and gap.interval is not None and gap.interval[0] > 0:
        intervals["throughput_rps"] = (1.0 / gap.interval[1], 1.0 / gap.interval[0])
    num_runs = window.count(ended)
    return RunFigures(
        latency_mean_s=mean.mean,
        throughput_rps=1.0 / gap.mean if known and gap.mean > 0 else None,
        num_runs=num_runs,
        num_failed=num_runs - window.count(series),
        intervals=intervals,
        **values,
    )


def steady_llms(
    window: SteadyWindow, tally: Tally, hosts: Mapping[str, Host]
) -> dict[str, LlmFigures]:
    """Figures of each deployment's calls in a steady state."""
    found = {}
    for (name, host), series in zip(hosts.items(), tally.calls, strict=True):
        number = window.count(series)
        mean_s = window.estimate(series).mean if number else math.nan
        values, _ = window.percentiles_s(series) if number else ({}, {})
        found[name] = _llm(host, number, window.rate_rps(series), mean_s, values)
    return found


def _llm(
    host: Host, num_calls: int, rate_rps: float, mean_s: float, values: Mapping[str, float]
) -> LlmFigures:
    return LlmFigures(
        num_calls=num_calls,
        num_replicas=host.num_replicas,
        server=host.server,
        utilisation=rate_rps / (host.num_replicas * host.curve.capacity_rps),
        calls_in_flight_mean=rate_rps * mean_s if num_calls else 0.0,
        latency_mean_s=mean_s if num_calls else None,
        latency_p50_s=values.get("latency_p50_s"),
        latency_p95_s=values.get("latency_p95_s"),
    )


@dataclass(frozen=True, slots=True)
class SimulatedBatch:
    """One simulated batch, fill and drain included; ``slack``: that of its percentiles."""

    overall: RunFigures
    per_workflow: dict[str, RunFigures]
    per_llm: dict[str, LlmFigures]
    slack: float = 0.0

    @classmethod
    def of(
        cls, tally: Tally, workflows: Sequence[str], hosts: Mapping[str, Host]
    ) -> SimulatedBatch:
        """Everything the tally has."""
        tally.flush()
        first_s, last_s = min(tally.first_s), max(tally.last_s)
        flows = {
            name: _batch_runs([runs], [ended], tally.last_s[i] - tally.first_s[i])
            for i, (name, runs, ended) in enumerate(
                zip(workflows, tally.runs, tally.ended, strict=True)
            )
        }
        calls = {}
        for (name, host), series in zip(hosts.items(), tally.calls, strict=True):
            mean_s, values = _of_series(series)
            number = round(float(series.counts.sum()))
            rate_rps = number / (last_s - first_s) if last_s > first_s else 0.0
            calls[name] = _llm(host, number, rate_rps, mean_s, values)
        overall = _batch_runs([tally.all_runs], tally.ended, last_s - first_s)
        return cls(overall, flows, calls, Seen.of(tally.all_runs).slack)


def _of_series(series: Series) -> tuple[float, dict[str, float]]:
    number = float(series.counts.sum())
    if not number:
        return math.nan, {}
    whole = Seen.of(series)
    return float(series.sums.sum()) / number, {
        key: whole.quantile_s(part) for key, part in PERCENTILES.items()
    }


def _batch_runs(runs: Sequence[Series], ended: Sequence[Series], makespan_s: float) -> RunFigures:
    num_ok = round(sum(float(series.counts.sum()) for series in runs))
    num_runs = round(sum(float(series.counts.sum()) for series in ended))
    mean_s, values = _of_series(runs[0])
    return RunFigures(
        throughput_rps=num_runs / makespan_s if makespan_s > 0 else 0.0,
        latency_mean_s=mean_s if num_ok else None,
        makespan_s=makespan_s,
        num_runs=num_runs,
        num_failed=num_runs - num_ok,
        **values,  # type: ignore[arg-type]
    )


def mean_of_batches(batches: Sequence[SimulatedBatch], seed: int, flags: Sequence[str]) -> Figures:
    """Means over batches of several seeds, with intervals."""
    first, slack = batches[0], max(batch.slack for batch in batches)
    return Figures.of(
        _mean_runs([batch.overall for batch in batches], slack),
        how="simulated",
        seed=seed,
        per_workflow={
            name: _mean_runs([batch.per_workflow[name] for batch in batches], slack)
            for name in first.per_workflow
        },
        per_llm={
            name: _mean_llm([batch.per_llm[name] for batch in batches]) for name in first.per_llm
        },
        flags=tuple(dict.fromkeys(flags)),
    )


_OF_RUNS = ("throughput_rps", "latency_mean_s", *PERCENTILES, "makespan_s")


def _mean_runs(many: Sequence[RunFigures], slack: float) -> RunFigures:
    values, intervals = {}, {}
    for key in _OF_RUNS:
        known = [v for v in (getattr(one, key) for one in many) if v is not None]
        if len(known) < len(many):
            continue
        found = replicated(np.array(known))
        values[key] = found.mean
        if found.interval is not None:
            binned = slack if key in PERCENTILES else 0.0
            intervals[key] = widened(found.interval, binned)
    failed = round(float(np.mean([one.num_failed or 0 for one in many])))
    return replace(many[0], num_failed=failed, intervals=intervals, **values)  # type: ignore[arg-type]


def _mean_llm(many: Sequence[LlmFigures]) -> LlmFigures:
    values: dict[str, float] = {}
    for key in (
        "utilisation",
        "latency_mean_s",
        "latency_p50_s",
        "latency_p95_s",
        "calls_in_flight_mean",
    ):
        known = [v for v in (getattr(one, key) for one in many) if v is not None]
        if known:
            values[key] = float(np.mean(known))
    number = round(float(np.mean([one.num_calls or 0 for one in many])))
    return replace(many[0], num_calls=number, **values)  # type: ignore[arg-type]
