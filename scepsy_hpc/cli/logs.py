"""``logs``: the last lines of a run's logs."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import COUNT, FOLDER


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
