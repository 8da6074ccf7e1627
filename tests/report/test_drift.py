"""What a run's agents did beside the traced ones."""

from __future__ import annotations

import pytest
from span_cases import call, run_span

from scepsy_hpc.formats.plan import DemandSummary, LlmDemand, Plan, PlanWorkflow
from scepsy_hpc.report.drift import Habit, habits


def _plan(*names: str) -> Plan:
    """Workflows whose traced runs called `writer` four times, of 10 tokens in and unknown out."""
    traced = LlmDemand(calls_per_run=4.0, parallelism=1.0, share_mean=1.0, input_tokens_mean=10.0)
    demand = DemandSummary(num_runs=9, tool_time_s=0.5, overlap=1.0, llms={"writer": traced})
    flows = tuple(PlanWorkflow(name=name, llms={"writer": "writer"}) for name in names)
    return Plan(workflows=flows, demand=dict.fromkeys(names, demand))


def _by_what(found: list[Habit]) -> dict[str, tuple[float | None, float | None, float | None]]:
    return {h.what: (h.traced, h.measured, h.change) for h in found}


def test_calls_belong_to_the_workflow_that_their_run_span_names() -> None:
    """Spans that name the workflow on the run span alone are all of its run: two calls of 20 and
    30 tokens, and 1 s without any; the other workflow's calls are not among them."""
    spans = [
        run_span("r1", 0.0, 5.0, workflow="rag"),
        call("r1", "writer", 1.0, 3.0, input_tokens=20, output_tokens=3),
        call("r1", "writer", 3.0, 5.0, input_tokens=30, output_tokens=5),
        run_span("r2", 0.0, 1.0, workflow="beam"),
        call("r2", "writer", 0.0, 1.0, input_tokens=7, output_tokens=7),
    ]
    found = habits(_plan("rag", "beam"), spans)
    assert _by_what([h for h in found if h.workflow == "rag"]) == {
        "time outside LLM calls": (0.5, 1.0, pytest.approx(1.0)),
        "writer: calls": (4.0, 2.0, pytest.approx(-0.5)),
        "writer: input tokens of a call": (10.0, 25.0, pytest.approx(1.5)),
        "writer: output tokens of a call": (None, 4.0, None),
    }
    (calls,) = [h for h in found if h.workflow == "beam" and h.unit == "calls"]
    assert calls.measured == 1.0


def test_an_llm_that_was_not_called_this_time() -> None:
    """It had no calls, and their tokens are unknown, not zero."""
    found = _by_what(habits(_plan("rag"), [run_span("r1", 0.0, 5.0, workflow="rag")]))
    assert found["writer: calls"] == (4.0, 0.0, -1.0)
    assert found["writer: input tokens of a call"] == (10.0, None, None)


def test_workflows_without_runs_or_traced_demand_have_no_habits() -> None:
    """They are left out, and break nothing for the others."""
    spans = [run_span("r1", 0.0, 5.0, workflow="rag")]
    plan = _plan("beam", "rag")
    assert {h.workflow for h in habits(plan, spans)} == {"rag"}
    assert habits(Plan(workflows=plan.workflows), spans) == []
