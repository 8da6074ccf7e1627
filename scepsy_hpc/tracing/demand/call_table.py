"""The LLM calls of one workflow's runs as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.metrics import Floats, Ints

NO_ROLE = "-"
_FIGURES = attrgetter("start_s", "end_s", "input_tokens", "output_tokens", "cached_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class CallTable:
    """C calls of R runs. Times count from the start of the call's run; NaN is unknown.

    ``run``, ``llm``, ``role`` [C] index ``run_ids``, ``aliases``, ``roles``; ``failed`` [C]: status
    other than `ok`; ``prefix_tokens`` [C]: input that repeats an earlier prompt; ``run_length_s``
    [R]; ``cpu_s`` [R]: CPU seconds of its agent. ``end_s`` [C] and ``first_end_s`` [R], the end of
    a run's first span to end, are on the recorder's clock: the order in which they were recorded.
    """

    run_ids: tuple[str, ...]
    aliases: tuple[str, ...]
    roles: tuple[str, ...]
    run_length_s: Floats
    first_end_s: Floats
    cpu_s: Floats
    run: Ints
    llm: Ints
    role: Ints
    start_s: Floats
    duration_s: Floats
    end_s: Floats
    failed: NDArray[np.bool_]
    input_tokens: Floats
    output_tokens: Floats
    cached_tokens: Floats
    prefix_tokens: Floats


def read_calls(mine: Sequence[Span], workflow: str, aliases: Sequence[str] | None) -> CallTable:
    """The calls in ``mine``, the spans of ``workflow``. Raises InputError, see ``demand_of``."""
    windows = _windows(mine)
    run_index = {run_id: i for i, run_id in enumerate(windows)}
    calls = [s for s in mine if s.kind == "llm"]
    called, played = [str(s.llm) for s in calls], [s.role or NO_ROLE for s in calls]
    llm_index = _llm_index(called, workflow, aliases)
    role_index = {role: i for i, role in enumerate(sorted(set(played)))}
    run = np.array([run_index[s.run_id] for s in calls], dtype=np.int64)
    limits_s = np.array(list(windows.values()), dtype=np.float64)
    cpu_s = {s.run_id: s.cpu_s for s in mine if s.kind == "run"}
    prefixes = [s.prefix_of.tokens if s.prefix_of else np.nan for s in calls]
    # None becomes NaN.
    figures = np.array([_FIGURES(s) for s in calls], dtype=np.float64).reshape(-1, 5).T
    return CallTable(
        run_ids=tuple(windows),
        aliases=tuple(llm_index),
        roles=tuple(role_index),
        run_length_s=limits_s[:, 1] - limits_s[:, 0],
        first_end_s=limits_s[:, 2],
        cpu_s=np.array([cpu_s.get(run_id) for run_id in windows], dtype=np.float64),
        run=run,
        llm=np.array([llm_index[alias] for alias in called], dtype=np.int64),
        role=np.array([role_index[role] for role in played], dtype=np.int64),
        start_s=figures[0] - limits_s[run, 0],
        duration_s=figures[1] - figures[0],
        end_s=figures[1],
        failed=np.array([s.status != "ok" for s in calls], dtype=np.bool_),
        input_tokens=figures[2],
        output_tokens=figures[3],
        cached_tokens=figures[4],
        prefix_tokens=np.array(prefixes, dtype=np.float64),
    )


def _windows(spans: Sequence[Span]) -> dict[str, list[float]]:
    """Start and end of each run: its run span's, else from its first to its last span.

    The third is when the first of its spans ended.
    """
    told: dict[str, tuple[float, float]] = {}
    seen: dict[str, list[float]] = {}
    for span in spans:
        start_s, end_s = span.start_s, span.end_s
        if end_s < start_s:
            raise InputError(
                f"span {span.span_id!r} of run {span.run_id!r}: end_s ({end_s}) is before "
                f"start_s ({start_s})"
            )
        if span.kind == "run":
            if span.run_id in told:
                raise InputError(f"run {span.run_id!r}: has two run spans; run ids must differ")
            told[span.run_id] = (start_s, end_s)
        window = seen.setdefault(span.run_id, [start_s, end_s, end_s])
        # Comparisons, not min and max: this loop sees every span.
        if start_s < window[0]:
            window[0] = start_s
        if end_s > window[1]:
            window[1] = end_s
        elif end_s < window[2]:
            window[2] = end_s
    for run_id, limits_s in told.items():
        seen[run_id][:2] = limits_s
    return seen


def _llm_index(
    called: Sequence[str], workflow: str, aliases: Sequence[str] | None
) -> dict[str, int]:
    names = list(aliases) if aliases is not None else sorted(set(called))
    for alias in dict.fromkeys(called):
        if alias not in names:
            raise InputError(
                f"LLM {alias!r} is called in the spans and not declared by workflow {workflow!r}; "
                f"it declares: {', '.join(names) or 'none'}"
            )
    return {alias: i for i, alias in enumerate(names)}
