"""``doctor``: what is missing on this machine or site."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import FILE, json_option, print_json


@click.command()
@click.option("--site", type=FILE, help="site.yaml whose partition is checked too.")
@json_option
def doctor(site: Path | None, as_json: bool) -> int:
    """Say what is missing on this machine or site, and the fix.

    Exit code 1 when something that is there does not work; what is merely missing is listed with
    the commands that need it.
    """
    from scepsy_hpc.report import tables
    from scepsy_hpc.report.doctor import examine

    findings = examine(site)
    if as_json:
        print_json(findings)
    else:
        tables.show(*tables.findings_parts(findings))
    return int(any(f.state == "broken" for f in findings))
