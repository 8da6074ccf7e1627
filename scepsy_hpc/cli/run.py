"""``run``, ``serve``, ``status``, ``logs``, ``stop``, ``report``."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from scepsy_hpc.cli.options import (
    COUNT,
    DURATION,
    FILE,
    FOLDER,
    MINUTES,
    POSITIVE,
    cluster_options,
    example,
    json_option,
    print_json,
    say,
)
from scepsy_hpc.cluster.jobs.submit import ClusterName


@click.command(epilog=example("scepsy run plan.yaml tasks.jsonl -o results/ --cluster slurm"))
@click.argument("plan", type=FILE)
@click.argument("tasks", type=FILE)
@click.option("-o", "--output", type=FOLDER, required=True, help="Results folder, shared by nodes.")
@cluster_options("local")
@click.option("--resume", is_flag=True, help="Go on with the tasks not recorded in the folder.")
@click.option("--runs-in-flight", type=COUNT, help="Runs at a time.  [default: the plan's, or 8]")
@click.option("--rate", type=POSITIVE, help="Runs per second instead, Poisson arrivals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the arrivals.")
@click.option("--task-timeout", type=DURATION, help="Limit for one attempt, such as 30min.")
@click.option("--time", "time_min", type=MINUTES, help="Time limit of the job, such as 8h.")
@json_option
def run(
    plan: Path,
    tasks: Path,
    output: Path,
    cluster: ClusterName,
    site: Path | None,
    resume: bool,
    runs_in_flight: int | None,
    rate: float | None,
    seed: int,
    task_timeout: float | None,
    time_min: int | None,
    as_json: bool,
) -> int:
    """Host the plan's engines and work the batch TASKS off.

    Each task that ended stands once in results.jsonl of the folder, and is never run again.
    Interrupted? The same command with --resume goes on with the others.
    """
    from scepsy_hpc.serving.settings import RunSettings

    settings = RunSettings(
        max_runs_in_flight=runs_in_flight,
        rate_rps=rate,
        seed=seed,
        task_timeout_s=task_timeout,
        cluster=cluster,
    )
    status = _execute(plan, tasks, output, settings, cluster, site, resume, time_min)
    return _conclude(output, status, as_json)


def _execute(
    plan: Path,
    tasks: Path | None,
    output: Path,
    settings: Any,
    cluster: ClusterName,
    site: Path | None,
    resume: bool,
    time_min: int | None,
) -> dict[str, Any]:
    from scepsy_hpc.cluster.site import load_site
    from scepsy_hpc.errors import InputError
    from scepsy_hpc.report.progress import ProgressBar
    from scepsy_hpc.serving import run as runs

    checked_site = load_site(site)
    was_there = output.exists()
    folder = runs.prepare(plan, tasks, output, settings, resume)
    try:
        jobs = runs.launch(folder, cluster, checked_site, time_min)
    except InputError:
        if not was_there:  # nothing half-written: no run was ever submitted from it
            shutil.rmtree(output, ignore_errors=True)
        raise
    say(f"{'serving' if settings.serve else 'running'} in {output} ({cluster} {jobs.ids[0]})")
    try:
        with _ends_as_by_hand(), ProgressBar("tasks" if tasks else "engines ready") as progress:
            return runs.follow(folder, jobs, lambda s, note: show_status(progress, s, note))
    except KeyboardInterrupt:
        if cluster == "slurm":
            say(f"the job goes on; `scepsy status {output}`, `scepsy stop {output}`")
        else:
            runs.end_in_order(folder, jobs)
            say("the same command with --resume goes on with what is not recorded")
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


def show_status(progress: Any, status: dict[str, Any] | None, note: str) -> None:
    if status is None:
        return
    counts = status.get("tasks")
    if counts:
        done = counts["recorded_before"] + counts["ok"] + counts["failed"]
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        progress.update(done, counts["total"], f"{counts['in_flight']} in flight{failed}")
        return
    instances = status.get("instances", [])
    ready = sum(i["state"] == "ready" for i in instances)
    progress.update(
        0, None, note or f"{status['state']}, {ready} of {len(instances)} engines ready"
    )


def _conclude(output: Path, status: dict[str, Any], as_json: bool) -> int:
    from scepsy_hpc.report import tables
    from scepsy_hpc.serving.run import read_status
    from scepsy_hpc.serving.run_folder import RunFolder, read_json

    status = read_status(output) if output.exists() else status
    counts = status.get("tasks") or {}
    if as_json:
        measured = read_json(RunFolder(output.absolute()).measured)
        print_json({"status": status, "measured": measured})
    else:
        tables.show(*tables.status_tables(status))
        _show_alerts(status)
    left = counts.get("waiting", 0) + counts.get("in_flight", 0)
    if left:
        say(f"error: {left} tasks are not recorded; the same command with --resume runs them")
    if counts.get("failed"):
        say(f"error: {counts['failed']} tasks failed; see {output}/results.jsonl")
    return int(bool(left or counts.get("failed")))


@click.command(epilog=example("scepsy serve plan.yaml -o serving/ --cluster slurm"))
@click.argument("plan", type=FILE)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder for logs and status.")
@cluster_options("local")
@click.option("--time", "time_min", type=MINUTES, help="Time limit of the job, such as 8h.")
def serve(
    plan: Path, output: Path, cluster: ClusterName, site: Path | None, time_min: int | None
) -> int:
    """Host the plan's engines without a batch, until `scepsy stop`.

    `scepsy status` shows the endpoint; the key stands in private/api_key of the folder.
    """
    from scepsy_hpc.serving.settings import RunSettings

    settings = RunSettings(serve=True, cluster=cluster)
    _execute(plan, None, output, settings, cluster, site, False, time_min)
    return 0


@click.command()
@click.argument("folder", type=FOLDER)
@json_option
def status(folder: Path, as_json: bool) -> None:
    """Show how far the run in FOLDER is and how its engines are."""
    from scepsy_hpc.report import tables
    from scepsy_hpc.serving.run import read_status

    found = read_status(folder)
    if as_json:
        print_json(found)
    else:
        tables.show(*tables.status_tables(found))
        _show_alerts(found)


def _show_alerts(status: dict[str, Any]) -> None:
    for alert in status.get("alerts", []):
        say(f"alert: {alert}")


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("name", required=False)
@click.option(
    "-n", "--lines", type=COUNT, default=50, show_default=True, help="So many lines of each log."
)
def logs(folder: Path, name: str | None, lines: int) -> None:
    """Print the last lines of a run's logs.

    FOLDER is the run's results folder. With NAME, only of logs whose name starts with it.
    """
    from scepsy_hpc.engines.process import last_lines
    from scepsy_hpc.errors import InputError
    from scepsy_hpc.serving.run_folder import RunFolder

    found = sorted(RunFolder(folder.absolute()).logs.glob(f"{name or ''}*.log"))
    if not found:
        which = f"log that starts with {name!r}" if name else "logs/*.log"
        raise InputError(f"{folder}: holds no {which}; give the -o folder of `scepsy run`")
    for path in found:
        click.echo(f"==> {path} <==")
        for line in last_lines(path, lines):
            click.echo(line)


@click.command()
@click.argument("folder", type=FOLDER)
def stop(folder: Path) -> None:
    """Ask the run in FOLDER to end in order; nothing recorded is lost."""
    from scepsy_hpc.serving import run as runs

    click.echo(runs.ask_to_stop(folder))


@click.command(epilog=example("scepsy report results/ --again results-2/ -o report.html"))
@click.argument("folder", type=FOLDER)
@click.option("-o", "--output", type=FILE, help="HTML file.  [default: FOLDER/report.html]")
@click.option(
    "--again",
    type=FOLDER,
    multiple=True,
    help="Results of the same plan and tasks run again, for the noise floor; may be repeated.",
)
@json_option
def report(folder: Path, output: Path | None, again: tuple[Path, ...], as_json: bool) -> None:
    """Write one self-contained HTML file about a run: predicted beside measured.

    FOLDER is the results folder of a run that has ended.
    """
    from scepsy_hpc.report import tables
    from scepsy_hpc.report.html import write_report

    path, comparison = write_report(folder, output or folder / "report.html", again)
    if as_json:
        print_json(comparison)
    else:
        tables.show(tables.comparison_table(comparison), *(f"note: {n}" for n in comparison.notes))
    say(f"wrote {path}")
