"""The report: rows of the comparison, notes, drift and plots, on runs small enough to check."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_case import make_run, plan_of

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path, to_plain
from scepsy_hpc.formats.figures import Figures, RunFigures
from scepsy_hpc.formats.plan import DemandSummary, LlmDemand, Plan, load_plan, save_plan
from scepsy_hpc.formats.spans import Span, load_spans, save_spans
from scepsy_hpc.report import plots
from scepsy_hpc.report.comparison import compare_run
from scepsy_hpc.report.drift import habits
from scepsy_hpc.report.notes import engine_notes, in_words
from scepsy_hpc.serving.measured import measured_of
from scepsy_hpc.serving.run_folder import RunFolder, write_json
from scepsy_hpc.serving.settings import RunSettings, save_settings

FLOW = shipped_path("workflows") / "rag_rerank"
TIMING = "h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid"


def with_prediction(folder: Path, figures: RunFigures, **load: float) -> None:
    """Store figures in the run's plan, for the load given as keys of its workflow."""
    path = RunFolder(folder).plan
    plan = load_plan(path)
    workflow = replace(plan.workflows[0], **load)
    predicted = Figures(per_workflow={"rag": figures}, flags=("rag: modelled: by someone",))
    save_plan(path, replace(plan, workflows=(workflow,), predicted=predicted))


def rows_of(folder: Path, *again: Path) -> dict:
    """Rows of the comparison by their metric."""
    return {row.metric: row for row in compare_run(folder, again).rows}


def test_stored_figures_count_for_the_load_they_are_for(tmp_path):
    """Runs of 2 to 11 s, one at a time: mean 6.5 s, in all 65 s; errors against these."""
    folder = make_run(tmp_path / "run")
    with_prediction(
        folder, RunFigures(latency_mean_s=7.8, throughput_rps=0.2), max_runs_in_flight=1
    )
    rows = rows_of(folder)
    assert rows["mean latency"].pipeline == 7.8
    assert rows["mean latency"].pipeline_error == pytest.approx(0.2)
    assert rows["throughput"].pipeline_error == pytest.approx(0.2 * 65.0 / 10.0 - 1.0)
    assert rows["p95 latency"].measured == pytest.approx(10.55)
    assert rows["p95 latency"].pipeline is None
    assert rows["makespan"].noise is None
    with_prediction(folder, RunFigures(latency_mean_s=7.8), max_runs_in_flight=2)
    assert rows_of(folder)["mean latency"].pipeline is None


def test_no_more_runs_end_than_arrive(tmp_path):
    """Under Poisson arrivals the rate is predicted, where the plan could take more."""
    folder = make_run(tmp_path / "run")
    save_settings(RunFolder(folder).settings, RunSettings(rate_rps=0.16))
    with_prediction(folder, RunFigures(throughput_rps=50.0), rate_rps=0.16)
    row = rows_of(folder)["throughput"]
    assert row.pipeline == 0.16
    assert row.pipeline_error == pytest.approx(0.16 * 6.5 - 1.0)


def test_noise_floor_is_the_largest_difference_of_all_runs(tmp_path):
    """Three runs, 10% and 21% slower: the noise floor is 21%."""
    first, *others = (make_run(tmp_path / str(s), slower=s) for s in (1.0, 1.1, 1.21))
    rows = rows_of(first, *others)
    for metric in ("mean latency", "makespan", "throughput"):
        assert rows[metric].noise == pytest.approx(0.21)
    assert "between 3 runs" in compare_run(first, others).explanation


def test_another_plan_is_no_noise(tmp_path):
    """--again of a run of another plan is refused by name."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    plan = load_plan(RunFolder(second).plan)
    save_plan(RunFolder(second).plan, replace(plan, instances=plan.instances[:2]))
    with pytest.raises(InputError, match="another plan"):
        compare_run(first, [second])


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the shipped workflow, planned on shipped profiles; its runs are the traced ones."""
    root = tmp_path_factory.mktemp("planned")
    topology, made = root / "topology.yaml", root / "plan.yaml"
    topology.write_text(
        "schema: scepsy/topology/v1\n"
        "nodes: [{name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1]]}]\n"
    )
    line = ["plan", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(FLOW / "spans.jsonl")]
    line += ["--profiles", str(shipped_path("profiles") / "h100_sxm"), "--rate", "1"]
    assert run_line([*line, "--topology", str(topology), "-o", str(made)]) == 0
    folder = RunFolder(root / "results")
    folder.create()
    spans = load_spans(FLOW / "spans.jsonl")
    save_plan(folder.plan, load_plan(made))
    save_spans(folder.spans, spans)
    save_settings(folder.settings, RunSettings(max_runs_in_flight=4))
    figures = to_plain(measured_of(spans, "rag_rerank"))
    write_json(folder.measured, {"since_s": 0.0, "workflows": {"rag_rerank": figures}})
    return folder.root


