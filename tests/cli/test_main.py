"""The command line: option types, groups, sharing bundles, and what is left after a failure."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import click
import pytest

from scepsy_hpc.cli.main import COMMANDS, run_line, scepsy
from scepsy_hpc.cli.options import COUNT, DURATION, MINUTES, PERCENT, POSITIVE, print_json
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import load_bundle
from scepsy_hpc.formats.points import POINTS_FILE
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.tracing.demand.demand import demand_of

FLOW = shipped_path("workflows") / "rag_rerank"
H100 = shipped_path("profiles") / "h100_sxm"
BUNDLE = H100 / "Qwen__Qwen3-8B" / "vllm-0.24.0" / "token-grid"
CALL = '{"run_id":"r","span_id":"s","kind":"llm","llm":"generator","start_s":1,"end_s":2,'


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on stderr that start with `error:`; stdout must be empty."""
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return [line for line in shown.err.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (DURATION, "500ms", 0.5),
        (DURATION, "1.5h", 5400.0),
        (MINUTES, "90s", 2),
        (MINUTES, "2d", 2880),
        (PERCENT, "5%", 5.0),
        (PERCENT, "0.5", 0.5),
        (POSITIVE, "2e-3", 0.002),
        (COUNT, "12", 12),
    ],
)
def test_options_read(kind, text, value):
    """Times carry their unit; a percentage may; rates and counts are plain numbers."""
    assert kind.convert(text, None, None) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((DURATION, text) for text in ("30", "5x", "0s", "-3s", "s", "1h30m")),
        *((PERCENT, text) for text in ("101%", "-1", "half")),
        *((POSITIVE, text) for text in ("0", "-2", "nan", "inf", "2rps")),
        *((COUNT, text) for text in ("0", "-1", "1.5", "ten", "²")),
    ],
)
def test_options_refuse(kind, text):
    """The message repeats the value that it refuses."""
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(text, None, None)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize("line", [[], ["bundle"]])
def test_a_group_alone_shows_its_help(line, capsys):
    """Exit code 2: the help on stderr, and one line that says what is missing."""
    assert run_line(line) == 2
    assert error_lines(capsys) == [
        f"error: {' '.join(['scepsy', *line])}: give one of the commands above"
    ]


def test_the_list_of_commands_is_whole(capsys):
    """Each command stands in `scepsy --help` with a full line, none cut off."""
    assert run_line(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.split("Commands:")[1]
    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in shown
        assert line in shown
        assert scepsy.get_command(click.Context(scepsy), name) is not None


def test_a_slip_of_the_pen_is_answered_with_the_nearest_command(capsys):
    """An unknown command is named, with the one that was meant."""
    assert run_line(["plann"]) == 2
    assert "did you mean 'plan'?" in error_lines(capsys)[0]


def test_json_is_json_whatever_the_figures(capsys):
    """What is not finite is null: NaN is no JSON."""
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": (Path("x"),)})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"a": None, "b": [1.5, None], "c": ["x"]}


def test_demand_as_json(capsys):
    """`demand --json` prints what the spans say, and nothing else on stdout."""
    line = ["demand", "--workflow", str(FLOW / "workflow.yaml"), "--json"]
    assert run_line([*line, "--spans", str(FLOW / "spans.jsonl")]) == 0
    expected = demand_of(load_spans(FLOW / "spans.jsonl"), "rag_rerank").llms["generator"]
    shown = json.loads(capsys.readouterr().out)["llms"]["generator"]
    assert shown["calls_per_run"] == pytest.approx(expected.calls_per_run)
    assert shown["share_mean"] == pytest.approx(expected.share_mean)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"run_id": "x", broken', ["line 2", "JSON"]),
        (CALL + '"status":"ok","colour":1}', ["line 2", "colour", "unknown key", "start_s"]),
        (CALL.replace("1,", "NaN,") + '"status":"ok"}', ["line 2", "start_s", "NaN"]),
        (CALL.replace('"end_s":2', '"end_s":"2s"') + '"status":"ok"}', ["line 2", "end_s", "2s"]),
        (CALL.replace("generator", "writer") + '"status":"ok"}', ["writer", "reranker, generator"]),
    ],
)
def test_bad_spans(line, words, tmp_path, capsys):
    """The file, line, key, value and what is allowed, in one line."""
    spans = tmp_path / "spans.jsonl"
    good = CALL.replace('"s"', '"first"') + '"status":"ok"}'
    spans.write_text(f"{good}\n{line}\n")
    done = run_line(["demand", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(spans)])
    assert done == 2
    (shown,) = error_lines(capsys)
    for word in words:
        assert word in shown


def test_a_key_that_no_workflow_has(tmp_path, capsys):
    """An unknown key of workflow.yaml is named with the known ones."""
    flow = tmp_path / "workflow.yaml"
    flow.write_text((FLOW / "workflow.yaml").read_text().replace("tp_degrees", "tp_degree"))
    line = ["demand", "--workflow", str(flow), "--spans", str(FLOW / "spans.jsonl")]
    assert run_line(line) == 2
    (shown,) = error_lines(capsys)
    assert "workflow.yaml: llms.reranker.tp_degree: unknown key; known keys: model" in shown


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


