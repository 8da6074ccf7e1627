"""One start of a run: what its job is given, and what every rank makes of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder
from scepsy_hpc.serving.settings import RunSettings


def new_attempt() -> str:
    """A name for one submission, by its time; its starts add a number each."""
    return time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of the job is given. ``pretended``: this machine acts for every node."""

    root: str
    attempt: str
    pretended: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a run as the process of one rank sees it, on the node named ``host``."""

    folder: RunFolder
    attempt: AttemptFolder
    plan: Plan
    settings: RunSettings
    host: str
    rank: int = 0
    num_ranks: int = 1
    pretended: bool = False
