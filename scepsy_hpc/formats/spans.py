"""Spans: what happened when, in one run of a workflow. One JSON object a line."""

from __future__ import annotations

import json
import math
import re
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, parse_jsonl, record, to_plain, write_jsonl
from scepsy_hpc.formats.span_parts import files_of_spans, open_spans_file

Tokens = Annotated[int, Field(ge=0)]

BLOCK_TOKENS = 16
"""Tokens in a block of an engine's KV cache, vLLM's default: a prefix is cached in whole blocks."""


# Unix seconds until the year 5138, or relative ones.
Moment = Annotated[float, Field(ge=-1e11, le=1e11)]


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
    start_s: Moment
    end_s: Moment
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
    """Read spans, those in compressed parts included. Raises InputError naming the line.

    Refused: end before start, an LLM span without `llm`, a span id that stands twice in a run (a
    file that was appended to itself would double the demand).
    """
    spans: list[Span] = []
    seen: set[tuple[str, str]] = set()
    for part in files_of_spans(path):
        found = parse_jsonl(_text_of(part), Span, part)
        for number, span in enumerate(found):
            problem = _problem(span, seen)
            if problem:
                raise InputError(f"{part} line {_line_number(part, number)}: {problem}")
            seen.add((span.run_id, span.span_id))
        spans += found
    if not spans:
        raise InputError(f"{path}: has no spans; record some with `scepsy trace`")
    return spans


def _text_of(part: Path) -> str:
    try:
        with open_spans_file(part) as stream:
            return stream.read().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{part}: no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "not UTF-8 text"
        raise InputError(f"{part}: cannot be read: {reason}") from None


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


def check_references(spans: Sequence[Span]) -> None:
    """Raise InputError, naming run and span, where `parents` or `prefix_of` say what cannot be.

    A parent is a span of the run that starts no later, and no span waits for itself; a prefix is
    that of an LLM call of the run that starts no later, of at most the call's own input tokens. A
    run that was interrupted (no run span, where others have one) may name a call whose record was
    lost with it as its prefix.
    """
    linked = {span.run_id for span in spans if span.parents or span.prefix_of}
    runs: dict[str, dict[str, Span]] = {run_id: {} for run_id in linked}
    for span in spans:
        if span.run_id in linked:
            runs[span.run_id][span.span_id] = span
    ended = {span.run_id for span in spans if span.kind == "run"}
    for run_id in dict.fromkeys(span.run_id for span in spans if span.run_id in linked):
        mine = runs[run_id]
        _refuse_circle(run_id, mine)
        for span in mine.values():
            may_lack = bool(ended) and run_id not in ended
            problem = _wrong_parent(span, mine) or _wrong_prefix(span, mine, may_lack)
            if problem:
                raise InputError(f"run {run_id}: span {span.span_id}: {problem}")


def _refuse_circle(run_id: str, mine: Mapping[str, Span]) -> None:
    """Spans that wait for each other would never start."""
    waits_for = {span.span_id: span.parents for span in mine.values() if span.parents}
    try:
        TopologicalSorter(waits_for).prepare()
    except CycleError as error:
        *circle, first = error.args[1]
        shown = " -> ".join([first, *circle[1:], first][:6]) + (" ..." if len(circle) > 5 else "")
        raise InputError(
            f"run {run_id}: parents: spans wait for each other in a circle: {shown}; a parent is a "
            "span that was waited for, which starts no later"
        ) from None


def _wrong_parent(span: Span, mine: Mapping[str, Span]) -> str | None:
    for parent in span.parents or ():
        if parent not in mine:
            return f"parents: {parent!r} is no span of the run"
        if mine[parent].start_s > span.start_s:
            return f"parents: {parent!r} starts after it ({mine[parent].start_s} > {span.start_s})"
    return None


def _wrong_prefix(span: Span, mine: Mapping[str, Span], may_lack: bool) -> str | None:
    if span.prefix_of is None:
        return None
    earlier, tokens = span.prefix_of.span_id, span.prefix_of.tokens
    other, allowed = mine.get(earlier), "; it names an earlier LLM call of the run"
    if span.kind != "llm":
        return f"prefix_of: is of LLM calls, this is a {span.kind} span; take it out"
    if earlier == span.span_id:
        return f"prefix_of: {earlier!r} is the call itself{allowed}"
    if other is None and not may_lack:
        return f"prefix_of: {earlier!r} is no span of the run{allowed}"
    if other is not None and other.kind != "llm":
        return f"prefix_of: {earlier!r} is a {other.kind} span{allowed}"
    if other is not None and other.start_s > span.start_s:
        return f"prefix_of: {earlier!r} starts after it ({other.start_s} > {span.start_s}){allowed}"
    if span.input_tokens is not None and tokens > span.input_tokens:
        return (
            f"prefix_of.tokens ({tokens}) must be at most the call's input_tokens "
            f"({span.input_tokens})"
        )
    return None


def _line_number(part: Path, index: int) -> int:
    """Line of the span at ``index``; blank lines hold none."""
    lines = _text_of(part).split("\n")
    return [number for number, line in enumerate(lines, start=1) if line.strip()][index]


def save_spans(path: Path | str, spans: Iterable[Span]) -> None:
    """Write spans atomically."""
    write_jsonl(path, spans)


def spans_of_workflow(spans: Sequence[Span], workflow: str, *, needed: bool = True) -> list[Span]:
    """The spans of a workflow's runs.

    A run belongs to the workflow that any of its spans names; runs that name none belong to
    whichever is asked for. Raises InputError for a run whose spans name two, for no run where one
    is ``needed``, and for what ``check_references`` refuses.
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
    check_references(found)
    return found


def new_run_id(task_id: str, attempt: int = 1) -> str:
    """A run id that shows its task and attempt, is unique, and is safe in a URL."""
    return f"{shown_in_run_id(task_id)}.{attempt}.{uuid.uuid4().hex[:8]}"


def shown_in_run_id(task_id: str) -> str:
    """What of its task's id a run id begins with."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", task_id)[:80]
