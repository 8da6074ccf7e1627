"""``doctor``: what is missing on this machine or site."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import DURATION, FILE, FOLDER, json_option, print_json, say


@click.command()
@click.option("--site", type=FILE, help="site.yaml; what it promises is checked, too.")
@click.option("--results", type=FOLDER, help="Where results will lie.  [default: this folder]")
@click.option("--no-job", is_flag=True, help="Look at this machine only, at no compute node.")
@click.option(
    "--wait",
    "wait_s",
    type=DURATION,
    default="10min",
    show_default=True,
    help="How long the job that looks at a node may take.",
)
@json_option
def doctor(
    site: Path | None, results: Path | None, no_job: bool, wait_s: float, as_json: bool
) -> int:
    """Say what is missing on this machine or site, and the fix.

    With --site a job of a minute or two, asked for as the site file says, looks
    at a compute node, too. Exit code 1 when something that is there does not
    work; what is merely missing is listed with the commands that need it.
    """
    from scepsy_hpc.cluster.site import load_site
    from scepsy_hpc.report import tables
    from scepsy_hpc.report.doctor import examine
    from scepsy_hpc.report.doctor_node import examine_node

    findings = examine(site, results)
    if site is not None and not no_job:
        say("a job looks at a compute node (--no-job leaves it out)")
        findings += examine_node(load_site(site), results or Path.cwd(), wait_s, say)
    if as_json:
        print_json(findings)
    else:
        tables.show(*tables.findings_parts(findings))
    return int(any(f.state == "broken" for f in findings))
