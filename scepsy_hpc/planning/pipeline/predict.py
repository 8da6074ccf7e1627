"""What a plan should reach: open arrivals at a rate, or a closed batch of tasks.

Percentiles stay unknown here: they come from replay or simulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scepsy_hpc.formats.figures import Figures, LlmFigures, RunFigures
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.pipeline.closed_network import ClosedStage, ClosedState, closed_batch
from scepsy_hpc.planning.pipeline.makespan import ClosedBatch, makespan
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline


def predict_open(pipeline: Pipeline, hosted: Sequence[HostedStage]) -> Figures:
    """Figures under Poisson arrivals at the pipeline's rates; null where a stage is overloaded."""
    rates = pipeline.rates_rps
    latency_s: dict[str, float] = {}
    flags: list[str] = []
    for host in hosted:
        name, load = host.stage.name, host.load(rates)
        latency_s[name] = load.latency_s
        flags += [f"{name}: {flag}" for flag in load.flags]
        if load.utilisation > MAX_UTILISATION * (1 + 1e-9):
            what = "overloaded" if math.isinf(latency_s[name]) else "above_95_percent"
            flags.append(f"{name}: {what}: at {100 * load.utilisation:.0f}% of capacity")
    if pipeline.host:
        flags += pipeline.host.flags(rates, _llm_factor(pipeline, hosted))
    return _figures(pipeline, hosted, latency_s, flags)


def _figures(
    pipeline: Pipeline, hosted: Sequence[HostedStage], latency_s: dict[str, float], flags: list[str]
) -> Figures:
    rates = pipeline.rates_rps
    theta = {h.stage.name: pipeline.theta(h) for h in hosted}
    of_host = pipeline.host.factor(rates) if pipeline.host else math.inf
    workflows = {}
    for load in pipeline.workflows:
        used = [h.stage for h in hosted if any(u.workflow == load.name for u in h.stage.uses)]
        factor = min((theta[stage.name] for stage in used), default=math.inf)
        factor = min(factor, of_host) if load.cpu_s else factor
        workflows[load.name] = RunFigures(
            throughput_rps=_finite(factor * load.rate_rps),
            latency_mean_s=_finite(pipeline.latency_s(load.name, hosted, latency_s)),
        )
    costs_s = {
        h.stage.name: pipeline.cost_s(h.stage, h.curve, latency_s[h.stage.name]) for h in hosted
    }
    total_s = pipeline.mean_latency_s(sum(costs_s.values()))
    llms = {
        h.stage.name: LlmFigures(
            utilisation=h.load(rates).utilisation,
            latency_mean_s=_finite(latency_s[h.stage.name]),
            share_of_latency=_finite(costs_s[h.stage.name] / total_s if total_s else 0.0),
        )
        for h in hosted
    }
    return Figures(
        throughput_rps=_finite(min([*theta.values(), of_host]) * pipeline.total_rps),
        latency_mean_s=_finite(total_s),
        per_workflow=workflows,
        per_llm=llms,
        flags=tuple(dict.fromkeys(flags)),
    )


def _llm_factor(pipeline: Pipeline, hosted: Sequence[HostedStage]) -> float:
    return min((pipeline.theta(host) for host in hosted), default=math.inf)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def predict_batch(pipeline: Pipeline, hosted: Sequence[HostedStage], batch: ClosedBatch) -> Figures:
    """Figures of one workflow's batch, a fixed number of runs in flight, with its makespan."""
    state, flags = closed_state(pipeline, hosted, min(batch.max_runs_in_flight, batch.num_tasks))
    alone, _ = closed_state(pipeline, hosted, 1, with_calls=False)
    makespan_s, more = makespan(state, alone, batch)
    called = [h for h in hosted if h.stage.uses[0].calls_per_run > 0]
    latency_s = {h.stage.name: h.curve.latency_s(0.0) for h in hosted}
    latency_s |= {h.stage.name: s for h, s in zip(called, state.call_latency_s, strict=True)}
    flags += _flags_in_flight(hosted, latency_s, state.throughput_rps)
    at_rate = pipeline.at_rates(state.throughput_rps / pipeline.total_rps)
    if at_rate.host:
        factor = _llm_factor(at_rate, hosted)
        flags += at_rate.host.flags(at_rate.rates_rps, factor, closed=True)
    # A closed batch never waits for cores as open arrivals at its rate would.
    only = at_rate.workflows[0]
    only = replace(only, tool_time_s=only.tool_time_s + state.waiting_s)
    at_rate = replace(at_rate, workflows=(only,), agent_cores=None)
    found = _figures(at_rate, hosted, latency_s, [*flags, *more])
    name = pipeline.workflows[0].name
    figures = RunFigures(
        throughput_rps=state.throughput_rps, latency_mean_s=state.run_s, makespan_s=makespan_s
    )
    return Figures(
        throughput_rps=state.throughput_rps,
        latency_mean_s=state.run_s,
        makespan_s=makespan_s,
        per_workflow={name: figures},
        per_llm=found.per_llm,
        flags=found.flags,
    )


def _flags_in_flight(
    hosted: Sequence[HostedStage], latency_s: Mapping[str, float], runs_rps: float
) -> list[str]:
    """What each curve says of itself with the calls in flight that Little's law gives."""
    return [
        f"{host.stage.name}: {flag}"
        for host in hosted
        for flag in host.curve.flags_with(
            runs_rps
            * host.stage.uses[0].calls_per_run
            * latency_s[host.stage.name]
            / host.num_replicas
        )
    ]


def closed_state(
    pipeline: Pipeline, hosted: Sequence[HostedStage], num_runs: int, with_calls: bool = True
) -> tuple[ClosedState, list[str]]:
    """Steady state with ``num_runs`` runs of the only workflow in flight, and its flags.

    Latencies of calls only ``with_calls``: a makespan does not ask for them.
    """
    load = pipeline.workflows[0]
    stages: list[ClosedStage] = []
    flags: list[str] = []
    for host in hosted:
        use = host.stage.uses[0]
        flags += [f"{host.stage.name}: {flag}" for flag in host.curve.flags]
        if use.calls_per_run > 0:
            stages.append(
                ClosedStage(
                    host.curve.server, host.num_replicas, use.calls_per_run, use.parallelism
                )
            )
    cpu_s = load.cpu_s or 0.0
    cores = ClosedStage(pipeline.host.server, 1, cpu_s, 1.0) if pipeline.host else None
    state = closed_batch(stages, num_runs, load.overlap, load.tool_time_s, cores, with_calls)
    return state, flags
