"""`trace`: endpoints that are wrong leave no spans."""

from __future__ import annotations

from command_cases import FLOW, error_lines

from scepsy_hpc.cli.main import run_line


def test_trace_refuses_an_alias_that_the_workflow_lacks(tmp_path, capsys):
    """--endpoint of an unknown LLM names those there are; no spans are written."""
    out = tmp_path / "spans.jsonl"
    line = ["trace", str(FLOW / "workflow.yaml"), str(FLOW / "tasks.jsonl"), "-o", str(out)]
    assert run_line([*line, "--endpoint", "writer=http://127.0.0.1:9/v1"]) == 2
    assert "reranker, generator" in error_lines(capsys)[0]
    assert not out.exists()


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
