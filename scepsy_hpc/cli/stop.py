"""``stop``: ask a run to end in order."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import FOLDER


@click.command()
@click.argument("folder", type=FOLDER)
def stop(folder: Path) -> None:
    """Ask the run in FOLDER to end in order; nothing recorded is lost."""
    from scepsy_hpc.serving import run as runs

    click.echo(runs.ask_to_stop(folder))
