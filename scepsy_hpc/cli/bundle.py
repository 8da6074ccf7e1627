"""``bundle``: list, check, import and share profile bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scepsy_hpc.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    example,
    json_option,
    print_json,
    say,
)


@click.group(
    epilog=example(
        "scepsy bundle export profiles/ -o ours.tar.gz",
        "scepsy bundle verify ours.tar.gz",
        "scepsy bundle import ours.tar.gz -o profiles/",
    )
)
def bundle() -> None:
    """List, check, import and share profile bundles.

    A bundle is a folder with bundle.yaml (what was measured or modelled, where it is from, its
    licence) and points.csv (throughput and latency by load).
    """


@bundle.command("list", short_help="Show the bundles below a folder.")
@click.argument("folder", type=FOLDER)
@json_option
def list_bundles(folder: Path, as_json: bool) -> None:
    """Show the bundles below FOLDER, each checked as it is read."""
    from scepsy_hpc.bundles.library import find_bundles

    found = find_bundles(folder)
    if not found and not as_json:
        say(f"{folder} holds no bundle; a bundle is a folder with bundle.yaml and points.csv")
    _show(found, as_json, None)


@bundle.command("verify", short_help="Check the bundles of a folder or an archive.")
@click.argument("path", type=FILE_OR_FOLDER)
@json_option
def verify(path: Path, as_json: bool) -> int:
    """Check every bundle of PATH, a folder or an archive, and go on past bad ones.

    Checked are keys, units, Little's law for closed points, and that the points are those the
    header was written for. Exit code 1 when a bundle is bad; nothing is written.
    """
    from scepsy_hpc.bundles import archive

    found = archive.verify_bundles(path)
    bad = [one for one in found if one.problem]
    if as_json:
        print_json({"num_bundles": len(found), "num_bad": len(bad), "bundles": found})
    else:
        for one in found:
            click.echo(f"{one.name}: {one.problem or f'sound, {one.num_points} points'}")
    if bad:
        say(f"error: {path}: {len(bad)} of {len(found)} bundles are bad")
    return int(bool(bad))


@bundle.command("export", short_help="Pack bundles into one archive.")
@click.argument("folder", type=FOLDER)
@click.option("-o", "--output", type=FILE, required=True, help="The archive, a .tar.gz file.")
@click.option("--model", help="Only bundles of this model.")
@click.option("--gpu-type", help="Only bundles of this GPU type.")
@json_option
def export(
    folder: Path, output: Path, model: str | None, gpu_type: str | None, as_json: bool
) -> None:
    """Pack the bundles below FOLDER into one archive that another lab can import.

    Each bundle carries its source and licence; look at them before you share.
    """
    from scepsy_hpc.bundles.archive import export_bundles
    from scepsy_hpc.bundles.library import find_bundles
    from scepsy_hpc.errors import InputError

    every = find_bundles(folder)
    found = [
        one
        for one in every
        if model in (None, one.header.model) and gpu_type in (None, one.header.gpu_type)
    ]
    if not found:
        known = sorted({f"{b.header.model} on {b.header.gpu_type}" for b in every})
        raise InputError(
            f"{folder}: holds no such bundle to export; it has {', '.join(known) or 'none at all'}"
        )
    export_bundles(found, output)
    _show(found, as_json, f"wrote {output}: {len(found)} bundles")


@bundle.command("import", short_help="Take over bundles from an archive or a table.")
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of profiles to write to.")
@click.option("--replace", is_flag=True, help="Replace bundles that are there with other points.")
@click.option(
    "--table",
    type=click.Choice(["silicon", "modelled"]),
    help="FILE is no archive but a CSV table of measured (silicon) or modelled points.",
)
@json_option
def import_file(file: Path, output: Path, replace: bool, table: str | None, as_json: bool) -> None:
    """Take over the bundles of an archive that `scepsy bundle export` made.

    All are checked before the first is written. With --table, FILE is a CSV table of one closed
    operating point a row, and each (GPU type, model, engine) of it becomes a bundle.
    """
    from scepsy_hpc.bundles.archive import import_bundles

    if table:
        _import_table(table, file, output, as_json)
        return
    if file.suffix == ".csv":
        raise click.UsageError(f"{file}: a table needs --table silicon or --table modelled")
    found = import_bundles(file, output, replace)
    _show(found, as_json, f"{len(found)} bundles of {file} are below {output}")


def _import_table(kind: str, table: Path, output: Path, as_json: bool) -> None:
    from scepsy_hpc.bundles.importers import import_csv

    found = import_csv(kind, table, output)
    if as_json:
        print_json({"bundles": [_plain(b) for b in found.bundles], "left_out": found.dropped})
        return
    _show(found.bundles, False, f"wrote {len(found.bundles)} bundles below {output}")
    for reason, count in found.dropped.items():
        say(f"left out {count} rows: {reason}")


def _show(found: Any, as_json: bool, done: str | None) -> None:
    from scepsy_hpc.report import inventory, tables

    if as_json:
        print_json([_plain(one) for one in found])
        return
    tables.show(*inventory.bundles_tables(found))
    if done:
        say(done)


def _plain(found: Any) -> dict[str, Any]:
    """What `bundle.yaml` says, where it lies, and how many points there are."""
    from scepsy_hpc.files import to_plain

    return {**to_plain(found.header), "path": str(found.path), "num_points": len(found.points)}
