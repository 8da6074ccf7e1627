"""Demand: what the spans of a workflow say about each of its LLMs.

Definitions (calls_per_run, parallelism, share, tool time, overlap) are the contract's; those of
fan-out bursts and of stability are in modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.files import record
from scepsy_hpc.formats.plan import DemandSummary, LlmDemand
from scepsy_hpc.formats.spans import Span, spans_of_workflow
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.tracing.demand.bursts import burst_sizes, fan_out_of, spread_of
from scepsy_hpc.tracing.demand.call_table import CallTable, read_calls
from scepsy_hpc.tracing.demand.hits import in_blocks
from scepsy_hpc.tracing.demand.merge import merge
from scepsy_hpc.tracing.demand.stability import (
    RELATIVE_HALF_WIDTH,
    length_text,
    relative_half_width,
    runs_needed,
)

QUANTILES_PCT = (5, 50, 95)
UNSTABLE_CV = 0.3
"""Above this an LLM's share is no longer nearly the same in every run."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values of the calls where they are known; all None where none is."""

    num_known: int
    mean: float | None
    p5: float | None
    p50: float | None
    p95: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class RoleDemand:
    """One role of one LLM; calls without a role are under `-`."""

    num_calls: int
    calls_per_run: float
    input_tokens_mean: float | None
    output_tokens_mean: float | None
    duration_mean_s: float


@record
class TracedLlm(LlmDemand):
    """One LLM of the workflow: what a plan keeps of it, and what its spans say beyond.

    ``share_mean`` and ``share_cv`` are over the runs with any LLM time; ``share_cv`` is None with
    fewer than two of them. ``num_runs_needed``: how many runs would know ``share_mean`` within
    10%; None where it cannot be told. ``num_failed`` counts the calls with a status other than
    `ok`; they are in ``num_calls`` and ``calls_per_run``. ``repeated_input`` is the part of its
    input that repeats an earlier prompt and may have hit, where no engine said what it cached.
    """

    num_calls: int
    num_failed: int
    num_runs_needed: int | None
    repeated_input: float
    duration_s: Distribution
    input_tokens: Distribution
    output_tokens: Distribution
    cached_tokens: Distribution
    burst_sizes: dict[int, int]
    roles: dict[str, RoleDemand]

    def kept(self) -> LlmDemand:
        """Without what a plan does not keep."""
        return LlmDemand(**{f.name: getattr(self, f.name) for f in fields(LlmDemand)})


@dataclass(frozen=True, slots=True)
class Demand:
    """One workflow. ``run_lengths_s`` in the order in which the runs were recorded.

    ``tool_times_s``: what of each is outside any LLM call; their mean is ``tool_time_s``.

    ``cpu_s``: CPU seconds of the agent in a run, over the runs that say; None where none does.
    """

    workflow: str
    num_runs: int
    num_runs_without_calls: int
    tool_time_s: float
    run_length_mean_s: float
    overlap: float | None
    llms: dict[str, TracedLlm]
    flags: tuple[str, ...]
    run_lengths_s: tuple[float, ...]
    tool_times_s: tuple[float, ...] = ()
    cpu_s: float | None = None

    def summary(self) -> DemandSummary:
        """What a plan keeps of it (`demand` of plan.yaml)."""
        return DemandSummary(
            num_runs=self.num_runs,
            tool_time_s=self.tool_time_s,
            overlap=self.overlap,
            llms={alias: llm.kept() for alias, llm in self.llms.items()},
            cpu_s=self.cpu_s,
        )


def demand_of(spans: Sequence[Span], workflow: str, aliases: Sequence[str] | None = None) -> Demand:
    """Demand of the runs of ``workflow`` in ``spans``.

    A run belongs to the workflow that any of its spans names; runs that name none belong to it as
    well. ``aliases``: the LLMs the workflow declares; one that is never called is flagged, one that
    is called and not declared is an error; without it they are those that the spans call. Raises
    InputError: also for no runs, a call that ends before it starts, two run spans in one run.
    """
    mine = spans_of_workflow(spans, workflow)
    return demand_of_parts([read_calls(mine, workflow, aliases)], workflow)


