"""The LLM calls of one workflow's runs as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Span, spans_of_workflow
from scepsy_hpc.metrics import Floats, Ints

NO_ROLE = "-"
_FIGURES = attrgetter("start_s", "end_s", "input_tokens", "output_tokens", "cached_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class CallTable:
    """C calls of R runs. Times count from the start of the call's run; NaN is unknown.

    ``run``, ``llm``, ``role`` [C] index ``run_ids``, ``aliases``, ``roles``; ``failed`` [C]: status
    other than `ok`; ``run_length_s`` [R].
    """

    run_ids: tuple[str, ...]
    aliases: tuple[str, ...]
    roles: tuple[str, ...]
    run_length_s: Floats
    run: Ints
    llm: Ints
    role: Ints
    start_s: Floats
    duration_s: Floats
    failed: NDArray[np.bool_]
    input_tokens: Floats
    output_tokens: Floats
    cached_tokens: Floats


def read_calls(spans: Sequence[Span], workflow: str, aliases: Sequence[str] | None) -> CallTable:
    """The calls of ``workflow``'s runs. Raises InputError, see ``demand_of``."""
    mine = spans_of_workflow(spans, workflow)
    for span in mine:
        if span.end_s < span.start_s:
            raise InputError(
                f"span {span.span_id!r} of run {span.run_id!r}: end_s ({span.end_s}) is before "
                f"start_s ({span.start_s})"
            )
    windows = _windows(mine)
    run_index = {run_id: i for i, run_id in enumerate(windows)}
    calls = [s for s in mine if s.kind == "llm"]
    llm_index = _llm_index(calls, workflow, aliases)
    roles = sorted({s.role or NO_ROLE for s in calls})
    role_index = {role: i for i, role in enumerate(roles)}
    run = np.array([run_index[s.run_id] for s in calls], dtype=np.int64)
    limits_s = np.array(list(windows.values()), dtype=np.float64)
    # None becomes NaN.
    figures = np.array([_FIGURES(s) for s in calls], dtype=np.float64).reshape(-1, 5).T
    return CallTable(
        run_ids=tuple(windows),
        aliases=tuple(llm_index),
        roles=tuple(roles),
        run_length_s=limits_s[:, 1] - limits_s[:, 0],
        run=run,
        llm=np.array([llm_index[str(s.llm)] for s in calls], dtype=np.int64),
        role=np.array([role_index[s.role or NO_ROLE] for s in calls], dtype=np.int64),
        start_s=figures[0] - limits_s[run, 0],
        duration_s=figures[1] - figures[0],
        failed=np.array([s.status != "ok" for s in calls], dtype=np.bool_),
        input_tokens=figures[2],
        output_tokens=figures[3],
        cached_tokens=figures[4],
    )


def _windows(spans: Sequence[Span]) -> dict[str, tuple[float, float]]:
    """Start and end of each run: its run span's, else from its first to its last span."""
    told: dict[str, tuple[float, float]] = {}
    seen: dict[str, tuple[float, float]] = {}
    for span in spans:
        if span.kind == "run":
            if span.run_id in told:
                raise InputError(f"run {span.run_id!r}: has two run spans; run ids must differ")
            told[span.run_id] = (span.start_s, span.end_s)
        start_s, end_s = seen.get(span.run_id, (span.start_s, span.end_s))
        seen[span.run_id] = (min(start_s, span.start_s), max(end_s, span.end_s))
    return {**seen, **told}


def _llm_index(
    calls: Sequence[Span], workflow: str, aliases: Sequence[str] | None
) -> dict[str, int]:
    called = dict.fromkeys(str(s.llm) for s in calls)
    names = list(aliases) if aliases is not None else sorted(called)
    for alias in called:
        if alias not in names:
            raise InputError(
                f"LLM {alias!r} is called in the spans and not declared by workflow {workflow!r}; "
                f"it declares: {', '.join(names) or 'none'}"
            )
    return {alias: i for i, alias in enumerate(names)}
