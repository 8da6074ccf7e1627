"""Which versions of this package have worked on a results folder, and which may go on with it."""

from __future__ import annotations

from pathlib import Path

from scepsy_hpc import __version__
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import record
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json

# Raise it where a results folder of before can no longer be gone on with, or one of now could not
# be by the versions of before; also where what a queued job is given (`Start`) becomes another.
FOLDER_FORMAT = 1
OLDEST_FORMAT = 1


@record
class MadeBy:
    """The form that a results folder has, and every version that ran in it, first to last."""

    folder_format: int
    versions: tuple[str, ...]


def made_by_path(folder: RunFolder) -> Path:
    """Where a results folder says it."""
    return folder.root / "made_by.json"


def check_made_by(folder: RunFolder) -> None:
    """Raise InputError where this version cannot go on with a folder; it says which can.

    A folder without the file is of a version that did not write it, whose form is the first.
    """
    found = read_json(made_by_path(folder), MadeBy)
    if found is None or OLDEST_FORMAT <= found.folder_format <= FOLDER_FORMAT:
        return
    theirs = found.versions[-1] if found.versions else "unknown"
    raise InputError(
        f"{folder.root}: was last used by scepsy-hpc {theirs} (folder format "
        f"{found.folder_format}), and this is {__version__} (formats {OLDEST_FORMAT} to "
        f"{FOLDER_FORMAT}); what is recorded is safe: go on with `pip install "
        f"scepsy-hpc=={theirs}`, or give another folder with -o"
    )


def note_made_by(folder: RunFolder) -> str | None:
    """Check the folder and add this version to it; the one before, where that was another.

    Raises InputError as :func:`check_made_by` does.
    """
    check_made_by(folder)
    found = read_json(made_by_path(folder), MadeBy)
    before = found.versions if found else ()
    if before[-1:] == (__version__,):
        return None
    versions = (*before, __version__)
    write_json(made_by_path(folder), MadeBy(folder_format=FOLDER_FORMAT, versions=versions))
    return before[-1] if before else None
