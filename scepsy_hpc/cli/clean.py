"""``clean``: remove what a run that is over no longer needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from scepsy_hpc.cli.options import FILE, FOLDER, example, json_option, print_json, say

if TYPE_CHECKING:
    from scepsy_hpc.serving.cleaning import Rubbish


@click.command(epilog=example("scepsy clean results/ --dry-run"))
@click.argument("folder", type=FOLDER, required=False)
@click.option("--weights", is_flag=True, help="Weights staged on this machine's disk, too.")
@click.option("--site", type=FILE, help="site.yaml that says where staged weights are.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@json_option
def clean(
    folder: Path | None, weights: bool, site: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Remove what a run that is over no longer needs.

    FOLDER is the run's results folder. Results, spans, plan, settings, status
    and the last logs stay, so that it can be resumed and reported. Refused
    while a run uses the folder. With --weights FOLDER may be left out; copies
    on compute nodes are removed by the same command there.
    """
    from scepsy_hpc.cluster.site import load_site
    from scepsy_hpc.errors import InputError
    from scepsy_hpc.serving import cleaning

    if folder is None and not weights:
        raise InputError("clean: give a results folder, or --weights")
    if site is not None and not weights:
        raise InputError("clean: --site: says where weights are; add --weights")
    found = cleaning.find_rubbish(folder) if folder is not None else []
    if weights:
        found += cleaning.find_staged(load_site(site))
    if not dry_run:
        cleaning.remove(found)
    if as_json:
        num_bytes = sum(one.num_bytes for one in found)
        print_json({"removed": not dry_run, "num_bytes": num_bytes, "found": found})
    else:
        _show(found, dry_run)


def _show(found: list[Rubbish], dry_run: bool) -> None:
    for one in found:
        click.echo(f"{one.num_bytes / 2**20:10.1f} MiB  {one.path}  ({one.why})")
    total_mib = sum(one.num_bytes for one in found) / 2**20
    done = "would be removed" if dry_run else "removed"
    say(f"{len(found)} things, {total_mib:.1f} MiB, {done}" if found else "nothing to remove")
