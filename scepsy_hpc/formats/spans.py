"""Spans: what happened when, in one run of a workflow. One JSON object a line."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, read_jsonl, read_text, record, to_plain, write_jsonl

Tokens = Annotated[int, Field(ge=0)]

BLOCK_TOKENS = 16
"""Tokens in a block of an engine's KV cache, vLLM's default: a prefix is cached in whole blocks."""


@record
class Prefix:
    """The earlier call whose prompt this one continues, and for how many tokens."""

    span_id: str
    tokens: Tokens


@record
class Span:
    """One run, LLM call or tool call.

    ``start_s`` is when the request was received and ``end_s`` its last byte, both on the
    recorder's clock (Unix seconds or relative). ``cpu_s`` of a run span: CPU seconds of the agent's
    processes over the run.
    """

    run_id: str
    span_id: str
    kind: Literal["run", "llm", "tool"]
    start_s: float
    end_s: float
    status: str
    workflow: str | None = None
    llm: str | None = None
    role: str | None = None
    name: str | None = None
    parents: tuple[str, ...] | None = None
    host: str | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    ttft_s: Annotated[float, Field(ge=0)] | None = None
    prefix_of: Prefix | None = None
    cpu_s: Annotated[float, Field(ge=0)] | None = None

    @property
    def duration_s(self) -> float:
        """``end_s - start_s``."""
        return self.end_s - self.start_s


def load_spans(path: Path | str) -> list[Span]:
    """Read spans. Raises InputError naming the line.

    Refused: end before start, an LLM span without `llm`, a span id that stands twice in a run (a
    file that was appended to itself would double the demand).
    """
    spans = read_jsonl(path, Span)
    if not spans:
        raise InputError(f"{path}: has no spans; record some with `scepsy trace`")
    seen: set[tuple[str, str]] = set()
    for number, span in enumerate(spans):
        problem = _problem(span, seen)
        if problem:
            raise InputError(f"{path} line {_line_number(path, number)}: {problem}")
        seen.add((span.run_id, span.span_id))
    return spans


def read_span(line: bytes, where: str) -> Span:
    """The span of one line, by itself. Raises InputError."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: not JSON") from None
    return check(data, Span, where)


def checked_span(span: Span, where: Path | str, seen: set[tuple[str, str]]) -> Span:
    """The span, as one that `load_spans` would read; adds it to ``seen``. Raises InputError."""
    read = check(to_plain(span), Span, f"{where}: span {span.span_id!r}")
    problem = _problem(read, seen)
    if problem:
        raise InputError(f"{where}: {problem}")
    seen.add((span.run_id, span.span_id))
    return read


def _problem(span: Span, seen: set[tuple[str, str]]) -> str | None:
    if span.end_s < span.start_s:
        return f"span {span.span_id!r}: end_s ({span.end_s}) is before start_s ({span.start_s})"
    if span.kind == "llm" and not span.llm:
        return f"span {span.span_id!r}: llm: missing; an LLM span names its LLM"
    if (span.cached_tokens or 0) > (span.input_tokens or math.inf):
        return (
            f"span {span.span_id!r}: cached_tokens ({span.cached_tokens}) must be at most "
            f"input_tokens ({span.input_tokens})"
        )
    if (span.run_id, span.span_id) in seen:
        return f"span_id: {span.span_id!r} stands twice in run {span.run_id!r}; ids must differ"
    return None


def _line_number(path: Path | str, index: int) -> int:
    """Line of the span at ``index``; blank lines hold none."""
    lines = read_text(path).split("\n")
    return [number for number, line in enumerate(lines, start=1) if line.strip()][index]


def save_spans(path: Path | str, spans: Iterable[Span]) -> None:
    """Write spans atomically."""
    write_jsonl(path, spans)


def spans_of_workflow(spans: Sequence[Span], workflow: str, *, needed: bool = True) -> list[Span]:
    """The spans of a workflow's runs.

    A run belongs to the workflow that any of its spans names; runs that name none belong to
    whichever is asked for. Raises InputError for a run whose spans name two, and for no run where
    one is ``needed``.
    """
    named: dict[str, str] = {}
    for span in spans:
        if span.workflow is None:
            continue
        first = named.setdefault(span.run_id, span.workflow)
        if first != span.workflow:
            raise InputError(
                f"run {span.run_id!r}: its spans name two workflows, {first!r} and "
                f"{span.workflow!r}; run ids must differ between workflows"
            )
    found = [s for s in spans if named.get(s.run_id, workflow) == workflow]
    if needed and not found:
        known = ", ".join(sorted(set(named.values()))) or "none"
        raise InputError(f"no run of workflow {workflow!r} in the spans; they name: {known}")
    return found


def new_run_id(task_id: str, attempt: int = 1) -> str:
    """A run id that shows its task and attempt, is unique, and is safe in a URL."""
    shown = re.sub(r"[^A-Za-z0-9._-]", "_", task_id)[:80]
    return f"{shown}.{attempt}.{uuid.uuid4().hex[:8]}"
