"""Spans of small runs, a line each."""

from __future__ import annotations

from typing import Any

from scepsy_hpc.formats.spans import Span


def call(run: str, llm: str, start_s: float, end_s: float, **more: Any) -> Span:
    """A call that ended ok; ``n`` tells calls of one start apart."""
    more = {"status": "ok", "kind": "llm", **more}
    name = f"{run}-{llm}-{start_s}-{more.pop('n', 0)}"
    return Span(run_id=run, span_id=name, llm=llm, start_s=start_s, end_s=end_s, **more)


def run_span(run: str, start_s: float, end_s: float, **more: Any) -> Span:
    """The span of a whole run that ended ok."""
    more = {"status": "ok", "kind": "run", **more}
    return Span(run_id=run, span_id=run, start_s=start_s, end_s=end_s, **more)


def tool(run: str, start_s: float, end_s: float) -> Span:
    """A tool's span."""
    return Span(run_id=run, span_id=f"{run}-tool-{start_s}", kind="tool", name="search",
                start_s=start_s, end_s=end_s, status="ok")  # fmt: skip
