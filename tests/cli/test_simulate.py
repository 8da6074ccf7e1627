"""`simulate`: the runs it replays are those of the workflows of the plan, and of no other."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_cases import H100

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.files import shipped_path

FLOWS = ("rag_rerank", "beam_search")


def _spans_of_both(path: Path, named_on: tuple[str, ...]) -> Path:
    """The shipped spans of two workflows in one file, named on these kinds of spans alone."""
    lines = []
    for name in FLOWS:
        for line in (shipped_path("workflows") / name / "spans.jsonl").read_text().splitlines():
            span = json.loads(line)
            if span["kind"] not in named_on:
                del span["workflow"]
            lines.append(json.dumps(span))
    path.write_text("\n".join(lines) + "\n")
    return path


def _plan(spans: Path, *names: str) -> Path:
    """`plan.yaml` of these workflows at one run in two seconds each, on four H100."""
    topology, out = spans.parent / "topology.yaml", spans.parent / "plan.yaml"
    node = "  - {name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1, 2, 3]]}\n"
    topology.write_text("schema: scepsy/topology/v1\nnodes:\n" + node)
    line = ["plan", "--profiles", str(H100), "--topology", str(topology), "-o", str(out)]
    for name in names:
        workflow = shipped_path("workflows") / name / "workflow.yaml"
        line += ["--workflow", f"{name}={workflow}@0.5", "--spans", f"{name}={spans}"]
    assert run_line(line) == 0
    return out


def _simulated(capsys: pytest.CaptureFixture[str], plan: Path, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run_line(["simulate", str(plan), "--rate", "0.5", "--runs", "20", "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_two_workflows_that_only_run_spans_name(tmp_path, capsys):
    """Their calls are replayed: every figure is that of spans which all name their workflow."""
    on_all = _plan(_spans_of_both(tmp_path / "all.jsonl", ("run", "llm", "tool")), *FLOWS)
    wanted = _simulated(capsys, on_all)
    found = _simulated(capsys, _plan(_spans_of_both(tmp_path / "run.jsonl", ("run",)), *FLOWS))
    assert found == wanted
    assert len(found["per_llm"]) == 3  # both generators are one deployment
    # What the curves may be off by is said here, too: the intervals are those of the draws alone.
    off = [flag for flag in found["flags"] if "the mean latency of a call may be off" in flag]
    assert off
    assert all(llm["num_calls"] > 0 for llm in found["per_llm"].values())


@pytest.mark.parametrize("given", [False, True])
def test_one_workflow_of_a_file_of_two(given, tmp_path, capsys):
    """The other's runs are not replayed, whether the plan names the spans or the command does."""
    both = _spans_of_both(tmp_path / "both.jsonl", ("run",))
    plan = _plan(both, "rag_rerank")
    found = _simulated(capsys, plan, *(["--spans", str(both)] if given else []))
    assert found["num_runs"] == 20
    calls = {name: llm["num_calls"] for name, llm in found["per_llm"].items()}
    # Traced: 136 and 16 calls in 16 runs. Twenty runs are 16 of them and 4 once more.
    assert (calls["generator"], set(calls)) == (20, {"reranker", "generator"})
    assert 136 < calls["reranker"] < 2 * 136


