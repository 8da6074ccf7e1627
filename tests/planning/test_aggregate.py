"""The Dask step: parts of the runs add up to all of them, and workers are asked for as told."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planning_cases import bundle, calls, cluster, demand, engine_points, workflow

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan, PlanWorkflow
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning import aggregate
from scepsy_hpc.planning.aggregate import (
    dask_workers,
    demands_in,
    demands_of,
    merge,
    offers_of,
    slurm_settings,
)
from scepsy_hpc.planning.pipeline.deployments import pipeline_of
from scepsy_hpc.tracing.demand.demand import demand_of

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


def test_recorded_prefixes_are_told_not_assumed() -> None:
    """Input that repeats a prompt is named where no cached tokens were recorded, never counted."""
    plain = [replace(s, cached_tokens=None) for s in _spans(5)]
    spans = [
        replace(s, prefix_of=Prefix(span_id="s0", tokens=(s.input_tokens or 0) // 2))
        if s.llm == "a"
        else s
        for s in plain
    ]
    made = demands_of([FLOW], {"w": spans})["w"]
    assert made.cached_tokens == {"a": 0.0, "b": 0.0}
    told = [line for line in made.warnings if "prefix_of" in line]
    assert len(told) == 1
    assert told[0].startswith("w: a: 50% of its input")
    known = [replace(s, cached_tokens=10) for s in spans]
    assert not any("prefix_of" in w for w in demands_of([FLOW], {"w": known})["w"].warnings)


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demand from many parts is the demand of all runs, in every figure but the bursts' window."""
    spans = _spans(60)
    whole = demands_of([FLOW], {"w": spans})["w"]
    monkeypatch.setattr(aggregate, "SPANS_PER_PART", 30)
    parts = demands_of([FLOW], {"w": spans})["w"]
    assert parts.summary.num_runs == whole.summary.num_runs == 60
    assert parts.summary.tool_time_s == pytest.approx(whole.summary.tool_time_s)
    assert parts.summary.overlap == pytest.approx(whole.summary.overlap)
    assert sorted(parts.run_lengths_s) == pytest.approx(sorted(whole.run_lengths_s))
    for alias, one in whole.summary.llms.items():
        many = parts.summary.llms[alias]
        for field in (
            "calls_per_run",
            "parallelism",
            "share_mean",
            "share_cv",
            "input_tokens_mean",
            "output_tokens_mean",
        ):
            assert getattr(many, field) == pytest.approx(getattr(one, field)), field
        assert parts.cached_tokens[alias] == pytest.approx(whole.cached_tokens[alias])
        assert parts.fan_out[alias] == pytest.approx(whole.fan_out[alias], rel=0.2)


def test_fan_out_is_what_a_call_sees() -> None:
    """One burst of three and one single call: a call is in a burst of (3 x 3 + 1) / 4."""
    spans = [
        Span(
            run_id="r",
            span_id=f"s{i}",
            kind="llm",
            llm="a",
            start_s=start_s,
            end_s=start_s + 2.0,
            status="ok",
        )
        for i, start_s in enumerate((0.0, 0.01, 0.02, 10.0))
    ]
    found = merge([demand_of(spans, "w", ("a", "b"))])
    assert found.fan_out == {"a": 2.5, "b": 1.0}


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


def test_slurm_jobs_follow_the_site() -> None:
    """Dask's Slurm jobs take partition, account and time from the site's record."""
    site = Site(partition="cpu", account="lab", time_min=90, sbatch={"comment": "x"}, qos="low")
    found = slurm_settings(site)
    assert (found["queue"], found["account"], found["walltime"]) == ("cpu", "lab", "01:30:00")
    assert found["job_extra_directives"] == ["--comment=x", "--qos=low"]
    from dask_jobqueue.slurm import SLURMJob

    script = SLURMJob("tcp://127.0.0.1:1", name="w", **found).job_script()
    assert "#SBATCH -p cpu" in script
    assert "#SBATCH --comment=x" in script


def test_unknown_workers_are_refused() -> None:
    """`--dask` names its choices."""
    with pytest.raises(InputError, match="none, local, slurm or"), dask_workers("cloud"):
        pass


def test_demand_in_a_plan() -> None:
    """A plan's own demand serves when there are no spans; a plan without any says what to give."""
    flow = PlanWorkflow(name="w", llms={"a": "a"})
    needs = demand({"a": calls(4.0, parallelism=4.0)})
    plan = Plan(workflows=(flow,), demand={"w": needs.summary})
    assert demands_in(plan)["w"].use("w", "a").fan_out == 4.0
    with pytest.raises(InputError, match=r"demand\.w: missing"):
        demands_in(Plan(workflows=(flow,)))
