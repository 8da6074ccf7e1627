"""Traces of agents, imported: what became of calls, roles, prefixes and think time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.tracing.demand.demand import demand_of
from scepsy_hpc.tracing.importers import import_agent_traces

TRACES = sorted((Path(__file__).parents[1] / "data" / "agent_traces").glob("*.json"))


def test_imported_traces_keep_calls_roles_and_prefixes() -> None:
    """Each trace is one run with all its calls; sub-agents' calls have their type as role and lie
    inside the run; prefixes point to earlier calls; think time is tool time before its call."""
    spans = import_agent_traces(TRACES, aliases={"claude-opus-4-5-20251101": "main"})
    runs = [s for s in spans if s.kind == "run"]
    calls = {s.span_id: s for s in spans if s.kind == "llm"}
    assert [r.run_id for r in runs] == ["trace_0277", "trace_0332", "trace_0360"]
    found = demand_of(spans, "agent_traces")
    assert set(found.llms) == {"main", "claude-haiku-4-5-20251001"}
    nested = [c for c in calls.values() if c.run_id == "trace_0277" and c.role]
    assert len(nested) == 44
    for span in calls.values():
        if span.prefix_of is not None:
            assert calls[span.prefix_of.span_id].start_s <= span.start_s
            assert span.prefix_of.tokens <= (span.input_tokens or 0)
    for span in (s for s in spans if s.kind == "tool"):
        assert calls[span.span_id.removesuffix(".think")].start_s == span.end_s
    # The second call of the first session's first sub-agent, by hand: the sub-agent starts at
    # 79.224, the call 6 s later; it takes 1.88 s, and the answer before it came at 81.384.
    second = calls["trace_0277.2"]
    assert (second.start_s, second.end_s) == pytest.approx((85.224, 87.104))
    assert (second.role, second.parents) == ("Explore", ("trace_0277.1",))
    think = next(s for s in spans if s.span_id == "trace_0277.2.think")
    assert think.start_s == pytest.approx(81.384)


def test_calls_without_duration_are_estimated_and_say_so(tmp_path: Path) -> None:
    """A stream that was cut off has status `unfinished` and ends no later than the next call."""
    path = tmp_path / "t.json"
    path.write_text(
        """{"id": "t", "requests": [
        {"t": 0, "type": "n", "model": "m", "in": 5, "out": 10, "api_time": 2.0, "id": 0},
        {"t": 4, "type": "s", "model": "m", "in": 5, "out": 10, "think_time": 2.0, "id": 1},
        {"t": 5, "type": "s", "model": "m", "in": 5, "out": 10, "think_time": 3.0, "id": 2}]}"""
    )
    spans = [s for s in import_agent_traces([path]) if s.kind == "llm"]
    assert [(s.start_s, s.end_s, s.status) for s in spans] == [
        (0.0, 2.0, "ok"), (4.0, 5.0, "unfinished"), (5.0, 7.0, "unfinished")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "line 1: not JSON"), ('{"id": "a"}', "not an agent trace: KeyError 'requests'"),
     ('{"id": "a", "requests": []}', "has no calls"), ("[]", "not an agent trace")],
)  # fmt: skip
def test_files_that_are_no_agent_traces_are_refused(tmp_path: Path, text: str, says: str) -> None:
    """A wrong file is named with what is missing."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=says):
        import_agent_traces([tmp_path / "x.json"])


@pytest.mark.parametrize(("earlier", "tokens"), [(1, 5), (0, 6), (7, 5)])
def test_a_prefix_that_cannot_be_is_not_imported(tmp_path: Path, earlier: int, tokens: int) -> None:
    """The call itself, more than its prompt, no call of the session: the file is named."""
    path = tmp_path / "t.json"
    request = {"type": "n", "model": "m", "in": 5, "out": 10, "api_time": 2.0}
    prefix = {"prefix_of": {"id": earlier, "tokens": tokens}}
    requests = [{"t": 0, "id": 0, **request}, {"t": 4, "id": 1, **request, **prefix}]
    path.write_text(json.dumps({"id": "t", "requests": requests}))
    with pytest.raises(InputError, match=r"t\.json: run t: span t\.1: prefix_of"):
        import_agent_traces([path])
