"""One task of a submission, from both ends: what runs it there, what reads its result here."""

from __future__ import annotations

import contextvars
import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils as submitit_utils

from scepsy_hpc.cluster.owned import open_own


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task needs. A task is one process on each of ``num_nodes`` nodes.

    ``no_kill``: the job goes on when a node dies. ``dependency``: what it waits for, in sbatch's
    words.
    """

    num_nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    mem_gib: float | None = None
    time_min: int = 60
    gpu_type: str | None = None
    no_kill: bool = False
    dependency: str | None = None


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How one task ended: a value or an error for each rank; of the two, one is None."""

    index: int
    job_id: str
    values: tuple[Any, ...]
    errors: tuple[str | None, ...]

    @property
    def value(self) -> Any:
        """What the function returned on the first node."""
        return self.values[0]

    @property
    def error(self) -> str | None:
        """The first error of any rank; None when all went well."""
        return next((error for error in self.errors if error is not None), None)


class Jobs(ABC):
    """Submitted tasks. ``folder`` holds their pickles and logs."""

    def __init__(self, folder: Path, num_tasks: int) -> None:
        self.folder, self._num_tasks = folder, num_tasks

    @property
    @abstractmethod
    def ids(self) -> list[str]:
        """Ids of what was submitted so far: Slurm job ids, or process ids."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel what has not ended; its outcome is an error."""

    @abstractmethod
    def _work_off(self, board: Board) -> None:
        """Return once every task has its outcome on the board."""

    def wait(
        self,
        on_outcome: Callable[[TaskOutcome], None] = lambda outcome: None,
        on_tick: Callable[[str], None] = lambda note: None,
    ) -> list[TaskOutcome]:
        """Block until every task has ended; outcomes in the order of the arguments.

        ``on_outcome`` is called once a task; ``on_tick`` each time the tasks were looked at, about
        once or a few times a second, with what Slurm says about those that wait.
        """
        board = Board(self._num_tasks, on_outcome, on_tick)
        self._work_off(board)
        return [board.outcomes[i] for i in range(self._num_tasks)]


class TaskFailed(Exception):
    """Carries an error through submitit's traceback text as one line of JSON."""


_OUR_ERRORS = ("RunError", "InputError", "InfeasibleError", "UncompletedJobError")
_IN_PROCESS: contextvars.ContextVar[bool] = contextvars.ContextVar("in_process", default=False)


def run_task(function: Callable[[Any], Any], argument: Any) -> Any:
    """What submitit runs. An error leaves as one line, so that nobody has to parse a traceback."""
    try:
        return function(argument)
    except Exception as error:
        raise TaskFailed(error_line(error)) from error


def error_line(error: Exception) -> str:
    """Kind and message of an error as one line of JSON."""
    timed_out = isinstance(error, submitit_utils.UncompletedJobError)
    message = "ran into its time limit; raise time_min" if timed_out else str(error)
    return json.dumps({"kind": type(error).__name__, "message": message})


def readable(line: str) -> str:
    """The message of an :func:`error_line`; errors that are not ours keep their kind."""
    plain = json.loads(line)
    ours = plain["kind"] in _OUR_ERRORS
    return str(plain["message"]) if ours else f"{plain['kind']}: {plain['message']}"


def read_result(path: Path) -> tuple[Any, str | None]:
    """(value, None) or (None, error) from a result file of submitit.

    The file is a pickle: one of another user's is refused (InputError).
    """
    with open_own(path) as stream:
        status, value = pickle.load(stream)
    if status == "success":
        return value, None
    last = str(value).rstrip().rsplit("\n", 1)[-1]
    _, found, line = last.partition(f"{TaskFailed.__name__}: ")
    return None, readable(line) if found else last


def rank() -> tuple[int, int]:
    """(rank of this process in its task, number of processes of the task); (0, 1) outside one."""
    if _IN_PROCESS.get():
        return 0, 1
    try:
        environment = submitit.JobEnvironment()
    except RuntimeError:
        return 0, 1
    return environment.global_rank, environment.num_tasks


@contextmanager
def in_process() -> Iterator[None]:
    """Marks that a task runs inside the submitting process."""
    token = _IN_PROCESS.set(True)
    try:
        yield
    finally:
        _IN_PROCESS.reset(token)


def collect(
    index: int, job_id: str, paths: Sequence[submitit_utils.JobPaths], lost: str | None = None
) -> TaskOutcome | None:
    """The outcome of a task whose ranks write to ``paths``.

    None while a rank has no result, unless ``lost`` says why there will be none.
    """
    values, errors = [], []
    for path in paths:
        if path.result_pickle.exists():
            value, error = read_result(path.result_pickle)
        elif lost is None:
            return None
        else:
            value, error = None, lost + _tail(path)
        values.append(value)
        errors.append(error)
    return TaskOutcome(index, job_id, tuple(values), tuple(errors))


def _tail(paths: submitit_utils.JobPaths, num_lines: int = 15) -> str:
    for path in (paths.stderr, paths.stdout):
        try:
            lines = path.read_text(errors="replace").splitlines()[-num_lines:]
        except OSError:
            continue
        if lines:
            return f"; last lines of {path}:\n  " + "\n  ".join(lines)
    return f"; it wrote nothing to {paths.stderr}"


class Board:
    """Outcomes as they come in."""

    def __init__(
        self,
        num_tasks: int,
        on_outcome: Callable[[TaskOutcome], None],
        on_tick: Callable[[str], None],
    ) -> None:
        self.outcomes: dict[int, TaskOutcome] = {}
        self.tell = on_tick
        self._num_tasks, self._on_outcome = num_tasks, on_outcome

    @property
    def open(self) -> list[int]:
        """Indices of tasks without an outcome."""
        return [i for i in range(self._num_tasks) if i not in self.outcomes]

    def add(self, outcome: TaskOutcome) -> None:
        """Record one outcome."""
        self.outcomes[outcome.index] = outcome
        self._on_outcome(outcome)