def test_a_rate_beyond_the_plan_is_overloaded_in_words_and_json(tmp_path, capsys):
    """No figures, a flag that names deployment and load; the command itself has done its work."""
    plan = _plan(_spans_of_both(tmp_path / "both.jsonl", ("run",)), "rag_rerank")
    capsys.readouterr()
    assert run_line(["simulate", str(plan), "--rate", "5000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.get("latency_mean_s") is None
    assert any(": overloaded: offered " in flag for flag in found["flags"])
    assert run_line(["simulate", str(plan), "--rate", "5000"]) == 0
    shown = capsys.readouterr().out
    assert "No figures" in shown
    assert "overloaded" in shown


def test_runs_that_come_at_given_times(tmp_path, capsys):
    """Three runs of a file, two of them at once: as many come, the last 50 s after the first."""
    plan = _plan(_spans_of_both(tmp_path / "both.jsonl", ("run",)), "rag_rerank")
    capsys.readouterr()
    times = tmp_path / "times.jsonl"
    times.write_text('{"time_s": 100.0, "count": 2}\n{"time_s": 150.0, "workflow": "rag_rerank"}\n')
    assert run_line(["simulate", str(plan), "--arrivals", str(times), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_runs"] == 3
    assert found["makespan_s"] > 50.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rate", "1", "--runs-in-flight", "2"], "give one of --rate, --runs-in-flight"),
        ([], "give one of --rate, --runs-in-flight"),
        (["--rate", "1e-300"], "--rate: must be at least 1e-06 runs/s; is 1e-300"),
        (["--rate", "1", "--seed", "-1"], "'-1' is no whole number from 0 on"),
        (["--arrivals", "TIMES", "--runs", "3"], "--runs: the file of --arrivals says how many"),
    ],
)
def test_one_load_at_a_time(more, message, tmp_path, capsys):
    """Two loads, none, or a number of runs beside a file that says it: one line, exit code 2."""
    times = tmp_path / "times.csv"
    times.write_text("time_s\n1\n")
    line = ["simulate", str(times), *(str(times) if part == "TIMES" else part for part in more)]
    assert run_line(line) == 2
    assert message in capsys.readouterr().err


def _flat_server(folder: Path, number: int = 400) -> Path:
    """A hand-written plan of one replica that does one call a second however many are in it.

    Prompts are nearly all the work, and their lengths have the quantiles of an exponential
    distribution, so runs of one call are an M/M/1 queue with a shared server.
    """
    quantiles = [-math.log(1.0 - (i + 0.5) / number) for i in range(number)]
    inputs = [max(round(2000 * size), 1) for size in quantiles]
    mean = sum(inputs) / number
    spans = folder / "spans.jsonl"
    spans.write_text(
        "".join(
            f'{{"run_id":"r{i}","span_id":"s","kind":"llm","llm":"a","start_s":0,"end_s":1,'
            f'"input_tokens":{tokens},"output_tokens":1,"status":"ok"}}\n'
            for i, tokens in enumerate(inputs)
        )
    )
    columns = (
        "tp_degree,gpu_share_pct,load,concurrency,throughput_rps,latency_mean_s,"
        "input_tokens_mean,output_tokens_mean\n"
    )
    rows = [f"1,100,closed,{k},1.0,{k},{mean},1\n" for k in (1, 2, 4, 8, 16)]
    points = columns + "".join(rows)
    (folder / "points.csv").write_text(points)
    (folder / "bundle.yaml").write_text(
        "schema: scepsy/profile/v1\nmodel: org/m\nengine: vllm\nengine_version: 0.26.0\n"
        "engine_args: {max_num_seqs: 256}\nprecision: bf16\ngpu_type: h100_sxm\n"
        "gpu_memory_gib: 80\nweights_gib: 2.0\nkv_bytes_per_token: 1000\nhow: modelled\n"
        "source: a flat curve\nlicence: CC0-1.0\ndate: 2026-11-24\n"
        f"points_sha256: {hashlib.sha256(points.encode()).hexdigest()}\n"
    )
    plan = folder / "plan.yaml"
    plan.write_text(
        "schema: scepsy/plan/v1\nworkflows: [{name: w, llms: {a: a}}]\n"
        "llms: {a: {model: org/m, engine: vllm, gpu_type: h100_sxm, tp_degree: 1, "
        "gpu_share_pct: 100, num_replicas: 1}}\n"
    )
    return plan


def test_the_interval_holds_the_mean_of_a_shared_server(tmp_path, capsys):
    """As typed, M/M/1 at 50, 80 and 90% load: E[T] = 1 / (1 - load) lies in 8 of 9 intervals.

    Fewer would come in 6 of 100 cases where 95% of intervals hold it; seeds are fixed.
    """
    plan = _flat_server(tmp_path)
    held = 0
    for load in (0.5, 0.8, 0.9):
        for seed in range(3):
            capsys.readouterr()
            line = ["simulate", str(plan), "--rate", str(load), "--seed", str(seed), "--json"]
            line += ["--profiles", str(tmp_path), "--spans", str(tmp_path / "spans.jsonl")]
            assert run_line(line) == 0
            found = json.loads(capsys.readouterr().out)
            low_s, high_s = found["intervals"]["latency_mean_s"]
            held += low_s <= 1.0 / (1.0 - load) <= high_s
            assert found["latency_mean_s"] == pytest.approx(1.0 / (1.0 - load), rel=0.08)
            assert found["per_llm"]["a"]["server"] == "processor_sharing"
    assert held >= 8
