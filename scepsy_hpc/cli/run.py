"""``run``: host a plan's engines and work a batch off."""

from __future__ import annotations

import uuid
from pathlib import Path

import click

from scepsy_hpc.cli.hosting import host_plan, show_status
from scepsy_hpc.cli.options import (
    ANY_SEED,
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
@click.option("--retry-failed", is_flag=True, help="With --resume: failed tasks run again, too.")
@click.option("--changed-ok", is_flag=True, help="Resume with other tasks, plan or agents.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="More attempts of a task whose agent failed.",
)
@click.option("--runs-in-flight", type=COUNT, help="Runs at a time.  [default: the plan's, or 8]")
@click.option("--rate", type=POSITIVE, help="Runs per second instead, Poisson arrivals.")
@click.option("--seed", type=ANY_SEED, default=0, show_default=True, help="Seed of the arrivals.")
@click.option("--task-timeout", type=DURATION, help="Limit for one attempt, such as 30min.")
@click.option("--time", "time_min", type=MINUTES, help="Time limit of the job, such as 8h.")
@click.option(
    "--chain",
    type=click.IntRange(0, 100),
    default=1,
    show_default=True,
    help="On Slurm: jobs queued behind this one, which go on where its time ends. Each that starts "
    "queues one more where its node can; without tasks left they end at once.",
)
@json_option
def run(
    plan: Path,
    tasks: Path,
    output: Path,
    cluster: ClusterName,
    site: Path | None,
    resume: bool,
    retry_failed: bool,
    changed_ok: bool,
    retries: int,
    runs_in_flight: int | None,
    rate: float | None,
    seed: int,
    task_timeout: float | None,
    time_min: int | None,
    chain: int,
    as_json: bool,
) -> int:
    """Host the plan's engines and work the batch TASKS off.

    Each task that ended stands once in results.jsonl of the folder, and is never run again.
    Interrupted? The same command with --resume goes on with the others. Exit code: 0 all ok, 4
    while some tasks are not recorded, else 1 if some failed.
    """
    from scepsy_hpc.serving.settings import RunSettings

    if (retry_failed or changed_ok) and not resume:
        flag = "--retry-failed" if retry_failed else "--changed-ok"
        raise click.UsageError(f"{flag} goes with --resume: it is about a folder that has results")
    settings = RunSettings(
        max_runs_in_flight=runs_in_flight,
        rate_rps=rate,
        seed=seed,
        retries=retries,
        retry_round=uuid.uuid4().hex[:12] if retry_failed else None,
        task_timeout_s=task_timeout,
    )
    host_plan(plan, tasks, output, settings, cluster, site, resume, time_min, chain, changed_ok)
    return _conclude(output, as_json)


def _conclude(output: Path, as_json: bool) -> int:
    from scepsy_hpc.serving.measured import MeasuredRun
    from scepsy_hpc.serving.run import read_status
    from scepsy_hpc.serving.run_folder import RunFolder, read_json
    from scepsy_hpc.serving.tally import tally

    found, status = tally(RunFolder(output.absolute())), read_status(output)
    if as_json:
        measured = read_json(RunFolder(output.absolute()).measured, MeasuredRun)
        print_json({"status": status.plain(), "measured": measured})
    else:
        show_status(status)
    if found.left:
        say(f"error: {found.left} tasks are not recorded; the same command with --resume runs them")
    if found.failed:
        say(
            f"error: {found.failed} tasks failed; see {output}/results.jsonl "
            "(--resume --retry-failed runs them again)"
        )
    return found.exit_code
