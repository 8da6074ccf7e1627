"""One object owns every path of a run's results folder, shared by all nodes of the run.

Everything a later start must not find (endpoints, node reports, the stop mark) lives under one
*attempt*: a requeued job is a new attempt on the same results.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scepsy_hpc.cluster.owned import make_own_folder, open_own, open_own_folder
from scepsy_hpc.files import check, to_plain, write_text

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths below the results folder."""

    root: Path

    @property
    def plan(self) -> Path:
        """Copy of the plan that runs."""
        return self.root / "plan.yaml"

    @property
    def tasks(self) -> Path:
        """Copy of the tasks."""
        return self.root / "tasks.jsonl"

    @property
    def settings(self) -> Path:
        """How the run was asked for."""
        return self.root / "run.json"

    @property
    def origin(self) -> Path:
        """The version that began the batch, and its agents' files."""
        return self.root / "origin.json"

    @property
    def results(self) -> Path:
        """The merge of the ledger's segments, which stand beside it in ``results.d``."""
        return self.root / "results.jsonl"

    @property
    def spans(self) -> Path:
        """What the dispatcher recorded."""
        return self.root / "spans.jsonl"

    @property
    def status(self) -> Path:
        """Progress, rewritten about every second."""
        return self.root / "status.json"

    @property
    def measured(self) -> Path:
        """Measured figures beside the predicted ones, written at the end."""
        return self.root / "measured.json"

    @property
    def logs(self) -> Path:
        """Logs of engines, agents and nodes."""
        return self.root / "logs"

    @property
    def private(self) -> Path:
        """Keys, pickles and endpoints: this user only."""
        return self.root / "private"

    @property
    def jobs(self) -> Path:
        """What submitit writes."""
        return self.private / "jobs"

    @property
    def job(self) -> Path:
        """Where the run was submitted, and as what."""
        return self.private / "job.json"

    @property
    def chain(self) -> Path:
        """The jobs that follow one another."""
        return self.private / "chain.json"

    @property
    def key(self) -> Path:
        """The key that engines and dispatcher share."""
        return self.private / "api_key"

    def attempt(self, name: str) -> AttemptFolder:
        """The folder of one start of the job."""
        return AttemptFolder(self.private / "attempts" / name)

    def require_own(self) -> None:
        """Refuse, as a node starts, what others could have swapped since. Raises InputError."""
        os.close(open_own_folder(self.root))

    def create(self) -> None:
        """Make the folders, closed to all others, and a new key. Raises InputError."""
        for folder in (self.root, self.logs, self.private, self.jobs):
            make_own_folder(folder)
        if not self.key.exists():
            write_text(self.key, secrets.token_hex(24), mode=0o600)


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """Rendezvous of the nodes of one start: reports, placement, endpoints, the stop mark."""

    root: Path

    @property
    def placement(self) -> Path:
        """Which instance is on which rank and GPUs, written by the rank that leads."""
        return self.root / "placement.json"

    @property
    def stop(self) -> Path:
        """Written by the rank that leads when it ends: every node stops its engines."""
        return self.root / "stop"

    @property
    def asked(self) -> Path:
        """The user's wish to stop, for all starts of one job: a requeued one obeys it too."""
        return self.root.with_name(self.root.name.rpartition("-")[0] + ".stop")

    def is_stopped(self) -> bool:
        """Whether this start is to end, for whichever reason."""
        return self.stop.exists() or self.asked.exists()

    def beat(self, rank: int) -> Path:
        """Rewritten by that rank while it lives."""
        return self.root / "beats" / f"{rank}.json"

    def node(self, rank: int) -> Path:
        """What one rank was given."""
        return self.root / "nodes" / f"{rank}.json"

    def engine(self, instance_id: str, term: int = 0) -> Path:
        """State and endpoint of one instance, placed in that term of the lead."""
        name = f"{instance_id}.term{term}" if term else instance_id
        return self.root / "engines" / f"{name}.json"

    @property
    def traffic(self) -> Path:
        """When each instance last sent a byte of an answer, on the lead's clock."""
        return self.root / "traffic.json"

    def term(self, number: int) -> Path:
        """Which rank leads from that term on; 0 is rank 0's without a file."""
        return self.root / "terms" / f"{number}.json"


def write_json(path: Path, value: Any) -> None:
    """Write a record or plain JSON so that a reader on another node never sees half of it."""
    write_text(path, json.dumps(to_plain(value), indent=1) + "\n")


def read_json(path: Path, cls: type[_Record]) -> _Record | None:
    """What another process of this user writes, as a record; None while it is not there.

    Raises InputError where it is no such record, or another user's.
    """
    try:
        with open_own(path) as stream:
            data = json.loads(stream.read())
    except (OSError, ValueError):
        return None  # Network file systems show a renamed file late: the next look succeeds.
    return check(data, cls, str(path))
