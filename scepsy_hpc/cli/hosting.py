"""Host a plan's engines and follow them to the end, as several commands do."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scepsy_hpc.cli.options import say
from scepsy_hpc.cluster.jobs.submit import ClusterName

if TYPE_CHECKING:
    from scepsy_hpc.formats.status import RunStatus, WatchedRun
    from scepsy_hpc.report.progress import ProgressBar
    from scepsy_hpc.serving.settings import RunSettings


def host_plan(
    plan: Path,
    tasks: Path | None,
    output: Path,
    settings: RunSettings,
    cluster: ClusterName,
    site: Path | None,
    resume: bool,
    time_min: int | None,
    ahead: int = 1,
    changed_ok: bool = False,
) -> None:
    """Submit the job and follow it to its end. Without ``tasks`` until it is stopped.

    ``ahead``: of a batch on Slurm, jobs queued behind it. A batch of which nothing is left to run
    is not submitted; one that is interrupted here returns like one that has ended: what its ledger
    says counts. Raises InputError where nothing was submitted; then no new ``output`` is left.
    """
    from scepsy_hpc.cluster.site import load_site
    from scepsy_hpc.errors import InputError
    from scepsy_hpc.report.progress import ProgressBar
    from scepsy_hpc.serving import run as runs
    from scepsy_hpc.serving.tally import end_at_once, is_complete

    checked_site = load_site(site)
    was_there = output.exists()
    folder = runs.prepare(plan, tasks, output, settings, resume, changed_ok)
    if tasks is not None and is_complete(folder):
        end_at_once(folder)
        say(f"nothing is left to run in {output}")
        return
    try:
        jobs = runs.launch(folder, cluster, checked_site, time_min, ahead)
    except InputError:
        if not was_there:  # nothing half-written: no run was ever submitted from it
            shutil.rmtree(output, ignore_errors=True)
        raise
    say(f"{'serving' if settings.serve else 'running'} in {output} ({cluster} {jobs.ids[0]})")
    try:
        with _ends_as_by_hand(), ProgressBar("tasks" if tasks else "engines ready") as progress:
            runs.follow(folder, jobs, lambda s, note: show_progress(progress, s, note))
    except KeyboardInterrupt:
        if cluster == "slurm":
            say(f"the job goes on; `scepsy status {output}`, `scepsy stop {output}`")
        else:
            runs.end_in_order(folder, jobs)
            say("the same command with --resume goes on with what is not recorded")
        if tasks is None:
            raise


@contextlib.contextmanager
def _ends_as_by_hand() -> Iterator[None]:
    """SIGTERM (Slurm at the end of a job) and SIGHUP act like Ctrl-C: nothing is left running."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_progress(progress: ProgressBar, status: RunStatus | None, note: str) -> None:
    """Tasks done, or engines ready while there are none; ``note`` says why that takes time."""
    if status is None:
        return
    counts = status.tasks
    if counts:
        done = counts.recorded_before + counts.ok + counts.failed
        failed = f", {counts.failed} failed" if counts.failed else ""
        progress.update(done, counts.total, f"{counts.in_flight} in flight{failed}")
        return
    ready = sum(i.state == "ready" for i in status.instances)
    of = len(status.instances)
    progress.update(0, None, note or f"{status.state}, {ready} of {of} engines ready")


def show_status(status: WatchedRun) -> None:
    """How far a run is and how its engines are, for a person."""
    from scepsy_hpc.report import tables

    tables.show(*tables.status_tables(status))
    for alert in status.alerts:
        say(f"alert: {alert}")
