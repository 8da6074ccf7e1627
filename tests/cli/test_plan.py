"""`plan`: targets, topologies, what is infeasible, and what it need not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_cases import FLOW, H100, error_lines

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.formats.plan import load_plan

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


def test_a_model_without_a_profile(tmp_path, capsys):
    """`plan` names the model and the GPU type, what there is, and how to get it."""
    flow, topology, out = (tmp_path / n for n in ("workflow.yaml", "topology.yaml", "plan.yaml"))
    flow.write_text((FLOW / "workflow.yaml").read_text().replace("Qwen/Qwen3-8B", "org/none"))
    topology.write_text(
        "schema: scepsy/topology/v1\n"
        "nodes: [{name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0]]}]\n"
    )
    line = ["plan", "--workflow", str(flow), "--spans", str(FLOW / "spans.jsonl"), "--rate", "1"]
    line += ["--profiles", str(H100), "--topology", str(topology), "-o", str(out)]
    assert run_line(line) == 2
    (shown,) = error_lines(capsys)
    for word in ("org/none", "h100_sxm", "Qwen/Qwen3-8B", "scepsy profile"):
        assert word in shown
    assert not out.exists()


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


def test_spans_are_found_again_whatever_their_file_is_called(topology, tmp_path, capsys):
    """A plan names its spans by role: `simulate` finds those in `runs.ndjson` too."""
    spans, out = tmp_path / "runs.ndjson", tmp_path / "plan.yaml"
    spans.write_bytes((FLOW / "spans.jsonl").read_bytes())
    line = [str(spans) if w.endswith("spans.jsonl") else w for w in plan_line(topology, out)]
    assert run_line([*line, "--rate", "1"]) == 0
    named = {(i.role, i.workflow, i.path) for i in load_plan(out).inputs}
    assert ("spans", "rag_rerank", str(spans)) in named
    assert ("topology", None, str(topology)) in named
    assert {role for role, _, _ in named} == {"workflow", "spans", "profile", "topology"}
    capsys.readouterr()
    assert run_line(["simulate", str(out), "--rate", "0.5", "--runs", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_runs"] > 0


def test_a_plan_without_roles_is_refused(topology, tmp_path, capsys):
    """A plan of an earlier version, whose inputs have no roles: one line that says what to add."""
    out = tmp_path / "plan.yaml"
    assert run_line(plan_line(topology, out, "--rate", "1")) == 0
    plain = yaml.safe_load(out.read_text())
    for item in plain["inputs"]:
        del item["role"]
    out.write_text(yaml.safe_dump(plain))
    capsys.readouterr()
    assert run_line(["simulate", str(out), "--rate", "0.5"]) == 2
    (shown,) = error_lines(capsys)
    assert "inputs[0].role: missing" in shown


def test_a_workflow_on_a_file_of_no_workflow_is_refused(topology, tmp_path, capsys):
    """A topology is nobody's: a role mistyped for `spans` must not pass as one."""
    out = tmp_path / "plan.yaml"
    assert run_line(plan_line(topology, out, "--rate", "1")) == 0
    plain = yaml.safe_load(out.read_text())
    number = next(i for i, item in enumerate(plain["inputs"]) if item["role"] == "topology")
    plain["inputs"][number]["workflow"] = plain["workflows"][0]["name"]
    out.write_text(yaml.safe_dump(plain))
    capsys.readouterr()
    assert run_line(["simulate", str(out), "--rate", "0.5"]) == 2
    (shown,) = error_lines(capsys)
    assert f"inputs[{number}].workflow" in shown
    assert "topology" in shown


def test_a_run_without_calls_and_length_is_planned(topology, tmp_path, capsys):
    """Every allocation takes 0 s, so the bars of the explanation have no longest one."""
    spans, out = tmp_path / "spans.jsonl", tmp_path / "plan.yaml"
    spans.write_text(
        '{"run_id":"r","span_id":"s","kind":"run","start_s":0,"end_s":0,"status":"ok"}\n'
    )
    line = plan_line(topology, out, "--rate", "1")
    line[line.index("--spans") + 1] = str(spans)
    assert run_line(line) == 0, capsys.readouterr().err
    assert load_plan(out).predicted.latency_mean_s == 0


