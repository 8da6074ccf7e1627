"""The Dask step: parts of the runs are all of them, and worker processes find the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planning_cases import bundle, calls, cluster, demand, engine_points, workflow

from scepsy_hpc.cluster.dask import dask_workers
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning import aggregate
from scepsy_hpc.planning.aggregate import demands_of, offers_of
from scepsy_hpc.planning.pipeline.deployments import pipeline_of

FLOW = workflow("w", {"a": Llm(model="org/model"), "b": Llm(model="org/model")})
SHAPES = ((1000.0, 100.0), (4000.0, 200.0), (500.0, 1.0), (2000.0, 400.0))


def _spans(num_runs: int, name: str | None = "w") -> list[Span]:
    rng = random.Random(3)
    found = []
    for run in range(num_runs):
        clock_s = 1000.0 * run
        for call in range(rng.randint(1, 12)):
            length_s = rng.uniform(0.5, 3.0)
            found.append(
                Span(
                    run_id=f"r{run}",
                    span_id=f"s{call}",
                    kind="llm",
                    workflow=name,
                    llm=rng.choice("ab"),
                    start_s=clock_s,
                    end_s=clock_s + length_s,
                    status="ok",
                    input_tokens=rng.randint(100, 2000),
                    output_tokens=rng.randint(1, 300),
                    cached_tokens=rng.choice([None, 50]),
                )
            )
            clock_s += rng.choice([0.0, 0.2, length_s + 0.3])
    return found


def test_parts_are_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demand read in many parts is that of one part, in every figure and every warning."""
    flow = workflow("w", {**FLOW.llms, "never": Llm(model="org/model")})
    whole = demands_of([flow], {"w": _spans(60)})
    monkeypatch.setattr(aggregate, "SPANS_PER_PART", 30)
    assert demands_of([flow], {"w": _spans(60)}) == whole


def test_warnings_of_many_spans() -> None:
    """Above 40,000 spans (several parts) what makes demand doubtful is still said."""
    few = [
        replace(
            s, status="failed", prefix_of=Prefix(span_id="before", tokens=10), cached_tokens=None
        )
        for s in _spans(1000)
    ]
    few += [
        replace(few[0], run_id=run_id, span_id="before", prefix_of=None, start_s=-1.0, end_s=-0.5)
        for run_id in {s.run_id: None for s in few}
    ]
    many = [replace(s, run_id=f"{s.run_id}-{copy}") for copy in range(7) for s in few]
    flow = workflow("w", {**FLOW.llms, "never": Llm(model="org/model")})
    assert len(few) < 2 * aggregate.SPANS_PER_PART < len(many)
    for spans in (few, many):
        warnings = demands_of([flow], {"w": spans})["w"].warnings
        for words in ("w: a: ", "w: b: ", "not called", "did not end ok", "varies", "prefix_of"):
            assert any(words in warning for warning in warnings), (len(spans), words)


def test_other_workflows_in_the_file_are_left_out() -> None:
    """Runs of another workflow do not count; a file with none of its runs is refused."""
    mixed = [*_spans(5), *(s for s in _spans(20, "other") if s.run_id not in "r0r1r2r3r4")]
    assert demands_of([FLOW], {"w": mixed})["w"].summary.num_runs == 5
    with pytest.raises(InputError, match="they name: other"):
        demands_of([FLOW], {"w": _spans(3, "other")})


def test_undeclared_llms_are_refused() -> None:
    """An LLM in the spans that the workflow does not declare is an error that names it."""
    flow = workflow("w", {"a": Llm(model="org/model")})
    with pytest.raises(InputError, match="'b' is called in the spans and not declared"):
        demands_of([flow], {"w": _spans(5)})


def test_warnings_are_kept() -> None:
    """What makes demand doubtful reaches the plan: an LLM that no run called."""
    flow = workflow("w", {**FLOW.llms, "never": Llm(model="org/model")})
    found = demands_of([flow], {"w": _spans(5)})["w"]
    assert any("never" in warning for warning in found.warnings)


def test_offers_by_workers_of_this_machine() -> None:
    """Curves and demand from worker processes equal those computed here."""
    needs = demand({"a": calls(1.0, input_tokens_mean=3000.0), "b": calls(1.0)})
    pipeline = pipeline_of([FLOW], {"w": needs}, {"w": 1.0})
    bundles = [bundle(engine_points(SHAPES))]
    here = offers_of(pipeline, bundles, cluster())
    with dask_workers("local", num_workers=1) as client:
        there = offers_of(pipeline, bundles, cluster(), client=client)
        demands = demands_of([FLOW], {"w": _spans(8)}, client)
    assert demands["w"].summary == demands_of([FLOW], {"w": _spans(8)})["w"].summary
    for name, offers in here.items():
        assert [o.curve for o in offers.found] == [o.curve for o in there[name].found]
