"""``profile``: measure models under every parallelism of a topology."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scepsy_hpc.cli.options import FILE, FOLDER, cluster_options, example, json_option, print_json
from scepsy_hpc.cluster.jobs.submit import ClusterName


@click.command(epilog=example("scepsy profile profile.yaml -o profiles/ --dry-run"))
@click.argument("spec", type=FILE)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of profiles to write to.")
@cluster_options("slurm")
@click.option("--dry-run", is_flag=True, help="Print the sbatch text and the GPU-hours; no job.")
@json_option
def profile(
    spec: Path,
    output: Path,
    cluster: ClusterName,
    site: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure every model of SPEC under every parallelism its topology offers.

    SPEC is a profile.yaml: topology, models, workload and loads. One array task for each (model,
    TP degree, share, link) starts its engine once and sweeps the load. A task that fails loses
    only its own points; the same command again measures what is missing.
    """
    from scepsy_hpc.cluster.site import load_site
    from scepsy_hpc.profiling.array import profile_all
    from scepsy_hpc.report import inventory, tables
    from scepsy_hpc.report.progress import ProgressBar

    with ProgressBar("load points") as progress:
        found = profile_all(
            spec,
            output,
            cluster,
            load_site(site),
            dry_run,
            lambda p: progress.update(p.num_points, p.num_points_wanted, _tasks_ended(p)),
        )
    if as_json:
        print_json(found)
    else:
        tables.show(*inventory.profile_parts(found))
    found.raise_if_failed()


def _tasks_ended(progress: Any) -> str:
    failed = f", {progress.num_failed} failed" if progress.num_failed else ""
    return f"({progress.num_ended} of {progress.num_tasks} tasks{failed}) {progress.note}".rstrip()
