"""Call tables of disjoint sets of whole runs become one, the same however the runs were split.

Runs and calls are put in the order in which a recorder writes them down, by when they ended: sums
then add the same figures in the same order, and the bootstrap draws the same runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scepsy_hpc.metrics import Ints
from scepsy_hpc.tracing.demand.call_table import CallTable

_OF_CALLS = (
    *("start_s", "duration_s", "end_s", "failed"),
    *("input_tokens", "output_tokens", "cached_tokens", "prefix_tokens"),
)


def merge(parts: Sequence[CallTable]) -> CallTable:
    """One table of the calls of all parts; no run may be in two of them."""
    # Objects: an array of text drops NULs at the end, and is as wide as its longest id.
    run_ids = np.array([run_id for part in parts for run_id in part.run_ids], dtype=object)
    assert len(set(run_ids.tolist())) == len(run_ids), "a run is in two parts"
    first_end_s = np.concatenate([part.first_end_s for part in parts])
    of_runs = np.lexsort((run_ids, first_end_s))
    rank = np.argsort(of_runs)
    offsets = np.cumsum([0, *(len(part.run_ids) for part in parts[:-1])])
    run = rank[np.concatenate([p.run + first for p, first in zip(parts, offsets, strict=True)])]
    columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _OF_CALLS}
    of_calls = np.lexsort((columns["start_s"], run, columns["end_s"]))
    aliases = _united([part.aliases for part in parts])
    roles = _united([part.roles for part in parts])
    return CallTable(
        run_ids=tuple(run_ids[of_runs].tolist()),
        aliases=aliases,
        roles=roles,
        run_length_s=np.concatenate([part.run_length_s for part in parts])[of_runs],
        first_end_s=first_end_s[of_runs],
        cpu_s=np.concatenate([part.cpu_s for part in parts])[of_runs],
        run=run[of_calls],
        llm=np.concatenate([_renumbered(p.llm, p.aliases, aliases) for p in parts])[of_calls],
        role=np.concatenate([_renumbered(p.role, p.roles, roles) for p in parts])[of_calls],
        **{name: column[of_calls] for name, column in columns.items()},
    )


def _united(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The names as all parts have them (a workflow's own order), else every part's, sorted."""
    if len(set(names)) == 1:
        return names[0]
    return tuple(sorted({name for mine in names for name in mine}))


def _renumbered(index: Ints, names: Sequence[str], united: Sequence[str]) -> Ints:
    return np.array([united.index(name) for name in names], dtype=np.int64)[index]