@pytest.mark.parametrize("target", [("--max-throughput",), ("--tasks", "5", "--deadline", "1h")])
def test_spans_without_calls_give_no_load(target, topology, tmp_path, capsys):
    """Where no LLM is called there is no highest rate and no batch to plan: exit code 2."""
    spans, out = tmp_path / "spans.jsonl", tmp_path / "plan.yaml"
    spans.write_text(
        '{"run_id":"r","span_id":"s","kind":"run","start_s":0,"end_s":9,"status":"ok"}\n'
    )
    line = plan_line(topology, out, *target)
    line[line.index("--spans") + 1] = str(spans)
    assert run_line(line) == 2
    (shown,) = error_lines(capsys)
    assert shown.startswith("error: spans: no LLM is called")
    assert not out.exists()


def test_the_screen_shows_both_figures_and_the_frontier(topology, tmp_path, capsys):
    """Predicted beside simulated, GPUs against latency, the certificate, every flag of the file."""
    out = tmp_path / "plan.yaml"
    assert run_line(plan_line(topology, out, "--rate", "1")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    plan = load_plan(out)
    for words in ("predicted simulated 95% interval", "frontier: best mean latency", "rests on: "):
        assert words in shown
    for flag in (*plan.predicted.flags, *plan.simulated.flags):
        words = " ".join(flag.split())
        name, _, said = words.partition(": ")
        assert f"{name}: {said}" in shown or (f"{name}, " in shown and f": {said}" in shown)
    assert {w.engine_version for w in plan.llms.values()} == {"0.24.0"}
    assert all(w.precision and w.capacity_rps for w in plan.llms.values())


def test_two_percent_for_fewer_gpus_unless_the_best_is_asked_for(topology, tmp_path):
    """The default takes fewer GPUs within 2%, says what was given up, and `--within 0%` none."""
    few, best = tmp_path / "few.yaml", tmp_path / "best.yaml"
    assert run_line(plan_line(topology, few, "--rate", "1", "--json")) == 0
    assert run_line(plan_line(topology, best, "--rate", "1", "--within", "0%", "--json")) == 0
    few_plan, best_plan = load_plan(few), load_plan(best)
    assert best_plan.certificate.given_up_pct == 0
    assert 0 <= few_plan.certificate.given_up_pct <= 2
    assert few_plan.certificate.gap == pytest.approx(best_plan.certificate.gap, abs=1e-6)
    assert len(few_plan.instances) <= len(best_plan.instances)


def test_a_batch_says_its_start_up(topology, tmp_path, capsys):
    """`--startup` is part of GPU-hours and of the job's time limit, and belongs to batches."""
    out = tmp_path / "plan.yaml"
    line = ("--tasks", "200", "--deadline", "8h", "--check-calls", "20000")
    limits = []
    for startup in ("5min", "50min"):
        assert run_line(plan_line(topology, out, *line, "--startup", startup)) == 0
        shown = capsys.readouterr().out
        plan = load_plan(out)
        assert f"({60 * int(startup[:-3])} s start-up + " in " ".join(shown.split())
        assert plan.certificate.metric == "gpu_hours"
        limits.append(plan.allocation.components[0].time_min)
    assert limits[1] - limits[0] == 45
    assert run_line(plan_line(topology, out, "--rate", "1", "--startup", "5min")) == 2
    assert "--startup belongs to --tasks" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("predict",), ("simulate", "--rate", "1")])
def test_a_plan_that_cannot_be_is_refused(command, topology, tmp_path, capsys):
    """Three whole replicas on one GPU: exit code 2, and one line that names the place."""
    out = tmp_path / "plan.yaml"
    assert run_line(plan_line(topology, out, "--rate", "1")) == 0
    plain = yaml.safe_load(out.read_text())
    first = plain["instances"][0]
    plain["llms"][first["llm"]]["num_replicas"] = 3
    plain["llms"][first["llm"]]["tp_degree"] = 1
    others = [i for i in plain["instances"] if i["llm"] != first["llm"]]
    one = {**first, "gpus": [0], "gpu_share_pct": 100}
    plain["llms"][first["llm"]]["gpu_share_pct"] = 100
    plain["instances"] = [{**one, "id": f"x{i}"} for i in range(3)] + others
    out.write_text(yaml.safe_dump(plain))
    capsys.readouterr()
    assert run_line([command[0], str(out), *command[1:]]) == 2
    (shown,) = error_lines(capsys)
    assert "instances[1].gpu_share_pct" in shown
    assert "200%" in shown


def test_a_time_limit_is_flagged(topology, tmp_path):
    """With `--time-limit` a clock may decide, and the plan says so; without it, nothing is said."""
    out = tmp_path / "plan.yaml"
    for more, flagged in (([], False), (["--time-limit", "5s"], True)):
        assert run_line(plan_line(topology, out, "--rate", "0.5", *more)) == 0
        explanation = load_plan(out).explanation
        assert any("time_limit: " in line for line in explanation) == flagged


