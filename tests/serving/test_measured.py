"""What a batch did, from its spans."""

from __future__ import annotations

import pytest
from span_cases import call, run_span

from scepsy_hpc.serving.measured import measured_of


def test_figures_of_one_workflow() -> None:
    """Of three runs in 10 s one failed: it counts in throughput, not in latency.

    The calls of a run belong to the workflow that its run span names.
    """
    spans = [
        run_span("r1", 0.0, 4.0, workflow="rag"),
        call("r1", "writer", 0.0, 3.0, input_tokens=10, output_tokens=2),
        run_span("r2", 4.0, 10.0, workflow="rag"),
        call("r2", "writer", 4.0, 6.0, input_tokens=20, output_tokens=4),
        run_span("r3", 1.0, 2.0, workflow="rag", status="failed"),
        run_span("r4", 0.0, 99.0, workflow="beam"),
        call("r4", "writer", 0.0, 99.0),
    ]
    found = measured_of(spans, "rag")
    assert found is not None
    assert (found.num_runs, found.num_failed, found.makespan_s) == (3, 1, 10.0)
    assert (found.throughput_rps, found.latency_mean_s) == (pytest.approx(0.3), 5.0)
    writer = found.per_llm["writer"]
    assert (writer.num_calls, writer.latency_mean_s, writer.input_tokens) == (2, 2.5, 30)
    assert writer.calls_in_flight_mean == pytest.approx(0.5)


def test_a_run_that_only_its_calls_name() -> None:
    """A run belongs to the workflow that any of its spans names."""
    found = measured_of([run_span("r", 0.0, 4.0), call("r", "m", 0.0, 1.0, workflow="rag")], "rag")
    assert found is not None
    assert (found.num_runs, found.latency_mean_s) == (1, 4.0)


def test_a_workflow_without_a_run_has_no_figures() -> None:
    """Neither before its first run has ended, nor where only another's did."""
    assert measured_of([call("r", "m", 0.0, 1.0, workflow="rag")], "rag") is None
    assert measured_of([run_span("r", 0.0, 1.0, workflow="beam")], "rag") is None
