"""What a run that is over leaves and nobody needs: found, measured, removed."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from scepsy_hpc.cluster.site import Site, scratch_of
from scepsy_hpc.engines.staging import staged_copies
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.files import record
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.serving.job import FINAL_STATES, Job, is_alive
from scepsy_hpc.serving.log_room import old_logs
from scepsy_hpc.serving.run_folder import RunFolder, read_json


@record
class Rubbish:
    """A file or folder that may go: why, and how many bytes on disk that frees."""

    path: str
    why: str
    num_bytes: int


def find_rubbish(root: Path) -> list[Rubbish]:
    """What the run in ``root`` no longer needs; its results, spans, plan and last logs stay.

    Raises InputError where the folder is none of a run, or a run uses it or may.
    """
    folder = RunFolder(root.absolute())
    _check_over(folder)
    return [_measured(path, why) for path, why in _unneeded(folder)]


def find_staged(site: Site) -> list[Rubbish]:
    """This user's copies of weights on the scratch disk of this machine."""
    where = f"weights staged on {socket.gethostname()}"
    return [_measured(path, where) for path in staged_copies(scratch_of(site))]


def remove(found: list[Rubbish]) -> None:
    """Remove it. Raises RunError that names the first thing that could not be."""
    for one in found:
        path = Path(one.path)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{error.filename or path}: {error.strerror}; it stays") from None


def _check_over(folder: RunFolder) -> None:
    status, job = read_json(folder.status, RunStatus), read_json(folder.job, Job)
    if status is None:
        raise InputError(f"{folder.root}: holds no status.json; give the -o folder of `scepsy run`")
    # A job in the queue may follow one that was interrupted: its state alone says too little.
    asked = job is not None and job.cluster == "slurm"
    if status.state in FINAL_STATES and not asked:
        return
    alive = is_alive(folder)
    if alive or (alive is None and status.state != "ended"):
        known = "a run uses this folder now" if alive else "nobody here can tell whether it is over"
        raise InputError(
            f"{folder.root}: {known} (state {status.state}); end it with `scepsy stop "
            f"{folder.root}`, or clean where squeue answers"
        )


def _unneeded(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    attempts = folder.attempt("any").root.parent
    for path in _inside(attempts):
        yield path, "meeting place of a start that is over"
    for path in _inside(folder.jobs):
        yield path, "submission: pickles and the job's own output"
    for path in old_logs(folder.logs, most=1):
        yield path, "log of an earlier start"
    for kind in ("json", "jsonl", "yaml"):
        for path in sorted(folder.root.glob(f".*.{kind}.*")):
            yield path, "half-written file of a process that was killed"


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _measured(path: Path, why: str) -> Rubbish:
    return Rubbish(path=str(path), why=why, num_bytes=bytes_on_disk(path))


def bytes_on_disk(path: Path) -> int:
    """What a file, or all below a folder, takes on disk; links are not followed."""
    files = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)
