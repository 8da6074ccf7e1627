"""Figures of a timeline, and what they rest on."""

from __future__ import annotations

import json

import pytest
from simulation_cases import MODEL, call, curve, mixed_spans, plan_of, run_span, simulate_plan

from scepsy_hpc.files import check, to_plain
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.simulation.arrivals import Closed


def test_figures_say_what_they_rest_on() -> None:
    """The record survives the way through a file and names inferred order, resampling, few runs."""
    spans = mixed_spans(6)
    shape = curve((1.0, 8.0), (1.0, 4.0), TokenLengths(150.0, 40.0))
    result = simulate_plan(
        plan_of("a", "b"),
        {"w": spans},
        {"a": shape, "b": shape},
        Closed(10, 3),
        engine_models={"a": MODEL},
    )
    plain = json.loads(json.dumps(to_plain(result)))
    assert check(plain, Figures, "result") == result
    assert plain["how"] == "simulated"
    kinds = [flag.split(":")[1].strip() for flag in result.flags if flag.startswith("w:")]
    assert kinds == ["inferred", "failed_runs", "resampled"]
    assert any(flag.startswith("few_runs: w") for flag in result.flags)
    servers = {name: llm.server for name, llm in result.per_llm.items()}
    assert servers == {"a": "continuous_batching", "b": "processor_sharing"}


def test_failed_runs_load_and_count_in_throughput() -> None:
    """A failed run takes its time on the server and no part in latency; the rate is of all runs."""
    spans = [
        run_span("bad", 0.0, 1.0, "error"),
        call("bad", "s", 0.0, 1.0),
        call("good", "s", 0.0, 1.0),
    ]
    result = simulate_plan(plan_of("a"), {"w": spans}, {"a": curve()}, Closed(2, 2))
    figures = result.per_workflow["w"]
    assert (figures.num_runs, figures.num_failed) == (2, 1)
    assert figures.throughput_rps == pytest.approx(1.0)
    assert figures.latency_mean_s == pytest.approx(2.0)
    assert figures.intervals == {}
