"""The Aggregate LLM Pipeline: one stage per LLM, additive in the stages, so searchable.

The latency of a run is ``run_latency_s``; throughput = the smallest replicas x capacity / calls.
Several workflows share a stage when model and engine arguments agree: its load is the sum of
theirs, its tokens mixed by calls. Source: Scepsy (arXiv 2604.15186), with overlap, tool time and
bursts added as the contract defines them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import LlmDemand
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.curves.bursts import Bursts, mixed
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION, Curve, TokenLengths, latencies_s
from scepsy_hpc.planning.pipeline.host_time import HostTime, host_of
from scepsy_hpc.planning.search.problem import Option, OptionTable

_Seconds = TypeVar("_Seconds", float, Floats)


def run_latency_s(llm_s: float, tool_time_s: float, overlap: float = 1.0) -> float:
    """Mean latency of a run = ω·Σ(n/p)·L + tool_time.

    ``llm_s`` is the sum over its LLMs: n calls, p of them at a time, each taking L. ω, the
    ``overlap``, is left out where that sum has it already, as costs do (``Pipeline.cost_s``).
    """
    return overlap * llm_s + tool_time_s


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """What the replicas of a deployment see together: calls per second, and how they come."""

    curve: Curve
    arrivals_rps: float
    num_replicas: int = 1
    bursts: Bursts = Bursts()  # noqa: RUF009

    @property
    def latency_s(self) -> float:
        """Mean latency of a call; infinite where the replicas cannot keep up."""
        return self.curve.latency_s(self.arrivals_rps, self.num_replicas, self.bursts)

    @property
    def utilisation(self) -> float:
        """Part of the replicas' capacity."""
        return self.arrivals_rps / (self.num_replicas * self.curve.capacity_rps)

    @property
    def flags(self) -> tuple[str, ...]:
        """What the curve rests on at this load."""
        return self.curve.flags_at(self.arrivals_rps, self.num_replicas, self.bursts)


@dataclass(frozen=True, slots=True)
class Use:
    """How one workflow uses a stage; ``bursts`` and ``tokens`` are those of its own calls."""

    workflow: str
    alias: str
    calls_per_run: float
    parallelism: float
    bursts: Bursts
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

    def works(self, rates_rps: Mapping[str, float], curve: Curve) -> tuple[float, ...]:
        """Work of a mean call of each use; over all calls the mean is 1."""
        works = [curve.work_of(use.tokens) for use in self.uses]
        mean = sum(part * work for (part, _), work in zip(self._mix(rates_rps), works, strict=True))
        return tuple(work / mean for work in works)

    def bursts(self, rates_rps: Mapping[str, float], curve: Curve) -> Bursts:
        """How the calls of all uses come: each use's own work and bursts, mixed by calls."""
        mix = [
            (p, w, u.bursts)
            for (p, u), w in zip(self._mix(rates_rps), self.works(rates_rps, curve), strict=True)
        ]
        return mixed(mix)


@dataclass(frozen=True, slots=True)
class HostedStage:
    """A stage on replicas of one kind."""

    stage: Stage
    curve: Curve
    num_replicas: int

    def load(self, rates_rps: Mapping[str, float]) -> GroupLoad:
        """What the replicas see at these rates of the workflows."""
        calls_rps = self.stage.calls_rps(rates_rps)
        return GroupLoad(
            self.curve, calls_rps, self.num_replicas, self.stage.bursts(rates_rps, self.curve)
        )


