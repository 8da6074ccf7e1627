"""How a batch stands by its ledger, which is what the exit code of ``scepsy run`` comes from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scepsy_hpc.formats.segments import read_merged
from scepsy_hpc.formats.status import RunStatus, TaskCounts
from scepsy_hpc.formats.tasks import load_task_ids
from scepsy_hpc.serving.job import FINAL_STATES, is_alive
from scepsy_hpc.serving.ledger import repair_results
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json
from scepsy_hpc.serving.settings import load_settings
from scepsy_hpc.serving.start import new_attempt


@dataclass(frozen=True, slots=True)
class BatchTally:
    """Tasks of a batch by what its ledger says; ``left`` have no record."""

    total: int
    ok: int
    failed: int
    left: int

    @property
    def exit_code(self) -> int:
        """0 all ok, 4 while a task is unrecorded, else 1 if some failed for good."""
        return 4 if self.left else int(bool(self.failed))


def tally(folder: RunFolder) -> BatchTally:
    """What the ledger says of the folder's tasks; nothing where it has no batch.

    Where the batch is over, ``results.jsonl`` is brought up to date, as after a crash.
    """
    if not folder.tasks.exists():
        return BatchTally(0, 0, 0, 0)
    ids = load_task_ids(folder.tasks)
    read = repair_results if _is_over(folder) else read_merged
    records = read(folder.results).records
    found = Counter(records[i].status if i in records else "left" for i in ids)
    return BatchTally(len(ids), found["ok"], found["failed"], found["left"])


def _is_over(folder: RunFolder) -> bool:
    """Whether nobody writes to the results any more, for certain."""
    status = read_json(folder.status, RunStatus)
    ended = status is not None and status.state in FINAL_STATES
    return ended or is_alive(folder) is False


def is_complete(folder: RunFolder) -> bool:
    """Whether nothing of a prepared batch is left to run."""
    found, settings = tally(folder), load_settings(folder.settings)
    return not found.left and not (settings.retry_round and found.failed)


def end_at_once(folder: RunFolder) -> None:
    """What a run with nothing left to do leaves: the status of one that has ended."""
    found = tally(folder)
    counts = TaskCounts(
        total=found.total,
        recorded_before=found.ok + found.failed,
        ok=0,
        failed=0,
        in_flight=0,
        waiting=0,
        retried=0,
    )
    write_json(
        folder.status,
        RunStatus(attempt=f"{new_attempt()}-0", state="ended", tasks=counts).plain(),
    )