def test_the_highest_rate_is_one_that_simulation_carries(tmp_path, capsys):
    """Four GPUs for beam search: caches lose prefixes that the search counts on.

    The rate is below what a closed load reaches, the rule is that of the higher throughput, and at
    that rate latencies have a mean.
    """
    topology, out = tmp_path / "topology.yaml", tmp_path / "plan.yaml"
    node = "  - {name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1, 2, 3]]}\n"
    topology.write_text("schema: scepsy/topology/v1\nnodes:\n" + node)
    flow = FLOW.parent / "beam_search"
    line = ["plan", "--workflow", str(flow / "workflow.yaml"), "--spans", str(flow / "spans.jsonl")]
    line += ["--profiles", str(H100), "--topology", str(topology), "-o", str(out)]
    assert run_line([*line, "--max-throughput", "--check-calls", "160000"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    plan = load_plan(out)
    (flows,) = plan.workflows
    assert plan.simulated is not None
    assert plan.certificate is not None
    reached = plan.simulated.throughput_rps
    assert flows.rate_rps == pytest.approx(0.95 * reached, rel=1e-6)
    assert flows.rate_rps < 0.9 * plan.certificate.value
    assert "95% of what a closed load reaches in simulation" in said
    assert plan.routing.rule == "sticky_prefix"
    assert plan.simulated.latency_mean_s is not None


def test_what_is_read_is_not_overwritten(topology, tmp_path, capsys):
    """`-o` on the spans, the topology, or a link to them: refused, and they stay as they were."""
    spans = tmp_path / "spans.jsonl"
    spans.write_bytes((FLOW / "spans.jsonl").read_bytes())
    (tmp_path / "link").symlink_to(spans)
    for output in (spans, topology, tmp_path / "link"):
        line = ["plan", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(spans)]
        line += ["--profiles", str(H100), "--topology", str(topology), "-o", str(output)]
        before = output.read_bytes()
        assert run_line([*line, "--rate", "1"]) == 2
        assert "is read by this command; give another file" in capsys.readouterr().err
        assert output.read_bytes() == before


def test_a_limit_on_gpus_that_holds_nothing_names_one_that_does(tmp_path, capsys):
    """Two LLMs that share no GPU on one GPU: exit 3, and two would do."""
    topology = tmp_path / "topology.yaml"
    topology.write_text("schema: scepsy/topology/v1\nnodes:\n" + NODE % "h100_sxm")
    flow = tmp_path / "workflow.yaml"
    text = (FLOW / "workflow.yaml").read_text()
    plain = yaml.safe_load(text)
    for llm in plain["llms"].values():
        llm["gpu_shares_pct"] = [100]
    flow.write_text(yaml.safe_dump(plain))
    line = ["plan", "--workflow", str(flow), "--spans", str(FLOW / "spans.jsonl")]
    line += ["--profiles", str(H100), "--topology", str(topology), "-o", str(tmp_path / "p.yaml")]
    assert run_line([*line, "--rate", "1", "--gpus", "1"]) == 3
    assert "2 GPUs, not 1, hold every LLM" in " ".join(capsys.readouterr().err.split())
    assert run_line([*line, "--rate", "1", "--gpus", "2"]) == 0


@pytest.mark.parametrize("value", ["-4", "lots", "0", "true", "1.5"])
def test_engine_args_that_no_engine_takes(value, topology, tmp_path, capsys):
    """`max_num_seqs` bounds capacity: what is no whole number is refused in one line."""
    flow = tmp_path / "workflow.yaml"
    plain = yaml.safe_load((FLOW / "workflow.yaml").read_text())
    next(iter(plain["llms"].values()))["engine_args"] = {"max_num_seqs": yaml.safe_load(value)}
    flow.write_text(yaml.safe_dump(plain))
    line = ["plan", "--workflow", str(flow), "--spans", str(FLOW / "spans.jsonl")]
    line += ["--profiles", str(H100), "--topology", str(topology), "-o", str(tmp_path / "p.yaml")]
    assert run_line([*line, "--rate", "1"]) == 2
    assert "max_num_seqs must be a whole number from 1 on" in error_lines(capsys)[0]


@pytest.mark.parametrize("rate", ["1_0", "٣", "1e999"])
def test_numbers_are_plain(rate, topology, tmp_path, capsys):
    """Digits of other scripts and underscores are no figures of a command line."""
    assert run_line(plan_line(topology, tmp_path / "p.yaml", "--rate", rate)) == 2
    assert "is no number above 0" in capsys.readouterr().err
