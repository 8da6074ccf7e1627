"""One start of a run: what its job is given, and what every rank makes of it."""

from __future__ import annotations

from dataclasses import dataclass

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.status import Death
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder
from scepsy_hpc.serving.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of the job is given. ``pretended``: this machine acts for every node."""

    root: str
    attempt: str
    pretended: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a run as the process of one rank sees it, on the node named ``host``.

    A rank that leads does so in a ``term``; ``last_lead`` is how the one before it was lost.
    """

    folder: RunFolder
    attempt: AttemptFolder
    plan: Plan
    settings: RunSettings
    host: str
    rank: int = 0
    num_ranks: int = 1
    pretended: bool = False
    term: int = 0
    last_lead: Death | None = None
