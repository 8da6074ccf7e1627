"""`demand`: figures as JSON, and bad spans or workflows named in one line."""

from __future__ import annotations

import gzip
import json

import pytest
from command_cases import FLOW, error_lines

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.tracing.demand.demand import demand_of

CALL = '{"run_id":"r","span_id":"s","kind":"llm","llm":"generator","start_s":1,"end_s":2,'


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


def test_the_agents_cpu_is_shown(tmp_path, capsys):
    """Where run spans say what their agent used, the screen shows its mean, and JSON as well."""
    spans = tmp_path / "spans.jsonl"
    run = '{"run_id":"r","span_id":"run","kind":"run","start_s":0,"end_s":3,"status":"ok"'
    spans.write_text(f'{CALL}"status":"ok"}}\n{run},"cpu_s":0.25}}\n')
    line = ["demand", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(spans)]
    assert run_line(line) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.25 s of its agent's CPU" in shown
    assert run_line([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cpu_s"] == 0.25


def test_packed_spans_say_the_same(tmp_path, capsys):
    """Parts and file of a long run give the demand that one file gives, byte for byte."""
    lines = (FLOW / "spans.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "spans").mkdir()
    part = tmp_path / "spans" / "000001.jsonl.gz"
    part.write_bytes(gzip.compress(b"".join(lines[:-20])))
    (tmp_path / "spans.jsonl").write_bytes(b"".join(lines[-20:]))
    said = []
    for spans in (FLOW / "spans.jsonl", tmp_path / "spans.jsonl"):
        line = ["demand", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(spans)]
        assert run_line([*line, "--json"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
