"""Tasks as one Slurm job or job array, written by submitit and awaited without sacct."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils as submitit_utils
from submitit.slurm import slurm as submitit_slurm

from scepsy_hpc.cluster.jobs import slurm
from scepsy_hpc.cluster.jobs.entry import entry_command
from scepsy_hpc.cluster.jobs.tasks import (
    Board,
    Jobs,
    Resources,
    collect,
    run_task,
)
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import RunError

# Result files are looked for often, which costs Slurm nothing; squeue is asked seldom, and seldomer
# the longer it takes. After a job has left the queue its files get time to cross a network
# file system.
RESULT_POLL_S = 0.5
FIRST_SQUEUE_S = 2.0
LAST_SQUEUE_S = 20.0
GRACE_S = 10.0


class SlurmJobs(Jobs):
    """Submits on construction. Raises InputError without Slurm, RunError when sbatch refuses."""

    def __init__(
        self,
        folder: Path,
        function: Callable[[Any], Any],
        arguments: Sequence[Any],
        resources: Resources,
        site: Site,
        name: str,
    ) -> None:
        slurm.require_slurm()
        super().__init__(folder, len(arguments))
        self._site = site
        executor = _Executor(folder, python=entry_command(slurm.python_command(site)))
        executor.update_parameters(**slurm.sbatch_parameters(resources, site, name))
        with _environ(slurm.environment_for_sbatch(os.environ, site)):
            try:
                self._jobs = executor.map_array(run_task, [function] * len(arguments), arguments)
            except submitit_utils.UncompletedJobError as error:
                raise RunError(f"sbatch refused the job: {_reason(str(error))}") from None

    @property
    def ids(self) -> list[str]:
        """Slurm job ids; ``12_3`` for a member of an array."""
        return [job.job_id for job in self._jobs]

    def cancel(self) -> None:
        """Cancel what has not ended."""
        masters = sorted({job_id.split("_")[0] for job_id in self.ids})
        environment = slurm.environment_for_sbatch(os.environ, self._site)
        subprocess.run(["scancel", *masters], env=environment, check=False, timeout=60)

    def _work_off(self, board: Board) -> None:
        pause_s, view = FIRST_SQUEUE_S, slurm.QueueView(False, {})
        asked_s = float("-inf")
        left_s: dict[int, float] = {}
        while True:
            self._collect(board, {i: t for i, t in left_s.items() if _now() - t > GRACE_S}, view)
            board.tell(view.note)
            if not board.open:
                return
            if _now() - asked_s >= pause_s:
                view = slurm.squeue((self._jobs[i].job_id for i in board.open), self._site)
                asked_s, pause_s = _now(), min(pause_s * 1.3, LAST_SQUEUE_S)
                left_s = self._left(board.open, view, left_s)
            time.sleep(RESULT_POLL_S)

    def _state(self, view: slurm.QueueView, index: int) -> str | None:
        job_id: str = self._jobs[index].job_id
        return view.states.get(job_id)

    def _left(
        self, indices: Sequence[int], view: slurm.QueueView, before: Mapping[int, float]
    ) -> dict[int, float]:
        """When each task was first seen to have left the queue."""
        if not view.known:
            return dict(before)
        gone = [i for i in indices if _has_left(self._state(view, i))]
        return {i: before.get(i, _now()) for i in gone}

    def _collect(self, board: Board, lost: Mapping[int, float], view: slurm.QueueView) -> None:
        # Opening the folder makes a network file system show files that other nodes wrote.
        os.listdir(self.folder)
        for i in board.open:
            job = self._jobs[i]
            state = self._state(view, i) or "no longer in the queue"
            why = f"job {job.job_id} ended without a result ({state})" if i in lost else None
            paths = [job.task(rank).paths for rank in range(job.num_tasks)]
            outcome = collect(i, job.job_id, paths, why)
            if outcome is not None:
                board.add(outcome)


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit makes a new executor for an array and forgets which Python it was given."""

    def _internal_process_submissions(self, delayed_submissions: Any) -> Any:
        plain = submitit_slurm.SlurmExecutor
        submitit_slurm.SlurmExecutor = partial(plain, python=self.python)
        try:
            return super()._internal_process_submissions(delayed_submissions)
        finally:
            submitit_slurm.SlurmExecutor = plain


def _now() -> float:
    return time.monotonic()


def _has_left(state: str | None) -> bool:
    # Unknown to squeue, or known as ended. A requeued job is PENDING again and has not left.
    return state is None or state.startswith(slurm.ENDED)


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(said or lines[-1:])


@contextmanager
def _environ(environ: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` for a while: submitit passes on what it finds there."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(environ)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
