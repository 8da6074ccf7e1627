"""Jobs one after the other: what the time limit of one leaves undone the next works off.

The next job is queued when a batch is submitted, so that it starts although the submitter is gone.
It depends on the end of the one before, however that came, and on being the only one of its name.
Each job that starts queues one more where its node can; it ends at once where nothing is left.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace

from scepsy_hpc.cluster.jobs import slurm
from scepsy_hpc.cluster.jobs.submit import submit
from scepsy_hpc.cluster.jobs.tasks import Resources
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import ScepsyError
from scepsy_hpc.files import record
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json
from scepsy_hpc.serving.start import Start

OVER = ("ended", "stopped", "failed")
"""States after which no job of a chain goes on; one cut short is interrupted, or silent."""

HostFunction = Callable[[Start], None]


@record
class Chain:
    """How each job of a batch is asked for, and the ids of all that were queued so far.

    ``ahead``: so many are queued beyond the one that runs.
    """

    site: Site
    resources: Resources
    attempt: str
    ahead: int
    ids: tuple[str, ...]


def job_name(folder: RunFolder) -> str:
    """The same for all jobs of a folder and no other's: two of one name never run together."""
    return f"scepsy-run-{hashlib.sha256(str(folder.root).encode()).hexdigest()[:8]}"


def begin_chain(folder: RunFolder, host: HostFunction, first: Chain) -> str | None:
    """Note a submitted job, and queue those that follow it; see `keep_chain`."""
    write_json(folder.chain, first)
    return keep_chain(folder, host, 0)


def keep_chain(folder: RunFolder, host: HostFunction, number: int) -> str | None:
    """Queue what is to follow job ``number`` (the first is 0) of a batch, from its node or before.

    Returns why that was not possible, in words; None where it was, or where there is no chain.
    """
    chain = read_json(folder.chain, Chain)
    if chain is None or chain.ahead == 0 or len(chain.ids) > number + chain.ahead:
        return None
    if shutil.which("sbatch") is None:
        return "no sbatch on this node: after the jobs that are queued already none will follow"
    try:
        _lengthen(folder, host, chain, number + 1 + chain.ahead)
    except ScepsyError as error:
        return f"the job that would go on after this one could not be queued: {error}"
    return None


def _lengthen(folder: RunFolder, host: HostFunction, chain: Chain, length: int) -> None:
    while len(chain.ids) < length:
        need = replace(chain.resources, dependency=f"afterany:{chain.ids[-1]},singleton")
        start = Start(str(folder.root), chain.attempt, False, chain.site, len(chain.ids))
        jobs = submit("slurm", folder.jobs, host, [start], need, chain.site, job_name(folder))
        chain = replace(chain, ids=(*chain.ids, *jobs.ids))
        write_json(folder.chain, chain)


def is_over_for_good(folder: RunFolder) -> bool:
    """Whether another job would be of no use: the last one came to an end of its own.

    What such a one left unrecorded, no engine or agent could be had for: trying that again and
    again would cost an allocation each time.
    """
    status = read_json(folder.status, RunStatus)
    return status is not None and status.state in OVER


def followers(folder: RunFolder, number: int | None = None) -> tuple[str, ...]:
    """Ids of the jobs that were queued behind job ``number``; of all without one."""
    chain = read_json(folder.chain, Chain)
    if chain is None:
        return ()
    return chain.ids if number is None else chain.ids[number + 1 :]


def is_queued(folder: RunFolder) -> bool:
    """Whether a job of the chain runs or waits; True where the queue does not answer."""
    chain = read_json(folder.chain, Chain)
    if chain is None:
        return False
    view = slurm.squeue(chain.ids, chain.site)
    states = [view.states.get(job_id) for job_id in chain.ids]
    return not view.known or any(s is not None and not s.startswith(slurm.ENDED) for s in states)


def cancel(ids: tuple[str, ...]) -> bool:
    """Take jobs out of the queue. False where that cannot be done from here."""
    if not ids or shutil.which("scancel") is None:
        return not ids
    done = subprocess.run(["scancel", *ids], capture_output=True, text=True, check=False)
    return done.returncode == 0
