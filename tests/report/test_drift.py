"""What a run's agents did beside what the traced ones did."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_case import plan_of

from scepsy_hpc.formats.plan import DemandSummary, LlmDemand, Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.report.drift import habits


def drifted() -> tuple[Plan, list[Span]]:
    """One run of 5 s with a call of 4 s, where traced runs had 2 calls and 0.5 s outside them."""
    traced = LlmDemand(calls_per_run=2.0, parallelism=1.0, share_mean=1.0, output_tokens_mean=40.0)
    demand = DemandSummary(num_runs=9, tool_time_s=0.5, overlap=1.0, llms={"writer": traced})
    common = {"run_id": "r", "workflow": "rag", "status": "ok", "start_s": 0.0}
    spans = [
        Span(span_id="r", kind="run", end_s=5.0, **common),
        Span(
            span_id="c",
            kind="llm",
            llm="writer",
            end_s=4.0,
            input_tokens=7,
            output_tokens=50,
            **common,
        ),
    ]
    return replace(plan_of("vllm"), demand={"rag": demand}), spans


def test_drift_from_the_traced_runs():
    """Time outside calls doubled, calls halved, outputs 25% longer."""
    found = {habit.what: habit for habit in habits(*drifted())}
    assert found["time outside LLM calls"].change == pytest.approx(1.0)
    assert found["writer: calls"].change == pytest.approx(-0.5)
    assert found["writer: output tokens of a call"].change == pytest.approx(0.25)
    assert found["writer: input tokens of a call"].change is None
