"""Predicted beside measured: rows, errors and noise, on runs small enough to check by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_case import FLOW, make_run, planned_run

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import to_plain
from scepsy_hpc.formats.figures import Figures, LlmFigures, RunFigures
from scepsy_hpc.formats.plan import Plan, PlanWorkflow, load_plan, save_plan
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.report.comparison import Row, compare_run
from scepsy_hpc.serving.run_folder import RunFolder, write_json
from scepsy_hpc.serving.settings import RunSettings, save_settings

STORED = "Predicted figures are those stored in the plan"


def with_prediction(folder: Path, figures: RunFigures, **load: float) -> None:
    """Store figures in the run's plan, for the load given as keys of its workflow."""
    path = RunFolder(folder).plan
    plan = load_plan(path)
    workflow = replace(plan.workflows[0], **load)
    predicted = Figures(per_workflow={"rag": figures}, flags=("rag: modelled: by someone",))
    save_plan(path, replace(plan, workflows=(workflow,), predicted=predicted))


def with_measured(folder: Path, **workflows: Figures) -> None:
    """Let the run have measured these figures."""
    plain = {name: to_plain(figures) for name, figures in workflows.items()}
    write_json(RunFolder(folder).measured, {"since_s": 0.0, "workflows": plain})


def rows_of(folder: Path, *again: Path) -> dict[str, Row]:
    """Rows of the comparison by their metric."""
    return {row.metric: row for row in compare_run(folder, again).rows}


def test_measured_figures_and_their_units(tmp_path):
    """Runs of 2 to 11 s, one after the other: mean 6.5 s, 65 s in all, p95 at 10.55 s."""
    found = compare_run(make_run(tmp_path / "run"))
    rows = {row.metric: (row.measured, row.unit, row.workflow, row.llm) for row in found.rows}
    assert rows == {
        "throughput": (pytest.approx(10 / 65.0), "runs/s", "rag", None),
        "mean latency": (pytest.approx(6.5), "s", "rag", None),
        "p95 latency": (pytest.approx(10.55), "s", "rag", None),
        "makespan": (pytest.approx(65.0), "s", "rag", None),
    }
    assert found.pace == {"rag": "at most 1 at a time"}


def test_calls_have_rows_of_their_own(tmp_path):
    """The writer's calls last as long as their runs, 6.5 s; the judge's 0.5 s; nothing is known."""
    found = compare_run(make_run(tmp_path / "run"))
    assert {row.llm: row.measured for row in found.llms} == {
        "writer": pytest.approx(6.5),
        "judge": pytest.approx(0.5),
    }
    assert {(row.workflow, row.metric, row.unit) for row in found.llms} == {
        ("rag", "call latency", "s")
    }
    assert {(row.pipeline, row.simulation) for row in found.llms} == {(None, None)}


def test_stored_figures_count_for_the_load_they_are_for(tmp_path):
    """Errors against 6.5 s and 10 runs in 65 s: 7.8 s is 20% more; other loads have none."""
    folder = make_run(tmp_path / "run")
    with_prediction(
        folder, RunFigures(latency_mean_s=7.8, throughput_rps=0.2), max_runs_in_flight=1
    )
    rows = rows_of(folder)
    assert rows["mean latency"].pipeline == 7.8
    assert rows["mean latency"].pipeline_error == pytest.approx(0.2)
    assert rows["throughput"].pipeline_error == pytest.approx(0.2 * 65.0 / 10.0 - 1.0)
    assert rows["p95 latency"].pipeline is None
    assert rows["p95 latency"].pipeline_error is None
    assert rows["mean latency"].simulation is None
    assert rows["mean latency"].simulation_error is None
    assert rows["mean latency"].interval is None
    with_prediction(folder, RunFigures(latency_mean_s=7.8), max_runs_in_flight=2)
    assert rows_of(folder)["mean latency"].pipeline is None


def test_a_plan_for_a_rate_is_for_that_rate_alone(tmp_path):
    """Figures for 0.2 runs a second say nothing of a batch, nor of another rate."""
    folder = make_run(tmp_path / "run")
    with_prediction(folder, RunFigures(latency_mean_s=7.8), rate_rps=0.2, max_runs_in_flight=1)
    for settings, expected in (
        (RunSettings(rate_rps=0.2), 7.8),
        (RunSettings(rate_rps=0.1), None),
        (RunSettings(max_runs_in_flight=1), None),
    ):
        save_settings(RunFolder(folder).settings, settings)
        assert rows_of(folder)["mean latency"].pipeline == expected