def test_a_report_predicts_as_predict_does(planned, capsys):
    """The pipeline's figures are those of `scepsy predict` for the run's own load."""
    num_runs = next(iter(compare_run(planned).measured.values())).num_ok
    line = ["predict", str(planned.parent / "plan.yaml"), "--tasks", str(num_runs), "--json"]
    line += ["--spans", str(FLOW / "spans.jsonl"), "--runs-in-flight", "4"]
    assert run_line(line) == 0
    expected = json.loads(capsys.readouterr().out)
    found = compare_run(planned)
    rows = {row.metric: row for row in found.rows}
    assert rows["mean latency"].pipeline == pytest.approx(expected["latency_mean_s"], rel=1e-3)
    assert rows["makespan"].pipeline == pytest.approx(expected["makespan_s"], rel=1e-3)
    assert rows["throughput"].pipeline == pytest.approx(num_runs / expected["makespan_s"], rel=1e-3)
    low, high = rows["mean latency"].interval
    assert low <= rows["mean latency"].simulation <= high
    calls = {row.llm: row for row in found.llms}
    assert calls["generator"].pipeline_s == pytest.approx(
        expected["per_llm"]["generator"]["latency_mean_s"], rel=1e-3
    )
    assert calls["generator"].simulation_error == pytest.approx(
        calls["generator"].simulation_s / calls["generator"].measured_s - 1.0
    )


def test_a_report_says_what_the_prediction_rests_on(planned, tmp_path):
    """Real engines are named with how their profile was made; flags stand there in words."""
    out = tmp_path / "report.html"
    assert run_line(["report", str(planned), "-o", str(out)]) == 0
    text = " ".join(re.sub(r"<[^>]+>", " ", out.read_text()).split())
    assert "SIMULATED" not in text
    assert "Qwen/Qwen3-8B by vllm 0.24.0 on h100_sxm, predicted from a modelled profile" in text
    assert "modelled, not measured" in text
    assert "capacity_lower_bound" not in text
    assert "time outside LLM calls" in text
    assert not (planned / "report.html").exists()


def test_a_bad_output_folder_leaves_nothing(tmp_path, capsys):
    """A report that cannot be written is one line and exit code 2."""
    folder = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert run_line(["report", str(folder), "-o", str(tmp_path / "file" / "r.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("few_runs: rag: fewer than 200", ("all", "few runs", "rag: fewer than 200")),
        ("a: derived: share 50%: x", ("a", "derived, not measured", "share 50%: x")),
        ("a: something else: y", ("a", "", "something else: y")),
        ("plain", ("all", "", "plain")),
    ],
)
def test_flags_in_words(flag, expected):
    """A flag is taken apart into what it is about, what it says, and details."""
    assert in_words(flag) == expected


def test_simulated_engines_name_their_timing():
    """The loud note has the profile, and that it was modelled, with its origin."""
    plan = plan_of("simulated")
    llm = replace(plan.llms["writer"], engine_args={"timing_bundle": TIMING})
    (note,) = engine_notes(replace(plan, llms={"writer": llm}))
    for word in ("SIMULATED", TIMING, "modelled", "aiconfigurator", "self-consistency"):
        assert word in note


def test_cpu_slices_are_not_taken_for_gpus():
    """vLLM on CPU slices is a real engine, and the note says that these are no GPUs."""
    plan = plan_of("vllm")
    llm = replace(plan.llms["writer"], gpu_type="cpu_slice", engine_version="0.9")
    notes = engine_notes(replace(plan, llms={"writer": llm}))
    assert notes[0] == "The engines were real: org/model by vllm 0.9 on cpu_slice."
    assert "nothing about GPUs" in notes[1]


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


def test_calls_in_flight_are_counted_by_time():
    """One call from 0 to 1 s and one from 0.5 to 2 s, in three bins."""
    level = plots._mean_level(
        np.array([0.0, 0.5]), np.array([1.0, 2.0]), np.array([0.0, 0.5, 1.0, 3.0])
    )
    assert level == pytest.approx([1.0, 2.0, 0.5])


def test_the_latency_line_meets_every_run():
    """Of few runs each is a step; of many the last is always there, at 1."""
    times, shares = plots._ended_within([float(n) for n in range(11, 1, -1)])
    assert times == pytest.approx(np.arange(2.0, 12.0))
    assert shares == pytest.approx(np.arange(1, 11) / 10)
    times, shares = plots._ended_within(list(range(5000)))
    assert (times[0], times[-1], shares[-1]) == (0.0, 4999.0, 1.0)
    assert len(times) == len(shares) <= plots.MOST_POINTS


def test_plots_of_a_long_batch_stay_small():
    """Ten thousand runs draw no more points than the eye sees."""
    rng = np.random.default_rng(1)
    starts = np.sort(rng.uniform(0, 1e4, 10_000))
    spans = [
        Span(
            run_id=f"r{i}",
            span_id=f"s{i}",
            kind="llm",
            llm="writer",
            start_s=float(start),
            end_s=float(start) + 5.0,
            status="ok",
        )
        for i, start in enumerate(starts)
    ]
    assert len(plots.calls_in_flight(spans)) < 100_000
    drawn = plots.latency_distribution({"rag": rng.exponential(5, 10_000)}, {"mean": 5.0})
    assert len(drawn) < 100_000
    assert "rag (10000 runs)" in drawn
