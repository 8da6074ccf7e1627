"""`spans import`: sessions of other tools become spans that the other commands read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_cases import error_lines

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.formats.spans import load_spans

TRACES = sorted((Path(__file__).parents[1] / "data" / "agent_traces").glob("*.json"))
OPUS, HAIKU = "claude-opus-4-5-20251101", "claude-haiku-4-5-20251001"


def import_line(out: Path, *more: str) -> list[str]:
    """A `scepsy spans import` of agent traces."""
    return ["spans", "import", "--from", "agent-traces", "-o", str(out), *more]


def calls_in(path: Path) -> list[dict]:
    """The calls of one session, those of its sub-agents too."""
    calls = []
    for request in json.loads(path.read_text())["requests"]:
        calls += request["requests"] if request["type"] == "subagent" else [request]
    return calls


def test_imported_sessions_have_their_demand(tmp_path, capsys):
    """Every call arrives under its alias, and `demand` counts the same calls and runs."""
    spans, flow = tmp_path / "spans.jsonl", tmp_path / "workflow.yaml"
    more = ["--workflow", "coding", "--llm", f"{OPUS}=main", "--json", *map(str, TRACES)]
    assert run_line(import_line(spans, *more)) == 0
    shown = json.loads(capsys.readouterr().out)
    calls = [call for path in TRACES for call in calls_in(path)]
    assert shown["num_runs"] == len(TRACES) == 3
    for alias, model in (("main", OPUS), (HAIKU, HAIKU)):
        mine = [call for call in calls if call["model"] == model]
        unfinished = sum(call.get("api_time") is None for call in mine)
        assert shown["llms"][alias]["num_calls"] == len(mine)
        assert shown["llms"][alias]["num_unfinished"] == unfinished
        flag = f"{unfinished} of {len(mine)} calls of {alias} are `unfinished`"
        assert any(f.startswith(flag) for f in shown["flags"]) is (unfinished > 0)
    flow.write_text(
        "schema: scepsy/workflow/v1\nname: coding\nagent: {command: [cat]}\n"
        f"llms: {{main: {{model: {OPUS}}}, {HAIKU}: {{model: {HAIKU}}}}}\n"
    )
    line = ["demand", "--workflow", str(flow), "--spans", str(spans), "--json"]
    assert run_line(line) == 0
    demand = json.loads(capsys.readouterr().out)
    assert demand["num_runs"] == 3
    for alias, of in demand["llms"].items():
        assert of["calls_per_run"] == pytest.approx(shown["llms"][alias]["num_calls"] / 3)


def test_the_table_shows_what_is_estimated(tmp_path, capsys):
    """Calls by LLM and a flag for unfinished ones on stdout, the file on stderr."""
    out = tmp_path / "spans.jsonl"
    assert run_line(import_line(out, str(TRACES[1]))) == 0
    shown = capsys.readouterr()
    assert "Imported: 1 runs" in shown.out
    assert f"calls of {OPUS} are `unfinished`" in shown.out
    assert shown.err == f"wrote {out}: {len(load_spans(out))} spans of 1 runs\n"


CALL = '{"t": 0, "model": "m", "in": 5, "out": 1, "api_time": 1.0, "id": 0}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "not an agent trace"),
        ('{"id": "a", "requests": ["x"]}', "not an agent trace"),
        ('{"id": "a", "requests": []}', "no calls"),
        (f'{{"id": "a", "requests": [{CALL}, {CALL}]}}', "'a.0' stands twice"),
        (f'{{"id": "a", "requests": [{CALL.replace("1.0", "NaN")}]}}', "finite number; got NaN"),
        (f'{{"id": "a", "requests": [{CALL.replace("1.0", "-1")}]}}', "is before start_s"),
        (f'{{"id": "a", "requests": [{CALL.replace("5", "-5")}]}}', "input_tokens"),
        (f'{{"id": "a", "requests": [{CALL.replace("5", "1e999")}]}}', "not an agent trace"),
        pytest.param("[" * 200_000, "not an agent trace", id="deep"),
    ],
)
def test_bad_traces_write_nothing(text, words, tmp_path, capsys):
    """Exit code 2, one line with the file and what is wrong; the good trace is not written too."""
    bad, out = tmp_path / "bad.json", tmp_path / "spans.jsonl"
    bad.write_text(text)
    assert run_line(import_line(out, str(TRACES[0]), str(bad))) == 2
    (shown,) = error_lines(capsys)
    assert shown.startswith(f"error: {bad}")
    assert words in shown
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "FILE"),
        (["nowhere.json"], "nowhere.json: no such file"),
        ([str(TRACES[0]), str(TRACES[0])], "stands twice in run 'trace_0277'"),
        ([str(TRACES[0]), "--llm", "gpt=main"], f"'gpt' is in no trace; they have {HAIKU}, {OPUS}"),
        ([str(TRACES[0]), "--llm", "main"], "as MODEL=ALIAS"),
        ([str(TRACES[0]), "--llm", f"{OPUS}=a", "--llm", f"{OPUS}=b"], "each model once"),
        ([str(TRACES[0]), "--from", "otel"], "'otel' is not 'agent-traces'"),
    ],
)
def test_bad_arguments_write_nothing(more, words, tmp_path, capsys):
    """Exit code 2 and one line that repeats the value and says what is allowed."""
    out = tmp_path / "spans.jsonl"
    assert run_line(import_line(out, *more)) == 2
    (shown,) = error_lines(capsys)
    assert words in shown
    assert not out.exists()