def test_trace_refuses_an_alias_that_the_workflow_lacks(tmp_path, capsys):
    """--endpoint of an unknown LLM names those there are; no spans are written."""
    out = tmp_path / "spans.jsonl"
    line = ["trace", str(FLOW / "workflow.yaml"), str(FLOW / "tasks.jsonl"), "-o", str(out)]
    assert run_line([*line, "--endpoint", "writer=http://127.0.0.1:9/v1"]) == 2
    assert "reranker, generator" in error_lines(capsys)[0]
    assert not out.exists()


def test_bundles_travel_by_archive(tmp_path, capsys):
    """Export, verify, import and list: the points arrive byte by byte."""
    archive, there = tmp_path / "ours.tar.gz", tmp_path / "profiles"
    assert run_line(["bundle", "export", str(BUNDLE), "-o", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "Qwen/Qwen3-8B"
    assert run_line(["bundle", "verify", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_bad"] == 0
    assert run_line(["bundle", "import", str(archive), "-o", str(there), "--json"]) == 0
    (taken,) = json.loads(capsys.readouterr().out)
    arrived = Path(taken["path"])
    assert (arrived / POINTS_FILE).read_bytes() == (BUNDLE / POINTS_FILE).read_bytes()
    assert run_line(["bundle", "list", str(there), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_points"] == len(load_bundle(BUNDLE).points)


def test_verify_goes_on_past_a_bad_bundle(tmp_path, capsys):
    """Exit code 1; the sound one and the bad one are both told, with the line."""
    for name in ("good", "bad"):
        shutil.copytree(BUNDLE, tmp_path / "profiles" / name)
    points = tmp_path / "profiles" / "bad" / POINTS_FILE
    points.write_text(points.read_text().replace(",closed,", ",clozed,", 1))
    assert run_line(["bundle", "verify", str(tmp_path / "profiles")]) == 1
    shown = capsys.readouterr()
    assert "good: sound" in shown.out
    assert "bad: points.csv line" in shown.out
    assert "1 of 2 bundles are bad" in shown.err


def test_an_archive_is_told_apart_from_a_table(tmp_path, capsys):
    """A CSV file needs --table, and a text file is no archive; nothing is written."""
    table, text, out = tmp_path / "a.csv", tmp_path / "a.tar.gz", tmp_path / "profiles"
    for path in (table, text):
        path.write_text("gpu_type,model\n")
    assert run_line(["bundle", "import", str(table), "-o", str(out)]) == 2
    assert "--table" in error_lines(capsys)[0]
    assert run_line(["bundle", "import", str(text), "-o", str(out)]) == 2
    assert "not a bundle archive" in error_lines(capsys)[0]
    assert run_line(["bundle", "import", "--table", "modelled", str(table), "-o", str(out)]) == 2
    assert "column 'engine' is missing" in error_lines(capsys)[0]
    assert not out.exists()


def test_bundles_with_other_points_are_replaced_on_purpose_only(tmp_path, capsys):
    """Import refuses to write over other points; --replace does it."""
    there = tmp_path / "profiles"
    archive, other = tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"
    assert run_line(["bundle", "export", str(BUNDLE), "-o", str(archive)]) == 0
    table = tmp_path / "t.csv"
    table.write_text(
        "gpu_type,engine,engine_version,model,tp_degree,input_tokens,output_tokens,concurrency,"
        "throughput_rps,ttft_s,tpot_s,latency_s\n"
        "h100_sxm,vllm,0.24.0,Qwen/Qwen3-8B,1,100,10,1,0.5,0.1,0.2,2.0\n"
    )
    made = str(tmp_path / "made")
    assert run_line(["bundle", "import", "--table", "modelled", str(table), "-o", made]) == 0
    assert run_line(["bundle", "export", made, "-o", str(other)]) == 0
    assert run_line(["bundle", "import", str(archive), "-o", str(there)]) == 0
    capsys.readouterr()
    assert run_line(["bundle", "import", str(other), "-o", str(there)]) == 2
    assert "other points" in error_lines(capsys)[0]
    assert run_line(["bundle", "import", str(other), "-o", str(there), "--replace"]) == 0
    (header,) = there.rglob("bundle.yaml")
    assert len(load_bundle(header.parent).points) == 1


def test_a_run_that_was_never_submitted_leaves_no_folder(tmp_path, capsys, monkeypatch):
    """--cluster here outside an allocation: exit code 2, and no results folder."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    plan, tasks, out = tmp_path / "plan.yaml", tmp_path / "tasks.jsonl", tmp_path / "out"
    plan.write_text(
        "schema: scepsy/plan/v1\n"
        "workflows: [{name: w, llms: {a: a}, agent: {command: [cat]}}]\n"
        "llms: {a: {model: m, engine: simulated, gpu_type: h100_sxm, tp_degree: 1, "
        "gpu_share_pct: 100, num_replicas: 1}}\n"
        "instances: [{id: a0, llm: a, node: n, gpus: [0], gpu_share_pct: 100}]\n"
    )
    tasks.write_text('{"task_id": "t"}\n')
    assert run_line(["run", str(plan), str(tasks), "-o", str(out), "--cluster", "here"]) == 2
    assert "SLURM_JOB_ID" in error_lines(capsys)[0]
    assert not out.exists()


def test_a_full_disk_is_no_bug(tmp_path, capsys, monkeypatch):
    """Exit code 1 and the system's reason; the old file stays, no part of a new one."""
    out = tmp_path / "ours.tar.gz"
    out.write_text("old")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(os, "replace", full)
    assert run_line(["bundle", "export", str(BUNDLE), "-o", str(out)]) == 1
    assert error_lines(capsys) == [f"error: {out}: No space left on device"]
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