def test_no_more_runs_end_than_arrive(tmp_path):
    """Under Poisson arrivals the rate is predicted where the plan could take more, not less."""
    folder = make_run(tmp_path / "run")
    save_settings(RunFolder(folder).settings, RunSettings(rate_rps=0.16))
    for offered_rps, expected_rps in ((50.0, 0.16), (0.1, 0.1)):
        with_prediction(folder, RunFigures(throughput_rps=offered_rps), rate_rps=0.16)
        row = rows_of(folder)["throughput"]
        assert row.pipeline == expected_rps
        assert row.pipeline_error == pytest.approx(expected_rps * 6.5 - 1.0)
    save_settings(RunFolder(folder).settings, RunSettings(rate_rps=2.0))
    assert compare_run(folder).pace == {"rag": "Poisson arrivals at 2 runs per second"}


def test_stored_throughput_of_a_batch_is_told_as_it_is(tmp_path):
    """Without a rate nothing limits what the plan says."""
    folder = make_run(tmp_path / "run")
    with_prediction(folder, RunFigures(throughput_rps=50.0), max_runs_in_flight=1)
    assert rows_of(folder)["throughput"].pipeline == 50.0


def test_nothing_measured_has_no_error(tmp_path):
    """A run in which nothing ended well has a throughput of zero: no error against it."""
    folder = make_run(tmp_path / "run")
    with_prediction(folder, RunFigures(throughput_rps=0.2), max_runs_in_flight=1)
    with_measured(folder, rag=Figures(num_runs=10, num_failed=10, throughput_rps=0.0))
    rows = rows_of(folder)
    assert (rows["throughput"].measured, rows["throughput"].pipeline_error) == (0.0, None)
    assert rows["mean latency"].measured is None


def test_noise_floor_is_the_largest_difference_of_all_runs(tmp_path):
    """Three runs, 10% and 21% slower: the noise floor is 21%, and none without another run."""
    first, *others = (make_run(tmp_path / str(s), slower=s) for s in (1.0, 1.1, 1.21))
    rows = rows_of(first, *others)
    for metric in ("mean latency", "makespan", "throughput"):
        assert rows[metric].noise == pytest.approx(0.21)
    assert {row.noise for row in rows_of(first).values()} == {None}


def test_noise_of_a_figure_that_only_one_run_has(tmp_path):
    """Where another run lacks a figure, or the workflow, there is nothing to compare."""
    first, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    with_measured(other, rag=Figures(num_runs=10, makespan_s=71.5))
    rows = rows_of(first, other)
    assert rows["mean latency"].noise is None
    assert rows["makespan"].noise == pytest.approx(0.1)
    with_measured(other, another=Figures(num_runs=10, makespan_s=71.5))
    assert rows_of(first, other)["makespan"].noise is None


def test_the_explanation_says_whose_figures_stand_there(tmp_path):
    """Stored figures are called stored, and the noise floor is explained or how to get one."""
    first, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    alone, both = compare_run(first), compare_run(first, [other])
    for found in (alone, both):
        assert found.explanation.startswith(STORED)
        assert "own load" not in found.explanation
        assert "+ says that the prediction is higher" in found.explanation
    assert "with --again" in alone.explanation
    assert "between 2 runs" in both.explanation
    assert "with --again" not in both.explanation


def test_why_there_is_no_new_prediction(tmp_path):
    """The note has the reason without the fix behind it; the flags are then the plan's own."""
    folder = make_run(tmp_path / "run")
    assert compare_run(folder).flags == ()
    with_prediction(folder, RunFigures(latency_mean_s=7.8), max_runs_in_flight=1)
    found = compare_run(folder)
    assert found.flags == ("rag: modelled: by someone",)
    (note,) = [note for note in found.notes if "no new prediction" in note]
    assert note.endswith("figures are the plan's own: plan: inputs: names no spans of rag")


def test_profiles_that_are_gone_leave_a_comparison(tmp_path):
    """A real engine is then named without the profile behind its prediction."""
    found = compare_run(make_run(tmp_path / "run", "vllm"))
    assert any(note.startswith("The engines were real: org/model by vllm") for note in found.notes)


