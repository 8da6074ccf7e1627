"""The same function on Slurm, inside an allocation, as local processes, or in this process.

submitit writes the jobs and carries arguments and results as pickles in a folder that only the
user can read. Waiting is ours: by result files and squeue, since submitit asks sacct, which not
every cluster has.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from scepsy_hpc.cluster.jobs import slurm
from scepsy_hpc.cluster.jobs.processes import here_jobs, local_jobs
from scepsy_hpc.cluster.jobs.slurm_jobs import SlurmJobs
from scepsy_hpc.cluster.jobs.tasks import (
    Board,
    Jobs,
    Resources,
    TaskOutcome,
    error_line,
    in_process,
    readable,
)
from scepsy_hpc.cluster.owned import make_own_folder
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError

ClusterName = Literal["slurm", "here", "local", "debug"]
CLUSTERS: tuple[ClusterName, ...] = ("slurm", "here", "local", "debug")


def submit(
    cluster: ClusterName,
    folder: Path,
    function: Callable[[Any], Any],
    arguments: Sequence[Any],
    resources: Resources,
    site: Site | None = None,
    name: str = "scepsy",
    local_gpus: Sequence[int] = (),
) -> Jobs:
    """Run ``function(argument)`` for each argument. Returns once submitted.

    ``function`` must be importable by its module path, arguments and values picklable, ``folder``
    seen by all nodes; each submission gets a folder of its own in it. With ``num_nodes`` above one
    the function runs once a node and asks :func:`rank` which it is; ``debug`` runs it once.
    ``local_gpus`` are the GPUs that local tasks share out.
    Raises InputError where the cluster cannot be used, RunError when sbatch refuses.
    """
    if "<" in function.__qualname__ or function.__module__ == "__main__":
        raise ValueError(f"function ({function.__qualname__}) must be importable by module path")
    if cluster not in CLUSTERS:
        raise InputError(f"--cluster: unknown cluster {cluster!r}; known: {', '.join(CLUSTERS)}")
    if not arguments:
        raise ValueError("arguments is empty; submit at least one task")
    site = site or Site()
    own = submission_folder(folder, name)
    if cluster == "slurm":
        return SlurmJobs(own, function, arguments, resources, site, name)
    if cluster == "here":
        return here_jobs(own, function, arguments, resources, site)
    if cluster == "local":
        return local_jobs(own, function, arguments, resources, local_gpus)
    return DebugJobs(own, function, arguments)


def dry_run(
    folder: Path,
    num_tasks: int,
    resources: Resources,
    site: Site | None = None,
    name: str = "scepsy",
) -> str:
    """The text that ``submit("slurm", ...)`` would give to sbatch. Writes nothing."""
    site = site or Site()
    parameters = slurm.sbatch_parameters(resources, site, name)
    return slurm.sbatch_text(folder.expanduser().absolute(), site, parameters, num_tasks)


def submission_folder(folder: Path, name: str) -> Path:
    """A new folder inside ``folder`` that nobody else can read: it holds pickles.

    Raises InputError when it cannot be made.
    """
    folder = folder.expanduser().absolute()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        make_own_folder(folder)
        return Path(tempfile.mkdtemp(prefix=f"{name}-{stamp}-", dir=folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None


class DebugJobs(Jobs):
    """Tasks one after the other in this process, when :meth:`wait` is called.

    Not submitit's DebugExecutor, which opens a debugger when a task fails.
    """

    def __init__(
        self, folder: Path, function: Callable[[Any], Any], arguments: Sequence[Any]
    ) -> None:
        super().__init__(folder, len(arguments))
        self._function, self._arguments = function, arguments
        self._cancelled = False

    @property
    def ids(self) -> list[str]:
        """One made-up id a task."""
        return [f"debug{i}" for i in range(len(self._arguments))]

    def cancel(self) -> None:
        """The tasks that have not started will not."""
        self._cancelled = True

    def _work_off(self, board: Board) -> None:
        for i in board.open:
            board.tell("")
            board.add(self._outcome(i))
        board.tell("")

    def _outcome(self, index: int) -> TaskOutcome:
        job_id = self.ids[index]
        if self._cancelled:
            return TaskOutcome(index, job_id, (None,), ("cancelled before it started",))
        try:
            with in_process():
                value = self._function(self._arguments[index])
        except Exception as error:
            return TaskOutcome(index, job_id, (None,), (readable(error_line(error)),))
        return TaskOutcome(index, job_id, (value,), (None,))
