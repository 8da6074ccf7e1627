"""Demand: what the spans of a workflow say about each of its LLMs.

Definitions (calls_per_run, parallelism, share, tool time, overlap) are the contract's; those of
fan-out bursts and of stability are below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.formats.spans import Span
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.tracing.demand.bursts import Bursts, bursts_of
from scepsy_hpc.tracing.demand.call_table import CallTable, read_calls
from scepsy_hpc.tracing.demand.stability import UNSTABLE_CV, runs_needed

QUANTILES_PCT = (5, 50, 95)


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


@dataclass(frozen=True, slots=True)
class LlmDemand:
    """One LLM of the workflow.

    ``share_mean`` and ``share_cv`` are over the runs with any LLM call; ``share_cv`` is None with
    fewer than two of them. ``num_runs_needed``: how many runs would know ``share_mean`` within
    10%; None where it cannot be told. ``num_failed`` counts the calls with a status other than
    `ok`; they are in ``num_calls`` and ``calls_per_run``.
    """

    num_calls: int
    num_failed: int
    calls_per_run: float
    calls_per_run_cv: float | None
    parallelism: float
    share_mean: float
    share_cv: float | None
    num_runs_needed: int | None
    duration_s: Distribution
    input_tokens: Distribution
    output_tokens: Distribution
    cached_tokens: Distribution
    bursts: Bursts
    roles: dict[str, RoleDemand]


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """One workflow. Arrays: R runs, M LLMs in the order of ``llms``.

    ``busy_s`` [R, M]: time in which at least one call of the LLM was in flight; ``any_busy_s`` [R]:
    that of any LLM; ``num_calls`` [R, M]; ``run_length_s`` [R]; ``calls``: every call.
    """

    workflow: str
    num_runs: int
    num_runs_without_calls: int
    tool_time_s: float
    run_length_mean_s: float
    overlap: float
    llms: dict[str, LlmDemand]
    flags: tuple[str, ...]
    run_ids: tuple[str, ...]
    run_length_s: Floats
    any_busy_s: Floats
    busy_s: Floats
    num_calls: Ints
    calls: CallTable

    def summary(self) -> dict[str, Any]:
        """What a plan keeps of it, as plain data (`demand` of plan.yaml)."""
        return {
            "num_runs": self.num_runs,
            "tool_time_s": self.tool_time_s,
            "overlap": self.overlap,
            "llms": {
                alias: {
                    "calls_per_run": llm.calls_per_run,
                    "parallelism": llm.parallelism,
                    "share_mean": llm.share_mean,
                    "share_cv": llm.share_cv,
                    "input_tokens_mean": llm.input_tokens.mean,
                    "output_tokens_mean": llm.output_tokens.mean,
                }
                for alias, llm in self.llms.items()
            },
        }


def demand_of(spans: Sequence[Span], workflow: str, aliases: Sequence[str] | None = None) -> Demand:
    """Demand of the runs of ``workflow`` in ``spans``.

    A run belongs to the workflow that any of its spans names; runs that name none belong to it as
    well. ``aliases``: the LLMs the workflow declares; one that is never called is flagged, one that
    is called and not declared is an error; without it they are those that the spans call. Raises
    InputError: also for no runs, a call that ends before it starts, two run spans in one run.
    """
    calls = read_calls(spans, workflow, aliases)
    num_runs, num_llms = len(calls.run_ids), len(calls.aliases)
    group = calls.run * num_llms + calls.llm
    busy_s = _busy_s(group, calls, num_runs * num_llms).reshape(num_runs, num_llms)
    any_busy_s = _busy_s(calls.run, calls, num_runs)
    num_calls = np.bincount(group, minlength=num_runs * num_llms).reshape(num_runs, num_llms)
    # A call may outlive its run by a moment; no run has negative tool time.
    tool_s = np.maximum(calls.run_length_s - any_busy_s, 0.0)
    total_busy_s = float(busy_s.sum())
    llms = {
        alias: _llm_demand(calls, index, busy_s, num_calls)
        for index, alias in enumerate(calls.aliases)
    }
    return Demand(
        workflow=workflow,
        num_runs=num_runs,
        num_runs_without_calls=int((num_calls.sum(axis=1) == 0).sum()),
        tool_time_s=float(tool_s.mean()),
        run_length_mean_s=float(calls.run_length_s.mean()),
        overlap=float(any_busy_s.sum()) / total_busy_s if total_busy_s > 0 else 1.0,
        llms=llms,
        flags=_flags(llms, num_runs),
        run_ids=calls.run_ids,
        run_length_s=calls.run_length_s,
        any_busy_s=any_busy_s,
        busy_s=busy_s,
        num_calls=num_calls,
        calls=calls,
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


def _llm_demand(calls: CallTable, index: int, busy_s: Floats, num_calls: Ints) -> LlmDemand:
    mine = calls.llm == index
    per_run = num_calls[:, index]
    run_busy_s = busy_s.sum(axis=1)
    called = run_busy_s > 0
    shares = busy_s[called, index] / run_busy_s[called]
    own_busy_s = float(busy_s[:, index].sum())
    durations_s = calls.duration_s[mine]
    return LlmDemand(
        num_calls=int(mine.sum()),
        num_failed=int(calls.failed[mine].sum()),
        calls_per_run=float(per_run.mean()),
        calls_per_run_cv=_cv(per_run.astype(float)),
        parallelism=float(durations_s.sum()) / own_busy_s if own_busy_s > 0 else 1.0,
        share_mean=float(shares.mean()) if len(shares) else 0.0,
        share_cv=_cv(shares),
        num_runs_needed=runs_needed(shares),
        duration_s=_distribution(durations_s),
        input_tokens=_distribution(calls.input_tokens[mine]),
        output_tokens=_distribution(calls.output_tokens[mine]),
        cached_tokens=_distribution(calls.cached_tokens[mine]),
        bursts=bursts_of(calls, mine),
        roles=_roles(calls, mine, len(per_run)),
    )


def _cv(values: Floats) -> float | None:
    """Sample standard deviation over the mean."""
    if len(values) < 2 or values.mean() == 0:
        return None
    return float(values.std(ddof=1) / values.mean())


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
                input_tokens_mean=_distribution(calls.input_tokens[these]).mean,
                output_tokens_mean=_distribution(calls.output_tokens[these]).mean,
                duration_mean_s=float(calls.duration_s[these].mean()),
            )
    return found


def _flags(llms: Mapping[str, LlmDemand], num_runs: int) -> tuple[str, ...]:
    flags = []
    for alias, llm in llms.items():
        if llm.num_calls == 0:
            flags.append(f"{alias}: not called in the spans; its load is taken as zero")
        if llm.num_failed:
            flags.append(
                f"{alias}: {llm.num_failed} of {llm.num_calls} calls did not end ok (failed, "
                "retried, cut off); calls_per_run counts them"
            )
        if llm.num_calls and llm.input_tokens.num_known == 0:
            flags.append(f"{alias}: no call has token counts; its load cannot be predicted")
        if llm.share_cv is not None and llm.share_cv > UNSTABLE_CV:
            flags.append(_unstable(alias, llm, num_runs))
    return tuple(flags)


def _unstable(alias: str, llm: LlmDemand, num_runs: int) -> str:
    text = f"{alias}: its share of LLM time varies from run to run (cv {llm.share_cv:.2f})"
    if llm.num_runs_needed is None:
        return text
    if llm.num_runs_needed <= num_runs:
        return f"{text}; {num_runs} runs are enough to know its mean within 10%"
    return (
        f"{text}; about {llm.num_runs_needed} runs would tell its mean within 10%, not {num_runs}"
    )
