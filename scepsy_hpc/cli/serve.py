"""``serve``: host a plan's engines without a batch."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.hosting import host_plan
from scepsy_hpc.cli.options import FILE, FOLDER, MINUTES, cluster_options, example
from scepsy_hpc.cluster.jobs.submit import ClusterName


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

    settings = RunSettings(serve=True)
    host_plan(plan, None, output, settings, cluster, site, False, time_min)
    return 0