def demand_of_parts(parts: Sequence[CallTable], workflow: str) -> Demand:
    """Demand of all runs, read in parts of whole runs: the same to the last digit for any split."""
    calls = merge(parts)
    num_runs, num_llms = len(calls.run_ids), len(calls.aliases)
    group = calls.run * num_llms + calls.llm
    busy_s = _busy_s(group, calls, num_runs * num_llms).reshape(num_runs, num_llms)
    any_busy_s = _busy_s(calls.run, calls, num_runs)
    num_calls = np.bincount(group, minlength=num_runs * num_llms).reshape(num_runs, num_llms)
    # A call may outlive its run by a moment; no run has negative tool time.
    tool_s = np.maximum(calls.run_length_s - any_busy_s, 0.0)
    total_busy_s = float(busy_s.sum())
    llms = {
        alias: _traced_llm(calls, index, busy_s, num_calls[:, index])
        for index, alias in enumerate(calls.aliases)
    }
    return Demand(
        workflow=workflow,
        num_runs=num_runs,
        num_runs_without_calls=int((num_calls.sum(axis=1) == 0).sum()),
        tool_time_s=float(tool_s.mean()),
        run_length_mean_s=float(calls.run_length_s.mean()),
        overlap=float(any_busy_s.sum()) / total_busy_s if total_busy_s > 0 else None,
        llms=llms,
        flags=(*_flags(llms, num_runs), *_length_flags(calls.run_length_s)),
        run_lengths_s=tuple(calls.run_length_s.tolist()),
        tool_times_s=tuple(tool_s.tolist()),
        cpu_s=_known_mean(calls.cpu_s),
    )


def _busy_s(group: Ints, calls: CallTable, num_groups: int) -> Floats:
    """Per group, the time in which at least one of its calls was in flight."""
    events = np.concatenate([group, group])
    times_s = np.concatenate([calls.start_s, calls.start_s + calls.duration_s])
    steps = np.repeat(np.array([1, -1]), len(group))
    order = np.lexsort((times_s, events))
    # After all events of a group nothing is in flight, so gaps between groups count for nothing.
    in_flight = np.cumsum(steps[order])[:-1]
    gaps_s = np.diff(times_s[order]) * (in_flight > 0)
    busy_s = np.bincount(events[order][:-1], weights=gaps_s, minlength=num_groups)
    return busy_s.astype(np.float64)


def _traced_llm(calls: CallTable, index: int, busy_s: Floats, num_calls: Ints) -> TracedLlm:
    """``busy_s`` [R, M] of all LLMs, ``num_calls`` [R] of this one."""
    mine = calls.llm == index
    run_busy_s = busy_s.sum(axis=1)
    called = run_busy_s > 0
    shares = busy_s[called, index] / run_busy_s[called]
    own_busy_s = float(busy_s[:, index].sum())
    duration_s = calls.duration_s[mine]
    inputs, outputs = calls.input_tokens[mine], calls.output_tokens[mine]
    cached = _distribution(_cached(calls, mine))
    sizes, spread = burst_sizes(calls, mine), spread_of(calls, mine)
    return TracedLlm(
        calls_per_run=float(num_calls.mean()),
        parallelism=float(duration_s.sum()) / own_busy_s if own_busy_s > 0 else None,
        share_mean=float(shares.mean()) if len(shares) else None,
        share_cv=_cv(shares),
        input_tokens_mean=_known_mean(inputs),
        output_tokens_mean=_known_mean(outputs),
        cached_tokens_mean=cached.mean,
        fan_out=fan_out_of(sizes),
        prefix_tokens_mean=_prefix_mean(calls, mine),
        work_cv=spread.cv,
        fan_out_work_cv=spread.pair_cv,
        fan_out_work_gap=spread.pair_gap,
        num_calls=int(mine.sum()),
        num_failed=int(calls.failed[mine].sum()),
        num_runs_needed=runs_needed(shares),
        repeated_input=_repeated(calls, mine),
        duration_s=_distribution(duration_s),
        input_tokens=_distribution(inputs),
        output_tokens=_distribution(outputs),
        cached_tokens=cached,
        burst_sizes=sizes,
        roles=_roles(calls, mine, len(num_calls)),
    )


def _cached(calls: CallTable, mine: NDArray[np.bool_]) -> Floats:
    """Cached tokens of its calls, NaN where unknown.

    Engines leave a zero out (vLLM up to 0.22): where some calls say, those that say nothing but
    have a usage found nothing.
    """
    cached = calls.cached_tokens[mine]
    if np.isnan(cached).all():
        return cached
    silent = np.isnan(cached) & ~np.isnan(calls.input_tokens[mine])
    return np.where(silent, 0.0, cached)


