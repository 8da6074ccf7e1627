"""``status.json``: how far a run is and how its engines are; times are Unix seconds."""

from __future__ import annotations

import time
from dataclasses import asdict, field
from typing import Any, Literal

from scepsy_hpc.files import record

EngineState = Literal[
    "waiting", "starting", "ready", "suspect", "restarting", "failed", "stopped", "lost"
]
FinalState = Literal["ended", "stopped", "interrupted", "failed"]
RunState = Literal["waiting", "starting", "serving", "running", "ending", "lost", FinalState]


@record
class Death:
    """An end that nobody asked for, of an engine or of a rank that led.

    ``how``: its signal or exit code, or why it was killed; ``last_lines`` are those of ``log``.
    """

    at_s: float
    how: str
    log: str | None = None
    last_lines: tuple[str, ...] = ()


@record
class EngineStatus:
    """One instance on its host and GPUs; ``starts`` counts all it has had.

    ``time_sliced`` says why no MPS holds it to its share of a GPU; None where it is, or needs none.
    ``suspect_since_s``: since when it shows no sign of work; ``error`` then says how that was seen.
    ``last_death`` stays when it serves again.
    """

    id: str
    llm: str
    host: str
    gpus: tuple[str, ...]
    state: EngineState = "waiting"
    starts: int = 0
    error: str = ""
    time_sliced: str | None = None
    suspect_since_s: float | None = None
    last_death: Death | None = None


@record
class InstanceStatus(EngineStatus):
    """The same with its calls; ``error`` is one line."""

    calls_in_flight: int = 0
    num_calls: int = 0


@record
class TaskCounts:
    """Tasks of a batch; ``waiting`` are those whose agent does not run yet, or not again yet.

    ``given_up``: what infrastructure broke too often; unrecorded, a later start runs it.
    """

    total: int
    recorded_before: int
    ok: int
    failed: int
    in_flight: int
    waiting: int
    retried: int
    given_up: int = 0


@record
class RunStatus:
    """One start of a run, named by ``attempt``; ``url`` is where agents find their LLMs.

    Without a batch there are no ``tasks``; ``error`` is what ended a run that failed. ``lead`` is
    the rank that leads it; ``last_lead`` how the one before it was lost, if that happened.
    """

    state: RunState = "waiting"
    updated_s: float = field(default_factory=time.time)
    attempt: str
    started_s: float | None = None
    url: str | None = None
    tasks: TaskCounts | None = None
    instances: tuple[InstanceStatus, ...] = ()
    alerts: tuple[str, ...] = ()
    error: str | None = None
    lead: int = 0
    last_lead: Death | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON: every key stands there, null where it is unknown."""
        return asdict(self)


@record
class RunOutlook:
    """What is to be expected of a run; null where that cannot be told.

    ``job_ids``: those that run or wait, in order. While none runs: the ``pending_job`` that is
    next, why it waits, and when Slurm expects it to start (Unix seconds). ``tasks_rps`` is that of
    the last tasks, ``planned_rps`` the plan's; at that pace what is left takes ``needed_s``, and
    the job has ``left_s``.
    """

    job_ids: tuple[str, ...] = ()
    pending_job: str | None = None
    pending_reason: str | None = None
    expected_start_s: float | None = None
    tasks_rps: float | None = None
    planned_rps: float | None = None
    needed_s: float | None = None
    left_s: float | None = None


@record
class WatchedRun(RunStatus):
    """The same from outside: tasks ``recorded`` so far, and whether the job is ``alive``.

    None where that cannot be told from here.
    """

    recorded: int
    alive: bool | None
    cluster: str
    outlook: RunOutlook = RunOutlook()
