"""What is left to read when a rank that led is gone."""

from __future__ import annotations

import time
from pathlib import Path

from scepsy_hpc.engines.process import NUM_LOG_LINES, last_lines
from scepsy_hpc.formats.status import Death
from scepsy_hpc.serving.run_folder import RunFolder

MOST_LINE_CHARS = 500


def death_of(how: str, log: Path | None) -> Death:
    """A death now, with the last lines of that log."""
    lines = last_lines(log, NUM_LOG_LINES) if log else []
    return Death(
        at_s=time.time(),
        how=how,
        log=str(log) if log else None,
        last_lines=tuple(line[:MOST_LINE_CHARS] for line in lines),
    )


def rank_log(folder: RunFolder, rank: int) -> Path | None:
    """Where the process of a rank writes, by the newest file; None where it has written nothing."""
    found = [
        path
        for path in folder.jobs.rglob(f"*_{rank}_log.*")
        if path.suffix in (".err", ".out") and path.stat().st_size
    ]
    return max(found, key=lambda p: (p.suffix == ".err", p.stat().st_mtime), default=None)