def _prefix_mean(calls: CallTable, mine: NDArray[np.bool_]) -> float | None:
    """Mean over its calls of known input; None where none is known to repeat anything."""
    inputs, prefix = calls.input_tokens[mine], calls.prefix_tokens[mine]
    known = ~np.isnan(inputs)
    if np.isnan(prefix[known]).all():
        return None
    return float(in_blocks(prefix[known], inputs[known]).mean())


def _repeated(calls: CallTable, mine: NDArray[np.bool_]) -> float:
    """Part of the input that repeats a prompt, on calls of which no engine said what it cached."""
    inputs = np.nan_to_num(calls.input_tokens[mine])
    silent = np.isnan(_cached(calls, mine))
    repeated = np.nan_to_num(np.minimum(calls.prefix_tokens[mine], inputs))
    return float(repeated[silent].sum() / inputs.sum()) if inputs.any() else 0.0


def _cv(values: Floats) -> float | None:
    """Sample standard deviation over the mean."""
    if len(values) < 2 or values.mean() == 0:
        return None
    return float(values.std(ddof=1) / values.mean())


def _known_mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _distribution(values: Floats) -> Distribution:
    known = values[~np.isnan(values)]
    if not len(known):
        return Distribution(0, None, None, None, None, None)
    low, middle, high = (float(v) for v in np.percentile(known, QUANTILES_PCT))
    return Distribution(len(known), float(known.mean()), low, middle, high, float(known.max()))


def _roles(calls: CallTable, mine: NDArray[np.bool_], num_runs: int) -> dict[str, RoleDemand]:
    found = {}
    for index, role in enumerate(calls.roles):
        these = mine & (calls.role == index)
        if these.any():
            found[role] = RoleDemand(
                num_calls=int(these.sum()),
                calls_per_run=float(these.sum()) / num_runs,
                input_tokens_mean=_known_mean(calls.input_tokens[these]),
                output_tokens_mean=_known_mean(calls.output_tokens[these]),
                duration_mean_s=float(calls.duration_s[these].mean()),
            )
    return found


def _flags(llms: Mapping[str, TracedLlm], num_runs: int) -> tuple[str, ...]:
    flags = []
    for alias, llm in llms.items():
        if llm.num_calls == 0:
            flags.append(f"{alias}: not called in the spans; its load is taken as zero")
        if llm.num_failed:
            flags.append(
                f"{alias}: {llm.num_failed} of {llm.num_calls} calls did not end ok (failed, "
                "retried, cut off); calls_per_run counts them"
            )
        if llm.num_calls and llm.parallelism is None:
            flags.append(
                f"{alias}: no call of it took any time; its parallelism is unknown and taken as 1"
            )
        if llm.num_calls and llm.input_tokens.num_known == 0:
            flags.append(f"{alias}: no call has token counts; its load cannot be predicted")
        if llm.share_cv is not None and llm.share_cv > UNSTABLE_CV:
            flags.append(_unstable(alias, llm, num_runs))
        if llm.repeated_input > 0:
            flags.append(
                f"{alias}: {100 * llm.repeated_input:.0f}% of its input repeats an earlier prompt "
                "(prefix_of); plans count it as cached, though no cached_tokens were recorded"
            )
    return tuple(flags)


def _length_flags(lengths_s: Floats) -> tuple[str, ...]:
    """Every predicted latency and throughput is off by what the traced runs are, as a sample."""
    half, text = relative_half_width(lengths_s), length_text(lengths_s)
    return () if half is None or text is None or half <= RELATIVE_HALF_WIDTH else (text,)


def _unstable(alias: str, llm: TracedLlm, num_runs: int) -> str:
    text = f"{alias}: its share of LLM time varies from run to run (cv {llm.share_cv:.2f})"
    if llm.num_runs_needed is None:
        return text
    if llm.num_runs_needed <= num_runs:
        return f"{text}; {num_runs} runs are enough to know its mean within 10%"
    return (
        f"{text}; about {llm.num_runs_needed} runs would tell its mean within 10%, not {num_runs}"
    )
