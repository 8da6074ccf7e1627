"""Spans from other tools' traces of agents."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import read_text
from scepsy_hpc.formats.spans import Prefix, Span, check_references, checked_span

UNFINISHED = "unfinished"
# What plain data raises that is not of the shape wanted.
_MALFORMED = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)


def import_agent_traces(
    paths: Sequence[Path | str],
    workflow: str = "agent_traces",
    aliases: Mapping[str, str] | None = None,
) -> list[Span]:
    """Spans of agent sessions in kv-cache-tester's JSON, one run a file.

    Each model is an LLM (``aliases`` may rename it), a sub-agent's type the role of its calls; the
    time before a call that the trace calls think time is a tool span. A call without duration
    (streams that were cut off) gets status `unfinished` and its output tokens times the model's
    median seconds per token, at most until the next call. Raises InputError, also for a session
    that is given twice and for an alias of a model that no trace has.
    """
    aliases = aliases or {}
    traces = [_Trace(path, workflow, aliases) for path in paths]
    models = sorted({str(model) for trace in traces for model in trace.models})
    strange = [model for model in aliases if model not in models]
    if strange:
        raise InputError(f"model {strange[0]!r} is in no trace; they have {', '.join(models)}")
    seen: set[tuple[str, str]] = set()
    found = []
    for trace in traces:
        mine = [checked_span(span, trace.path, seen) for span in trace.spans()]
        try:
            check_references(mine)
        except InputError as error:
            raise InputError(f"{trace.path}: {error}") from None
        found += mine
    return found


def import_summary(spans: Sequence[Span]) -> dict[str, Any]:
    """Runs, and calls and mean tokens of each LLM, with flags, as plain data."""
    calls = defaultdict(list)
    for span in spans:
        if span.kind == "llm":
            calls[str(span.llm)].append(span)
    llms = {
        llm: {
            "num_calls": len(of),
            "num_unfinished": sum(span.status == UNFINISHED for span in of),
            "input_tokens_mean": statistics.fmean(span.input_tokens or 0 for span in of),
            "output_tokens_mean": statistics.fmean(span.output_tokens or 0 for span in of),
        }
        for llm, of in calls.items()
    }
    flags = [
        f"{of['num_unfinished']} of {of['num_calls']} calls of {llm} are `unfinished`: the trace "
        "has no end for them; their durations are estimates"
        for llm, of in llms.items()
        if of["num_unfinished"]
    ]
    num_runs = len({span.run_id for span in spans})
    return {"num_runs": num_runs, "llms": llms, "flags": flags}


@dataclass(frozen=True, slots=True)
class _Call:
    """One call with absolute times; ``agent`` tells sequences of calls apart."""

    data: dict[str, Any]
    start_s: float
    end_s: float
    finished: bool
    role: str | None
    before: tuple[str, ...]
    free_since_s: float


class _Trace:
    def __init__(self, path: Path | str, workflow: str, aliases: Mapping[str, str]) -> None:
        self.path, self._workflow, self._aliases = path, workflow, aliases
        try:
            trace = json.loads(read_text(path))
            self._run_id = str(trace["id"])
            self._requests: list[dict[str, Any]] = trace["requests"]
            timed = defaultdict(list)
            self.models = set()
            for request in _flat(self._requests):
                self.models.add(request["model"])
                if request.get("api_time") is not None and request["out"] > 0:
                    timed[request["model"]].append(request["api_time"] / request["out"])
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None
        except _MALFORMED as error:
            raise self._malformed(error) from None
        self._seconds_per_token = {m: statistics.median(v) for m, v in timed.items()}

    def _malformed(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path}: not an agent trace: {type(error).__name__} {error}; needs `id` and "
            "`requests` of {t, model, in, out, id, api_time, think_time}"
        )

    def spans(self) -> list[Span]:
        try:
            calls = list(self._calls(self._requests, 0.0, None, ()))
            found = [s for call in calls for s in self._spans_of(call)]
        except _MALFORMED as error:
            raise self._malformed(error) from None
        if not calls:
            raise InputError(f"{self.path}: has no calls; nothing to import")
        run = Span(
            run_id=self._run_id,
            span_id=f"{self._run_id}.run",
            kind="run",
            workflow=self._workflow,
            start_s=min(s.start_s for s in found),
            end_s=max(s.end_s for s in found),
            status="ok",
        )
        return [run, *sorted(found, key=lambda s: s.start_s)]

    def _calls(
        self,
        requests: list[dict[str, Any]],
        offset_s: float,
        role: str | None,
        before: tuple[str, ...],
    ) -> Iterator[_Call]:
        free_since_s = offset_s
        for position, request in enumerate(requests):
            start_s = offset_s + request["t"]
            if request.get("type") == "subagent":
                kind = str(request.get("subagent_type", "subagent"))
                yield from self._calls(request["requests"], start_s, kind, before)
                continue
            duration_s = request.get("api_time")
            finished = duration_s is not None
            if not finished:
                duration_s = self._estimate_s(request, requests[position + 1 :])
            call = _Call(
                request, start_s, start_s + duration_s, finished, role, before, free_since_s
            )
            yield call
            free_since_s = max(free_since_s, call.end_s)
            before = (self._span_id(request["id"]),)

    def _estimate_s(self, request: dict[str, Any], later: list[dict[str, Any]]) -> float:
        everyone = statistics.median(self._seconds_per_token.values() or [0.0])
        per_token_s = self._seconds_per_token.get(request["model"], everyone)
        limit_s = min((r["t"] - request["t"] for r in later), default=float("inf"))
        return float(max(min(request["out"] * per_token_s, limit_s), 0.0))

    def _span_id(self, number: Any) -> str:
        return f"{self._run_id}.{number}"

    def _spans_of(self, call: _Call) -> Iterator[Span]:
        data, model = call.data, call.data["model"]
        gap_start_s = max(call.start_s - data.get("think_time", 0.0), call.free_since_s)
        if gap_start_s < call.start_s:
            yield Span(
                run_id=self._run_id,
                span_id=f"{self._span_id(data['id'])}.think",
                kind="tool",
                name="think",
                workflow=self._workflow,
                start_s=gap_start_s,
                end_s=call.start_s,
                status="ok",
                parents=call.before or None,
            )
        prefix = data.get("prefix_of")
        yield Span(
            run_id=self._run_id,
            span_id=self._span_id(data["id"]),
            kind="llm",
            llm=self._aliases.get(model, model),
            role=call.role,
            workflow=self._workflow,
            start_s=call.start_s,
            end_s=call.end_s,
            status="ok" if call.finished else UNFINISHED,
            parents=call.before or None,
            input_tokens=int(data["in"]),
            output_tokens=int(data["out"]),
            ttft_s=data.get("ttft"),
            prefix_of=Prefix(span_id=self._span_id(prefix["id"]), tokens=int(prefix["tokens"]))
            if prefix
            else None,
        )


def _flat(requests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for request in requests:
        if request.get("type") == "subagent":
            yield from _flat(request["requests"])
        else:
            yield request
