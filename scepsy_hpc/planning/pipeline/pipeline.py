"""The Aggregate LLM Pipeline: one stage per LLM, additive in the stages, so searchable.

Latency of a run = overlap x sum over LLMs of (calls / parallelism) x latency of a call + tool
time; throughput = the smallest replicas x capacity / calls. Several workflows share a stage when
model and engine arguments agree: its load is the sum of theirs, its tokens mixed by calls. Source:
Scepsy (arXiv 2604.15186), with overlap, tool time and bursts added as the contract defines them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import DemandSummary, LlmDemand
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION, Curve, TokenLengths, latencies_s
from scepsy_hpc.planning.search.problem import OptionTable


@dataclass(frozen=True, slots=True)
class Use:
    """How one workflow uses a stage."""

    workflow: str
    alias: str
    calls_per_run: float
    parallelism: float
    fan_out: float
    tokens: TokenLengths

    @property
    def num_rounds(self) -> float:
        """Calls of a run that follow on each other: calls / parallelism."""
        return self.calls_per_run / self.parallelism


@dataclass(frozen=True, slots=True)
class Stage:
    """One deployment and everything that loads it. ``spec`` is what the workflows allow."""

    name: str
    spec: Llm
    uses: tuple[Use, ...]

    def calls_rps(self, rates_rps: Mapping[str, float]) -> float:
        """Calls per second at these rates of the workflows (runs per second)."""
        return sum(rates_rps[use.workflow] * use.calls_per_run for use in self.uses)

    def _mix(self, rates_rps: Mapping[str, float]) -> list[tuple[float, Use]]:
        """Each use and its part of the calls; equal parts where there are no calls."""
        total = self.calls_rps(rates_rps)
        if total <= 0:
            return [(1.0 / len(self.uses), use) for use in self.uses]
        return [(rates_rps[u.workflow] * u.calls_per_run / total, u) for u in self.uses]

    def tokens(self, rates_rps: Mapping[str, float]) -> TokenLengths:
        """Mean token lengths, mixed by calls."""
        mix = self._mix(rates_rps)
        return TokenLengths(
            sum(part * use.tokens.inputs for part, use in mix),
            sum(part * use.tokens.outputs for part, use in mix),
            sum(part * use.tokens.cached for part, use in mix),
        )

    def burst(self, rates_rps: Mapping[str, float], num_replicas: int) -> int:
        """Calls of one fan-out that reach the same replica: the dispatcher spreads them evenly."""
        fan_out = sum(part * use.fan_out for part, use in self._mix(rates_rps))
        return max(math.ceil(max(round(fan_out, 2), 1.0) / num_replicas - 1e-9), 1)


@dataclass(frozen=True, slots=True)
class WorkflowLoad:
    """What of a workflow does not depend on the LLMs, and the rate that is wanted of it."""

    name: str
    rate_rps: float
    overlap: float
    tool_time_s: float


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Workflows over shared stages."""

    workflows: tuple[WorkflowLoad, ...]
    stages: tuple[Stage, ...]

    @property
    def rates_rps(self) -> dict[str, float]:
        """Rate wanted, by workflow."""
        return {workflow.name: workflow.rate_rps for workflow in self.workflows}

    @property
    def total_rps(self) -> float:
        """Runs per second of all workflows together."""
        return sum(workflow.rate_rps for workflow in self.workflows)

    @property
    def tool_time_s(self) -> float:
        """Tool time of a run, weighted by rate: the part of the latency that no GPU changes."""
        return sum(w.rate_rps * w.tool_time_s for w in self.workflows) / self.total_rps

    def at_rates(self, factor: float) -> Pipeline:
        """The same mix of workflows at ``factor`` times the rates."""
        scaled = tuple(
            WorkflowLoad(w.name, w.rate_rps * factor, w.overlap, w.tool_time_s)
            for w in self.workflows
        )
        return Pipeline(scaled, self.stages)

    def rounds(self, stage: Stage) -> float:
        """Seconds of a run's mean latency per second of a call's latency in ``stage``."""
        overlap = {w.name: w.overlap for w in self.workflows}
        rates = self.rates_rps
        return (
            sum(rates[u.workflow] * overlap[u.workflow] * u.num_rounds for u in stage.uses)
            / self.total_rps
        )

    def latency_s(self, workflow: str, call_latency_s: Mapping[str, float]) -> float:
        """Mean latency of a run, from the mean latency of a call in each stage."""
        load = next(w for w in self.workflows if w.name == workflow)
        llm_s = 0.0
        for stage in self.stages:
            for use in stage.uses:
                if use.workflow == workflow and use.calls_per_run > 0:
                    llm_s += use.num_rounds * call_latency_s[stage.name]
        return load.overlap * llm_s + load.tool_time_s

    def theta(self, stage: Stage, curve: Curve, num_replicas: int) -> float:
        """Times the wanted rates that a stage can serve at capacity; infinite without calls."""
        calls = stage.calls_rps(self.rates_rps)
        return num_replicas * curve.capacity_rps / calls if calls > 0 else math.inf

    def tables(
        self, candidates: Mapping[str, Sequence[tuple[Curve, int]]], with_cost: bool = True
    ) -> tuple[OptionTable, ...]:
        """Options for the search: every curve of every stage at 1 .. most replicas.

        ``candidates`` gives for each stage the curves and how many replicas of each there is room
        for. The throughput of an option is in units of the wanted rates. Without cost (for the
        highest rate) only throughput matters and costs are zero.
        """
        found: list[OptionTable] = []
        rates = self.rates_rps
        jobs: list[tuple[Stage, Curve, np.ndarray]] = []
        for stage in self.stages:
            for curve, most in candidates[stage.name]:
                jobs.append((stage, curve, np.arange(1, most + 1)))
        costs = self._costs(jobs) if with_cost else [np.zeros(len(r)) for _, _, r in jobs]
        for (stage, curve, replicas), cost_s in zip(jobs, costs, strict=True):
            calls = stage.calls_rps(rates)
            yields = replicas * curve.usable_rps / calls if calls > 0 else replicas * math.inf
            found.append(
                OptionTable(
                    stage.name,
                    *curve.kind,
                    num_replicas=replicas.astype(np.int64),
                    cost_s=cost_s,
                    throughput_rps=np.asarray(yields, dtype=np.float64),
                    payload=curve,
                )
            )
        return tuple(found)

    def _costs(self, jobs: Sequence[tuple[Stage, Curve, np.ndarray]]) -> list[np.ndarray]:
        """Cost of each option: its seconds of a run's mean latency; infinite above 95%."""
        rates = self.rates_rps
        curves = [curve for _, curve, _ in jobs]
        which, loads, bursts, rounds = [], [], [], []
        for index, (stage, curve, replicas) in enumerate(jobs):
            load = stage.calls_rps(rates) / replicas
            near = load <= MAX_UTILISATION * curve.usable_rps * (1 + 1e-12)
            which.append(np.full(len(replicas), index))
            loads.append(np.where(near, load, np.inf))
            # Above the fan-out every replica gets single calls.
            first = [stage.burst(rates, int(r)) for r in replicas[: 1 + _most_fan_out(stage)]]
            bursts.append(np.array([*first, *[1] * (len(replicas) - len(first))]))
            rounds.append(np.full(len(replicas), self.rounds(stage)))
        flat = np.concatenate(loads)
        usable = np.isfinite(flat)
        cost_s = np.full(len(flat), np.inf)
        cost_s[usable] = latencies_s(
            curves,
            np.concatenate(which)[usable],
            flat[usable],
            np.concatenate(bursts)[usable].astype(np.int64),
        )
        weights = np.concatenate(rounds)
        # An LLM that is never called costs nothing, whatever its latency.
        cost_s = np.where(weights > 0, cost_s * weights, np.where(usable, 0.0, np.inf))
        return np.split(cost_s, np.cumsum([len(r) for _, _, r in jobs])[:-1])