@dataclass(frozen=True, slots=True)
class WorkflowLoad:
    """What of a workflow does not depend on the LLMs, and the rate that is wanted of it.

    ``cpu_s``: CPU seconds of its agent in a run, part of the tool time; None is unknown.
    """

    name: str
    rate_rps: float
    overlap: float
    tool_time_s: float
    cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Workflows over shared stages, and over the cores that their agents share (None: unknown)."""

    workflows: tuple[WorkflowLoad, ...]
    stages: tuple[Stage, ...]
    agent_cores: float | None = None

    @property
    def host(self) -> HostTime | None:
        """The agents' cores as a station; None where they or the agents' CPU time are unknown."""
        return host_of(self.agent_cores, {load.name: load.cpu_s for load in self.workflows})

    @property
    def waiting_s(self) -> dict[str, float]:
        """What waiting for cores adds to a run of each workflow at the rates."""
        host = self.host
        return host.waiting_s(self.rates_rps) if host else dict.fromkeys(self.rates_rps, 0.0)

    @property
    def cores_said(self) -> tuple[str, ...]:
        """How many cores are counted on for agents, where their CPU time is known."""
        host = self.host
        return (host.said(self.rates_rps),) if host else ()

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

    @property
    def aliases(self) -> dict[str, dict[str, str]]:
        """Stage of each workflow's aliases."""
        found: dict[str, dict[str, str]] = {load.name: {} for load in self.workflows}
        for stage in self.stages:
            for use in stage.uses:
                found[use.workflow][use.alias] = stage.name
        return found

    def at_rates(self, factor: float) -> Pipeline:
        """The same mix of workflows at ``factor`` times the rates."""
        scaled = (replace(load, rate_rps=load.rate_rps * factor) for load in self.workflows)
        return replace(self, workflows=tuple(scaled))

    def hosted_by(self, chosen: Mapping[str, Option]) -> tuple[HostedStage, ...]:
        """The stages on the options of ``tables`` that were chosen for them."""
        found = []
        for stage in self.stages:
            option = chosen[stage.name]
            assert isinstance(option.payload, Curve)
            found.append(HostedStage(stage, option.payload, option.num_replicas))
        return tuple(found)

    def cost_s(self, stage: Stage, curve: Curve, call_latency_s: _Seconds) -> _Seconds | float:
        """What a stage adds to the mean latency of all runs: ω·(n/p)·L, the mean over workflows.

        ``call_latency_s`` is that of a mean call; each workflow's own takes as much longer as it
        is more work. Nothing where it is never called, whatever a call would take.
        """
        rates, overlap = self.rates_rps, {load.name: load.overlap for load in self.workflows}
        works = stage.works(rates, curve)
        rounds = sum(
            rates[u.workflow] * overlap[u.workflow] * u.num_rounds * work
            for u, work in zip(stage.uses, works, strict=True)
        )
        rounds /= self.total_rps
        return rounds * call_latency_s if rounds > 0 else 0.0

    def cost_on(self, hosted: Sequence[HostedStage]) -> float:
        """What all stages add to the mean latency of all runs."""
        rates = self.rates_rps
        return math.fsum(
            self.cost_s(host.stage, host.curve, host.load(rates).latency_s) for host in hosted
        )

    def mean_latency_s(self, cost_s: float) -> float:
        """Mean latency of all runs, to which the LLMs add ``cost_s``."""
        waiting_s = self.waiting_s
        waited_s = sum(w.rate_rps * waiting_s[w.name] for w in self.workflows) / self.total_rps
        return run_latency_s(cost_s, self.tool_time_s + waited_s)

    def latency_s(
        self, workflow: str, hosted: Sequence[HostedStage], call_latency_s: Mapping[str, float]
    ) -> float:
        """Mean latency of one workflow's runs, from that of a mean call in each stage."""
        load = next(w for w in self.workflows if w.name == workflow)
        llm_s = sum(
            use.num_rounds * work * call_latency_s[host.stage.name]
            for host in hosted
            for use, work in zip(
                host.stage.uses, host.stage.works(self.rates_rps, host.curve), strict=True
            )
            if use.workflow == workflow and use.calls_per_run > 0
        )
        return run_latency_s(llm_s, load.tool_time_s + self.waiting_s[workflow], load.overlap)

    def theta(self, host: HostedStage) -> float:
        """Times the wanted rates that a stage can serve at capacity; infinite without calls."""
        calls = host.stage.calls_rps(self.rates_rps)
        return host.num_replicas * host.curve.capacity_rps / calls if calls > 0 else math.inf

    def tables(
        self, candidates: Mapping[str, Sequence[tuple[Curve, int]]], with_cost: bool = True
    ) -> tuple[OptionTable, ...]:
        """Options for the search: every curve of every stage at 1 .. most replicas.

        ``candidates`` gives for each stage the curves and how many replicas of each there is room
        for. The throughput of an option is in units of the wanted rates. Without cost (for the
        highest rate) only throughput matters and costs are zero.
        """
        jobs = [
            (stage, curve, np.arange(1, most + 1))
            for stage in self.stages
            for curve, most in candidates[stage.name]
        ]
        costs = self._costs(jobs) if with_cost else [np.zeros(len(r)) for _, _, r in jobs]
        found = []
        for (stage, curve, replicas), cost_s in zip(jobs, costs, strict=True):
            calls = stage.calls_rps(self.rates_rps)
            yields = replicas * curve.usable_rps / calls if calls > 0 else replicas * math.inf
            found.append(
                OptionTable(
                    stage.name,
                    *curve.kind,
                    num_replicas=replicas,
                    cost_s=cost_s,
                    throughput_rps=np.asarray(yields, dtype=np.float64),
                    payload=curve,
                )
            )
        return tuple(found)

    def _costs(self, jobs: Sequence[tuple[Stage, Curve, Ints]]) -> list[Floats]:
        """``cost_s`` of each option, all latencies at once; infinite above 95%."""
        rates = self.rates_rps
        sizes = [len(replicas) for _, _, replicas in jobs]
        which = np.repeat(np.arange(len(jobs)), sizes)
        replicas = np.concatenate([r.astype(np.float64) for _, _, r in jobs])
        loads_rps = np.array([stage.calls_rps(rates) for stage, _, _ in jobs])[which]
        curves = [curve for _, curve, _ in jobs]
        bursts = [stage.bursts(rates, curve) for stage, curve, _ in jobs]
        most = np.array([MAX_UTILISATION * c.usable_rps * (1 + 1e-12) for c in curves])[which]
        usable = loads_rps <= most * replicas
        found_s = np.full(len(which), np.inf)
        found_s[usable] = latencies_s(
            curves, which[usable], replicas[usable], loads_rps[usable], bursts
        )
        each_s = np.split(found_s, np.cumsum(sizes)[:-1])
        return [
            np.where(np.isfinite(call_s), self.cost_s(stage, curve, call_s), np.inf)
            for (stage, curve, _), call_s in zip(jobs, each_s, strict=True)
        ]


def use_of(workflow: str, alias: str, demand: LlmDemand, bursts: Bursts, cached: float) -> Use:
    """One workflow's use of an LLM. Raises InputError where its token lengths are unknown."""
    if demand.calls_per_run <= 0:
        return Use(workflow, alias, 0.0, 1.0, Bursts(), TokenLengths(1.0, 1.0))
    lengths = []
    for key in ("input_tokens", "output_tokens"):
        mean = getattr(demand, f"{key}_mean")
        if mean is None:
            raise InputError(
                f"workflow {workflow}, LLM {alias}: {key} is on none of its spans; a curve needs "
                "the token lengths (the engine's usage must be recorded)"
            )
        lengths.append(max(mean, 1.0))
    tokens = TokenLengths(lengths[0], lengths[1], cached)
    return Use(workflow, alias, demand.calls_per_run, demand.parallelism or 1.0, bursts, tokens)
