"""The command line's promises: exit codes, one clear line, nothing half-written, JSON on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_case import make_run, plan_of

from scepsy_hpc.cli.main import COMMANDS, run_line
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.plan import load_plan, save_plan

FLOW = shipped_path("workflows") / "rag_rerank"
H100 = shipped_path("profiles") / "h100_sxm"
NODE = "  - {name: a, gpu_type: %s, gpu_memory_gib: 80, nvlink_domains: [[0, 1]]}\n"


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """Two H100 on one node."""
    path = tmp_path / "topology.yaml"
    path.write_text("schema: scepsy/topology/v1\nnodes:\n" + NODE % "h100_sxm")
    return path


def plan_line(topology: Path, out: Path, *more: str) -> list[str]:
    """A `scepsy plan` of the shipped workflow on the shipped H100 profiles."""
    return [
        *("plan", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(FLOW / "spans.jsonl")),
        *("--profiles", str(H100), "--topology", str(topology), "-o", str(out), *more),
    ]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_every_command(command, capsys):
    """--help ends with 0, starts with a usage line and says what the command does."""
    assert run_line([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: scepsy {command}")
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80


def test_python_m_equals_scepsy():
    """`python -m scepsy_hpc` is the same program, exit code included."""
    line = [sys.executable, "-m", "scepsy_hpc", "status", "/nowhere/at/all"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["frob"], ["frob"]),
        (["plan"], ["Missing option"]),
        (["topology", "-o", "t.yaml"], ["--local", "--slurm"]),
        (["status", "nowhere"], ["nowhere"]),
        (["run", "nowhere.yaml", "tasks.jsonl", "-o", "out"], ["nowhere.yaml", "no such file"]),
        (["simulate", "nowhere.yaml"], ["--rate"]),
        (["bundle", "list", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_usage_is_one_line(line, words, capsys, tmp_path, monkeypatch):
    """Exit code 2, one line on stderr that names what is wrong, and no file."""
    monkeypatch.chdir(tmp_path)
    assert run_line(line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: ")
    for word in words:
        assert word in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rate", "-1"], "-1"),
        (["--rate", "nan"], "nan"),
        (["--tasks", "5"], "--deadline"),
        (["--tasks", "5", "--deadline", "30"], "30"),
        (["--rate", "1", "--latency-limit", "5x"], "5x"),
        (["--rate", "1", "--max-throughput"], "one of"),
        (["--rate", "1", "--engine", "warp"], "warp"),
    ],
)
def test_bad_targets(more, words, topology, tmp_path, capsys):
    """A target that means nothing is refused, and an existing plan stays as it was."""
    out = tmp_path / "plan.yaml"
    out.write_text("mine")
    assert run_line(plan_line(topology, out, *more)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("h100_sxm", "warp_9"), ["warp_9", "h100_sxm"]),
        (("gpu_memory_gib", "memory"), ["memory", "unknown key", "gpu_memory_gib"]),
        (("[[0, 1]]", "[]"), ["no free GPU"]),
        (("80", "80GB"), ["gpu_memory_gib", "80GB"]),
    ],
)
def test_bad_topologies(change, words, topology, tmp_path, capsys):
    """No profile for the GPU, a wrong key, no GPU, a unit where a number belongs."""
    topology.write_text(topology.read_text().replace(*change))
    assert run_line(plan_line(topology, tmp_path / "plan.yaml", "--rate", "1")) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "plan.yaml").exists()


def test_an_infeasible_rate_names_the_nearest(topology, tmp_path, capsys):
    """Exit code 3; the message holds the nearest rate, which is then feasible."""
    out = tmp_path / "plan.yaml"
    assert run_line(plan_line(topology, out, "--rate", "100000")) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nearest" in error
    assert not out.exists()


def test_json_is_all_of_stdout(topology, tmp_path, capsys):
    """--json prints one document with the plan's figures; messages go to stderr."""
    out = tmp_path / "plan.yaml"
    assert run_line(plan_line(topology, out, "--rate", "1", "--json")) == 0
    shown = json.loads(capsys.readouterr().out)
    plan = load_plan(out)
    assert plan.predicted is not None
    assert shown["predicted"]["latency_mean_s"] == pytest.approx(plan.predicted.latency_mean_s)
    assert {i["llm"] for i in shown["instances"]} == set(plan.llms)
    assert run_line(["predict", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["latency_mean_s"] == pytest.approx(plan.predicted.latency_mean_s, rel=1e-3)


def test_a_plan_that_cannot_run_is_refused_before_anything_is_written(tmp_path, capsys):
    """No agent: exit code 2 naming the workflow, and no results folder."""
    plan, tasks = tmp_path / "plan.yaml", tmp_path / "tasks.jsonl"
    save_plan(plan, plan_of("simulated"))
    tasks.write_text('{"task_id": "a"}\n')
    assert run_line(["run", str(plan), str(tasks), "-o", str(tmp_path / "out")]) == 2
    assert "agent: missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_is_not_there(tmp_path, capsys):
    """`trace` says which endpoint does not answer, and writes no spans."""
    out = tmp_path / "spans.jsonl"
    line = ["trace", str(FLOW / "workflow.yaml"), str(FLOW / "tasks.jsonl"), "-o", str(out)]
    for alias in ("generator", "reranker"):
        line += ["--endpoint", f"{alias}=http://127.0.0.1:9/v1"]
    assert run_line(line) == 2
    error = capsys.readouterr().err.splitlines()
    assert [text for text in error if text.startswith("error: ")] == error[-1:]
    assert "127.0.0.1:9" in error[-1]
    assert not out.exists()


def test_report_and_noise_floor(tmp_path, capsys):
    """Measured figures are the run's; the noise floor is the difference to another run."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", slower=1.1)
    assert run_line(["report", str(first), "--again", str(second), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    rows = {row["metric"]: row for row in shown["rows"]}
    assert rows["mean latency"]["measured"] == pytest.approx(6.5)
    assert rows["makespan"]["measured"] == pytest.approx(65.0)
    assert rows["throughput"]["measured"] == pytest.approx(10 / 65.0)
    assert rows["mean latency"]["noise"] == pytest.approx(0.1)
    assert "pipeline_error" not in rows["mean latency"]
    assert any("no new prediction" in note for note in shown["notes"])
    assert (first / "report.html").exists()


def test_a_real_engine_is_not_called_simulated(tmp_path):
    """The loud note stands only where engines were simulated."""
    for engine, expected in (("simulated", True), ("vllm", False)):
        folder = make_run(tmp_path / engine, engine)
        assert run_line(["report", str(folder)]) == 0
        assert ("SIMULATED" in (folder / "report.html").read_text()) is expected


def test_an_unfinished_run_has_no_report(tmp_path, capsys):
    """Exit code 2 and no file while nothing was measured."""
    folder = make_run(tmp_path / "a")
    (folder / "measured.json").unlink()
    assert run_line(["report", str(folder)]) == 2
    assert "has not ended" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_planning_loads_no_heavy_modules(topology, tmp_path):
    """`scepsy plan` on shipped profiles needs no plots, solver, server or cluster modules."""
    code = (
        "import sys\nfrom scepsy_hpc.cli.main import run_line\n"
        f"assert run_line({plan_line(topology, tmp_path / 'plan.yaml', '--rate', '1')!r}) == 0\n"
        "heavy = {'matplotlib', 'ortools', 'aiohttp', 'submitit', 'distributed'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
