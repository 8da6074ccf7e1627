"""How a run was asked for; written once by the command, read by every node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from scepsy_hpc.errors import RunError
from scepsy_hpc.files import record
from scepsy_hpc.serving.run_folder import read_json, write_json

Seconds = Annotated[float, Field(gt=0)]


@record
class RunSettings:
    """Times in seconds. Runs enter ``max_runs_in_flight`` at a time, or by chance at ``rate_rps``.

    ``serve`` hosts the engines until stopped, without a batch.

    ``max_attempts`` of a task that meets faults of engines or nodes; ``retries`` of one whose agent
    failed. ``retry_round`` names the submission that runs failed tasks again. ``time_limit_s``: how
    long the job may run from each of its starts.

    ``node_lost_s``: a node that was silent for that long counts as dead.

    ``hung_after_s``: the least time without a sign of work after which an engine is suspect.
    ``gpu_free_s``: how long the memory of an engine that ended may take to be free.
    """

    max_runs_in_flight: Annotated[int, Field(ge=1)] | None = None
    rate_rps: Annotated[float, Field(gt=0)] | None = None
    seed: int = 0
    serve: bool = False
    max_attempts: Annotated[int, Field(ge=1)] = 3
    retries: Annotated[int, Field(ge=0)] = 0
    retry_round: str | None = None
    time_limit_s: Seconds | None = None
    task_timeout_s: Seconds | None = None
    ready_timeout_s: Seconds = 900.0
    nodes_timeout_s: Seconds = 300.0
    starts_at_once: Annotated[int, Field(ge=1)] = 4
    node_lost_s: Seconds = 120.0
    hung_after_s: Seconds = 30.0
    gpu_free_s: Seconds = 60.0


def save_settings(path: Path, settings: RunSettings) -> None:
    """Write the settings of a run."""
    write_json(path, settings)


def load_settings(path: Path) -> RunSettings:
    """Read the settings of a run. Raises RunError when the folder holds none."""
    found = read_json(path, RunSettings)
    if found is None:
        raise RunError(f"{path}: no settings; this is no results folder of `scepsy run`")
    return found
