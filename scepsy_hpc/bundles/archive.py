"""Bundles between labs: one ``.tar.gz`` that carries them, checked before anything is written.

An archive holds ``<folders>/<workload>/bundle.yaml`` and ``points.csv`` and nothing else. Where a
bundle lands follows from its own header, never from a path in the archive.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from scepsy_hpc.bundles.library import bundle_folder, staged_folder
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import write_bytes
from scepsy_hpc.formats.bundle import HEADER_FILE, Bundle, load_bundle, save_bundle_files
from scepsy_hpc.formats.points import POINTS_FILE

MAX_FILE_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 1024 * 2**20
MAX_MEMBERS = 20_000


@dataclass(frozen=True, slots=True)
class Verified:
    """One bundle that was looked at; ``problem`` is None when it is sound."""

    name: str
    num_points: int
    problem: str | None


def export_bundles(bundles: Sequence[Bundle], archive: Path | str) -> Path:
    """Write bundles into one archive; the same bundles always make the same bytes.

    Raises InputError when there are none, two would share a place, or the file cannot be written.
    """
    archive = Path(archive)
    if not bundles:
        raise InputError(f"{archive}: no bundles to export")
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        names: dict[str, Path] = {}
        for bundle in bundles:
            folder = bundle_folder("", bundle.header, bundle.path.name).as_posix()
            if folder in names:
                raise InputError(
                    f"{bundle.path} and {names[folder]} are the same bundle to an archive "
                    f"({folder}); export one of them"
                )
            names[folder] = bundle.path
            for file in (HEADER_FILE, POINTS_FILE):
                _add(tar, f"{folder}/{file}", (bundle.path / file).read_bytes())
    write_bytes(archive, buffer.getvalue())
    return archive


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def import_bundles(
    archive: Path | str, root: Path | str, replace_existing: bool = False
) -> list[Bundle]:
    """Check every bundle of an archive, then write them all below ``root``.

    One that is there with the same points stays as it is; one with other points is refused unless
    ``replace_existing``. Raises InputError, and then nothing has been written.
    """
    with _unpacked(archive) as folders:
        found = [(name, load_bundle(folder)) for name, folder in folders]
        targets = [
            bundle_folder(root, bundle.header, PurePosixPath(name).name) for name, bundle in found
        ]
        for target, (name, bundle) in zip(targets, found, strict=True):
            if targets.count(target) > 1:
                raise InputError(f"{archive}: {name}: another of its bundles goes to {target} too")
            if replace_existing or not target.exists():
                continue
            if load_bundle(target).sha256 != bundle.sha256:
                raise InputError(
                    f"{archive}: {name}: {target} is there with other points; remove it, or "
                    "replace it on purpose"
                )
        for target, (_, bundle) in zip(targets, found, strict=True):
            if replace_existing or not target.exists():
                _place(bundle, target, Path(archive).name)
    return [load_bundle(target) for target in targets]


def _place(bundle: Bundle, target: Path, origin: str) -> None:
    """Copy a checked bundle to its place; its header says where it came from."""
    header = replace(bundle.header, imported_from=bundle.header.imported_from or origin)
    with staged_folder(target) as staging:
        save_bundle_files(staging, header, (bundle.path / POINTS_FILE).read_bytes())


def verify_bundles(path: Path | str) -> list[Verified]:
    """Look at every bundle of a folder or an archive, and go on past bad ones.

    Raises InputError when the path is neither, or holds no bundle.
    """
    path = Path(path)
    if path.is_dir():
        folders = [
            (str(header.parent.relative_to(path)), header.parent)
            for header in sorted(path.rglob(HEADER_FILE))
        ]
        looked_at = [_look(name, folder) for name, folder in folders]
    else:
        with _unpacked(path) as unpacked:
            looked_at = [_look(name, folder) for name, folder in unpacked]
    if not looked_at:
        raise InputError(f"{path}: holds no bundle; a bundle is a folder with {HEADER_FILE}")
    return looked_at


def _look(name: str, folder: Path) -> Verified:
    try:
        return Verified(name, len(load_bundle(folder).points), None)
    except InputError as error:
        return Verified(name, 0, str(error).replace(f"{folder}/", ""))


@contextmanager
def _unpacked(archive: Path | str) -> Iterator[list[tuple[str, Path]]]:
    """The archive's bundles as (name in the archive, temporary folder). Raises InputError."""
    with tempfile.TemporaryDirectory(prefix="scepsy-bundles-") as scratch:
        folders: dict[str, Path] = {}
        try:
            with tarfile.open(archive, mode="r:gz") as tar:
                for member in _members(tar, archive):
                    name = PurePosixPath(member.name)
                    parent = str(name.parent)
                    folder = folders.setdefault(parent, Path(scratch) / str(len(folders)))
                    folder.mkdir(exist_ok=True)
                    stream = tar.extractfile(member)
                    assert stream is not None, "checked to be a file"
                    (folder / name.name).write_bytes(stream.read())
        except FileNotFoundError:
            raise InputError(f"{archive}: no such file") from None
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InputError(f"{archive}: not a bundle archive (.tar.gz): {error}") from None
        yield list(folders.items())


def _members(tar: tarfile.TarFile, archive: Path | str) -> Iterator[tarfile.TarInfo]:
    """The files of the archive, each checked before it is read. Raises InputError."""
    total = 0
    for count, member in enumerate(tar, start=1):
        name = PurePosixPath(member.name)
        if member.isdir():
            continue
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{archive}: {member.name!r} leads out of the archive; refused")
        if not member.isfile() or name.name not in (HEADER_FILE, POINTS_FILE):
            raise InputError(
                f"{archive}: {member.name!r} does not belong in a bundle archive; allowed are "
                f"plain files {HEADER_FILE} and {POINTS_FILE}"
            )
        total += member.size
        if member.size > MAX_FILE_BYTES or total > MAX_TOTAL_BYTES or count > MAX_MEMBERS:
            raise InputError(
                f"{archive}: {member.name!r}: too large; allowed are {MAX_FILE_BYTES} bytes a "
                f"file, {MAX_TOTAL_BYTES} in all, {MAX_MEMBERS} files"
            )
        yield member