def _most_fan_out(stage: Stage) -> int:
    return math.ceil(max(use.fan_out for use in stage.uses))


def use_of(workflow: str, alias: str, demand: LlmDemand, fan_out: float, cached: float) -> Use:
    """One workflow's use of an LLM. Raises InputError where its token lengths are unknown."""
    if demand.calls_per_run <= 0:
        return Use(workflow, alias, 0.0, 1.0, 1.0, TokenLengths(1.0, 1.0))
    inputs, outputs = demand.input_tokens_mean, demand.output_tokens_mean
    for key, value in (("input_tokens", inputs), ("output_tokens", outputs)):
        if value is None:
            raise InputError(
                f"workflow {workflow}, LLM {alias}: {key} is on none of its spans; a curve needs "
                "the token lengths (the engine's usage must be recorded)"
            )
    tokens = TokenLengths(max(inputs or 0.0, 1.0), max(outputs or 0.0, 1.0), cached)
    return Use(workflow, alias, demand.calls_per_run, demand.parallelism, fan_out, tokens)


def loads_of(demand: Mapping[str, DemandSummary], rates: Mapping[str, float]) -> list[WorkflowLoad]:
    """The parts of demand that no LLM changes."""
    return [WorkflowLoad(w, rates[w], d.overlap, d.tool_time_s) for w, d in demand.items()]
