"""``status``: how far a run is and how its engines are."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.hosting import show_status
from scepsy_hpc.cli.options import FOLDER, json_option, print_json


@click.command()
@click.argument("folder", type=FOLDER)
@json_option
def status(folder: Path, as_json: bool) -> None:
    """Show how far the run in FOLDER is and how its engines are."""
    from scepsy_hpc.serving.run import read_status

    found = read_status(folder)
    if as_json:
        print_json(found.plain())
    else:
        show_status(found)
