"""One start of a run: what its job is given, and what every rank makes of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.status import Death
from scepsy_hpc.serving.run_folder import AttemptFolder, RunFolder
from scepsy_hpc.serving.settings import RunSettings

_MOST_RESTARTS = 1000  # of one job by Slurm, which gives up long before


def new_attempt() -> str:
    """A name for one submission, by its time; its starts add a number each."""
    return time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of the job is given. ``pretended``: this machine acts for every node.

    ``number``: of the job among those of its chain, see ``chain``.
    ``site`` says where engines find scratch, weights and their image.
    """

    root: str
    attempt: str
    pretended: bool
    site: Site = field(default_factory=Site)
    number: int = 0

    def attempt_name(self, restarts: int) -> str:
        """Each start is an attempt of its own: it must not meet the endpoints of the one before."""
        return f"{self.attempt}-{_MOST_RESTARTS * self.number + restarts}"


def number_in_chain(attempt: str) -> int:
    """Number of the job that made an attempt, from the attempt's name."""
    last = attempt.rpartition("-")[2]
    return int(last) // _MOST_RESTARTS if last.isdigit() else 0


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
    site: Site = field(default_factory=Site)
    term: int = 0
    last_lead: Death | None = None