def test_another_plan_is_no_noise(tmp_path):
    """--again of a run of another plan is refused by name."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    plan = load_plan(RunFolder(second).plan)
    other = replace(plan.instances[0], node="other")
    save_plan(RunFolder(second).plan, replace(plan, instances=(other, *plan.instances[1:])))
    with pytest.raises(InputError, match="another plan"):
        compare_run(first, [second])


def test_a_run_that_has_not_ended_is_refused(tmp_path):
    """Without measured figures there is nothing to compare; the file is named."""
    folder = make_run(tmp_path / "run")
    RunFolder(folder).measured.unlink()
    with pytest.raises(InputError, match=r"measured\.json: no figures"):
        compare_run(folder)


def test_several_workflows_have_their_stored_figures(tmp_path):
    """Each workflow is compared with its own figures, its own load; no new prediction is made."""
    folder = make_run(tmp_path / "run")
    paths = RunFolder(folder)
    plan = load_plan(paths.plan)
    rag = replace(plan.workflows[0], max_runs_in_flight=1)
    extra = PlanWorkflow(name="sum", llms={"short": "writer"}, max_runs_in_flight=8)
    told = {name: RunFigures(latency_mean_s=5.0) for name in ("rag", "sum", "unplanned")}
    predicted = Figures(per_workflow=told)
    save_plan(paths.plan, replace(plan, workflows=(rag, extra), predicted=predicted))
    measured = Figures(num_runs=3, latency_mean_s=4.0)
    with_measured(folder, rag=measured, sum=measured, unplanned=measured)
    found = compare_run(folder)
    means = {row.workflow: row for row in found.rows if row.metric == "mean latency"}
    assert {name: row.pipeline for name, row in means.items()} == {
        "rag": 5.0,
        "sum": None,
        "unplanned": None,
    }
    assert means["rag"].pipeline_error == pytest.approx(0.25)
    assert set(found.pace) == {"rag", "sum", "unplanned"}
    assert any(note.startswith("several workflows at once") for note in found.notes)
    assert found.explanation.startswith(STORED)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned run, four at a time; tests leave it as it is."""
    return planned_run(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def said(capsys):
    """The figures that a command prints as JSON."""

    def run(*line: str) -> dict[str, Any]:
        capsys.readouterr()
        assert run_line([*line, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_a_batch_is_predicted_as_predict_and_simulate_do(planned, said):
    """Both predictions are those of the commands, for as many runs, in flight, and the seed."""
    found = compare_run(planned)
    num_runs = len({span.run_id for span in load_spans(FLOW / "spans.jsonl")})
    path, load = str(planned.parent / "plan.yaml"), ("--runs-in-flight", "4")
    spans = ("--spans", str(FLOW / "spans.jsonl"))
    pipeline = said("predict", path, "--tasks", str(num_runs), *load, *spans)
    simulation = said("simulate", path, "--runs", str(num_runs), "--seed", "3", *load)
    rows = {row.metric: row for row in found.rows}
    assert rows["mean latency"].pipeline == pytest.approx(pipeline["latency_mean_s"], rel=1e-3)
    assert rows["makespan"].pipeline == pytest.approx(pipeline["makespan_s"], rel=1e-3)
    # Runs over the whole batch, fill and drain included.
    over_all = num_runs / pipeline["makespan_s"]
    assert rows["throughput"].pipeline == pytest.approx(over_all, rel=1e-3)
    simulated = simulation["per_workflow"]["rag_rerank"]
    for metric, key in (("mean latency", "latency_mean_s"), ("makespan", "makespan_s")):
        row = rows[metric]
        assert row.simulation == pytest.approx(simulated[key])
        assert row.simulation_error == pytest.approx(simulated[key] / row.measured - 1.0)
    low, high = rows["mean latency"].interval
    assert [low, high] == pytest.approx(simulated["intervals"]["latency_mean_s"])
    calls = {row.llm: row for row in found.llms}["generator"]
    by_llm = (
        said_by["per_llm"]["generator"]["latency_mean_s"] for said_by in (pipeline, simulation)
    )
    assert (calls.pipeline, calls.simulation) == (
        pytest.approx(next(by_llm), rel=1e-3),
        pytest.approx(next(by_llm)),
    )
    assert calls.simulation_error == pytest.approx(calls.simulation / calls.measured - 1.0)
    assert set(found.flags) == {*pipeline["flags"], *simulation["flags"]}
    assert list(found.flags) == sorted(found.flags)


def test_a_new_prediction_is_called_one(planned):
    """The explanation says that figures are for this run's own load, and no note says why not."""
    found = compare_run(planned)
    assert "this run's own load" in found.explanation.replace("\n", " ")
    assert STORED not in found.explanation
    assert not [note for note in found.notes if "no new prediction" in note]
    # And how far the sample of runs it rests on may be off by itself.
    assert [note for note in found.notes if note.startswith("16 traced runs tell the mean length")]


def changed(planned: Path, root: Path, settings: RunSettings, plan: Plan | None = None) -> Path:
    """The planned run with other settings, and perhaps another plan."""
    made = RunFolder(root)
    made.create()
    save_plan(made.plan, plan or load_plan(RunFolder(planned).plan))
    save_settings(made.settings, settings)
    made.measured.write_bytes(RunFolder(planned).measured.read_bytes())
    return root


def test_a_rate_is_predicted_as_predict_does(planned, tmp_path, said):
    """Under arrivals the pipeline has no makespan, and as many runs end as arrive."""
    rows = rows_of(changed(planned, tmp_path / "open", RunSettings(rate_rps=0.5)))
    expected = said("predict", str(planned.parent / "plan.yaml"), "--rate", "0.5")
    assert rows["mean latency"].pipeline == pytest.approx(expected["latency_mean_s"], rel=1e-3)
    assert rows["throughput"].pipeline == 0.5
    assert rows["makespan"].pipeline is None
    assert rows["makespan"].simulation > 0


def test_without_any_load_runs_come_one_by_one(planned, tmp_path, said):
    """Settings that name no load are a batch of one run at a time."""
    rows = rows_of(changed(planned, tmp_path / "bare", RunSettings()))
    line = ("--tasks", "16", "--runs-in-flight", "1")
    expected = said("predict", str(planned.parent / "plan.yaml"), *line)
    assert rows["makespan"].pipeline == pytest.approx(expected["makespan_s"], rel=1e-3)


def test_calls_are_compared_with_the_deployment_behind_their_alias(planned, tmp_path):
    """An alias served by a deployment of another name has that deployment's figures."""
    plan = load_plan(RunFolder(planned).plan)
    llms = {"big" if name == "generator" else name: llm for name, llm in plan.llms.items()}
    placed = tuple(replace(i, llm="big") if i.llm == "generator" else i for i in plan.instances)
    (flow,) = plan.workflows
    flow = replace(flow, llms={**flow.llms, "generator": "big"})
    renamed = replace(plan, llms=llms, instances=placed, workflows=(flow,), predicted=None)
    settings = RunSettings(max_runs_in_flight=4, seed=3)
    found = compare_run(changed(planned, tmp_path / "renamed", settings, renamed))
    before = {row.llm: row for row in compare_run(planned).llms}
    after = {row.llm: row for row in found.llms}
    assert set(after) == {"generator", "reranker"}
    assert after["generator"].pipeline == pytest.approx(before["generator"].pipeline)
    assert after["generator"].measured == before["generator"].measured


def test_an_alias_that_no_plan_knows_has_no_prediction(planned, tmp_path):
    """Calls of an LLM outside the plan are shown as measured, beside nothing."""
    root = changed(planned, tmp_path / "more", RunSettings(max_runs_in_flight=4))
    llms = {"stranger": LlmFigures(num_calls=2, latency_mean_s=1.5)}
    with_measured(root, rag_rerank=Figures(num_runs=16, num_failed=0, per_llm=llms))
    (row,) = compare_run(root).llms
    assert (row.llm, row.measured, row.pipeline, row.simulation) == ("stranger", 1.5, None, None)


def test_a_run_without_figures_is_refused(tmp_path: Path) -> None:
    """Where no run ended since the start there is nothing to compare, and the line says so."""
    folder = make_run(tmp_path / "run")
    with_measured(folder)
    with pytest.raises(InputError, match="no figures; the run has not ended, or ran no task"):
        compare_run(folder)
