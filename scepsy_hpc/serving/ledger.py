"""``results.jsonl``: one line a task that ended, written once, never again.

The ledger is the only truth about what is done. A line is appended and synced before the task
counts as ended; a line torn by a crash is cut off on the next start, so its task runs again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from scepsy_hpc.errors import RunError
from scepsy_hpc.files import json_line, read_jsonl_data
from scepsy_hpc.formats.results import TaskResult, load_results
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.span_log import cut_torn_line


class Ledger:
    """Append-only results of one batch. Open it from one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises RunError when another live process has it open."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: TextIO = path.open("a+", encoding="utf-8")
        _lock(self._stream, path)
        cut_torn_line(path)
        self._statuses: dict[str, str] = {
            found.task_id: found.status for found in load_results(path)
        }

    @property
    def recorded(self) -> dict[str, str]:
        """Status by task id of everything recorded so far, earlier runs included."""
        return dict(self._statuses)

    def append(self, result: TaskResult) -> None:
        """Record a task and sync it to disk. Raises RunError when it is recorded already."""
        if result.task_id in self._statuses:
            raise RunError(f"{self.path}: task {result.task_id!r} is recorded already")
        self._stream.write(json_line(result))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._statuses[result.task_id] = result.status

    def close(self) -> None:
        """Close the file and give up the lock."""
        self._stream.close()


def _lock(stream: TextIO, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{path}: another run writes to this folder now; wait for it") from None
    except OSError:
        return  # A file system without locks (some Lustre mounts): go on without.


def num_recorded(path: Path) -> int:
    """Whole lines of a ledger that another process may be writing to; 0 when there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_worked_off(folder: RunFolder) -> bool:
    """Whether every task of a batch is recorded. Raises InputError for files that are damaged."""
    if not folder.tasks.exists():
        return False
    wanted = {line["task_id"] for line in read_jsonl_data(folder.tasks)}
    return folder.results.exists() and wanted <= {r.task_id for r in load_results(folder.results)}
