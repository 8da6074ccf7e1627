"""What a batch really did: throughput, run latency and per-LLM figures from its spans."""

from __future__ import annotations

from collections.abc import Sequence

from scepsy_hpc.files import record
from scepsy_hpc.formats.figures import Figures, LlmFigures
from scepsy_hpc.formats.spans import Span, spans_of_workflow
from scepsy_hpc.metrics import percentile


@record
class MeasuredRun:
    """``measured.json``: figures of the runs since one start, by workflow; LLMs by alias."""

    since_s: float
    workflows: dict[str, Figures]


def measured_of(spans: Sequence[Span], workflow: str) -> Figures | None:
    """Figures of one workflow's runs; None when there was no run."""
    mine = spans_of_workflow(spans, workflow, needed=False)
    runs = [span for span in mine if span.kind == "run"]
    if not runs:
        return None
    ok = [run for run in runs if run.status == "ok"]
    latencies = [run.duration_s for run in ok]
    makespan_s = max(run.end_s for run in runs) - min(run.start_s for run in runs)
    calls = [span for span in mine if span.kind == "llm"]
    aliases = sorted({span.llm for span in calls if span.llm})
    return Figures(
        how="measured",
        num_runs=len(runs),
        num_failed=len(runs) - len(ok),
        makespan_s=makespan_s,
        # Of all that ended, as it is predicted and simulated: failed runs load the engines, too.
        throughput_rps=len(runs) / makespan_s if makespan_s > 0 else 0.0,
        latency_mean_s=sum(latencies) / len(latencies) if latencies else None,
        latency_p50_s=percentile(latencies, 50),
        latency_p95_s=percentile(latencies, 95),
        per_llm={a: _llm([c for c in calls if c.llm == a], makespan_s) for a in aliases},
    )


def _llm(calls: Sequence[Span], window_s: float) -> LlmFigures:
    ok = [call for call in calls if call.status == "ok"]
    busy_s = sum(call.duration_s for call in calls)
    return LlmFigures(
        num_calls=len(calls),
        num_failed=len(calls) - len(ok),
        latency_mean_s=sum(c.duration_s for c in ok) / len(ok) if ok else None,
        input_tokens=sum(call.input_tokens or 0 for call in ok),
        output_tokens=sum(call.output_tokens or 0 for call in ok),
        calls_in_flight_mean=busy_s / window_s if window_s > 0 else 0.0,
    )
