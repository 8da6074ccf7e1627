"""`simulate`: the runs it replays are those of the workflows of the plan, and of no other."""

from __future__ import annotations

import json
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
