"""What a simulation found: its timeline, and figures of runs and deployments from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scepsy_hpc.formats.figures import Figures, LlmFigures, RunFigures
from scepsy_hpc.metrics import Floats
from scepsy_hpc.planning.simulation.hosts import Host
from scepsy_hpc.planning.simulation.percentiles import bootstrap_intervals, latency_figures

_FEW_RUNS = 200


@dataclass(slots=True)
class Timeline:
    """What happened when. Runs and calls are numbered in order of their starts; times in s.

    ``run_traced`` is the index of the traced run. ``call_replica`` counts over all deployments.
    """

    workflows: tuple[str, ...]
    hosts: Mapping[str, Host]
    seed: int
    run_workflow: list[int] = field(default_factory=list)
    run_traced: list[int] = field(default_factory=list)
    run_start_s: list[float] = field(default_factory=list)
    run_end_s: list[float] = field(default_factory=list)
    run_is_ok: list[bool] = field(default_factory=list)
    call_run: list[int] = field(default_factory=list)
    call_deployment: list[str] = field(default_factory=list)
    call_replica: list[int] = field(default_factory=list)
    call_start_s: list[float] = field(default_factory=list)
    call_end_s: list[float] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    deployments: tuple[str, ...] = ()
    is_done: bool = False

    def __post_init__(self) -> None:
        self.deployments = tuple(self.hosts)

    def start_run(self, workflow: int, traced: int, now_s: float, is_ok: bool) -> int:
        """Number of a run that starts."""
        self.run_workflow.append(workflow)
        self.run_traced.append(traced)
        self.run_start_s.append(now_s)
        self.run_end_s.append(np.nan)
        self.run_is_ok.append(is_ok)
        return len(self.run_start_s) - 1

    def end_run(self, run: int, workflow: int, start_s: float, now_s: float, is_ok: bool) -> None:
        """A run has ended."""
        self.run_end_s[run] = now_s

    def start_call(self, run: int, deployment: int, replica: int, now_s: float) -> int:
        """Number of a call that starts."""
        self.call_run.append(run)
        self.call_deployment.append(self.deployments[deployment])
        self.call_replica.append(replica)
        self.call_start_s.append(now_s)
        self.call_end_s.append(np.nan)
        return len(self.call_start_s) - 1

    def end_call(self, call: int, deployment: int, start_s: float, now_s: float) -> None:
        """A call has ended."""
        self.call_end_s[call] = now_s


def result_of(timeline: Timeline) -> Figures:
    """Figures of the runs and of each deployment."""
    start_s, end_s = np.array(timeline.run_start_s), np.array(timeline.run_end_s)
    ok, workflow = np.array(timeline.run_is_ok), np.array(timeline.run_workflow)
    per_workflow = {}
    for index, name in enumerate(timeline.workflows):
        mine = workflow == index
        per_workflow[name] = _runs(start_s[mine], end_s[mine], ok[mine], timeline.seed)
    overall = _runs(start_s, end_s, ok, timeline.seed)
    flags = list(timeline.flags)
    few = [n for n, w in per_workflow.items() if w.num_ok < _FEW_RUNS]
    if few:
        flags.append(
            f"few_runs: {', '.join(few)}: fewer than {_FEW_RUNS} runs; read p95 and p99 with their "
            "intervals"
        )
    return Figures.of(
        overall,
        how="simulated",
        seed=timeline.seed,
        per_workflow=per_workflow,
        per_llm=_llms(timeline, overall.makespan_s or 0.0),
        flags=tuple(dict.fromkeys(flags)),
    )


def _runs(start_s: Floats, end_s: Floats, ok: Any, seed: int) -> RunFigures:
    makespan_s = float(end_s.max() - start_s.min())
    latency_s = (end_s - start_s)[ok]
    return replace(
        latency_figures(latency_s),
        num_runs=len(start_s),
        num_failed=int((~ok).sum()),
        makespan_s=makespan_s,
        throughput_rps=len(start_s) / makespan_s if makespan_s > 0 else 0.0,
        intervals=bootstrap_intervals(latency_s, seed),
    )


def _llms(timeline: Timeline, window_s: float) -> dict[str, LlmFigures]:
    names = np.array(timeline.call_deployment)
    latency_s = np.array(timeline.call_end_s) - np.array(timeline.call_start_s)
    found = {}
    for name, host in timeline.hosts.items():
        mine = latency_s[names == name] if len(names) else latency_s
        capacity = window_s * host.num_replicas * host.curve.capacity_rps
        figures = latency_figures(mine)
        found[name] = LlmFigures(
            num_calls=len(mine),
            num_replicas=host.num_replicas,
            server=host.server,
            utilisation=len(mine) / capacity if capacity > 0 else 0.0,
            calls_in_flight_mean=float(mine.sum()) / window_s if window_s > 0 else 0.0,
            latency_mean_s=figures.latency_mean_s,
            latency_p50_s=figures.latency_p50_s,
            latency_p95_s=figures.latency_p95_s,
        )
    return found
