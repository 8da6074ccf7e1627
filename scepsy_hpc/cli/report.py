"""``report``: predicted beside measured, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import FILE, FOLDER, example, json_option, print_json, say


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
