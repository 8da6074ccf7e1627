"""Profile bundles on disk: where they lie, written atomically, found by content.

A bundle is looked up by what its ``bundle.yaml`` says, never by the path it lies under.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import (
    HEADER_FILE,
    Bundle,
    BundleHeader,
    load_bundle,
    save_bundle_files,
)
from scepsy_hpc.formats.points import Point, check_points, points_text


def find_bundles(roots: Path | str | Iterable[Path | str]) -> list[Bundle]:
    """All bundles below one folder or several, ordered by path; an empty folder has none.

    Raises InputError when a root is missing or a bundle in it is bad.
    """
    several = [roots] if isinstance(roots, str | Path) else list(roots)
    folders: dict[Path, Path] = {}
    for root in map(Path, several):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of profile bundles")
        for header in sorted(root.rglob(HEADER_FILE)):
            if any(part.startswith(".") for part in header.relative_to(root).parts):
                continue  # a bundle that is just being written
            folders.setdefault(header.parent.resolve(), header.parent)
    return [load_bundle(folder) for folder in folders.values()]


def resolve_bundle(name: Path | str) -> Path:
    """The folder of a bundle named by a path: absolute, from here, or below shipped profiles.

    Raises InputError when it is in none of these places.
    """
    tried = [Path(name), shipped_path("profiles") / name]
    for folder in tried:
        if (folder / HEADER_FILE).is_file():
            return folder.resolve()
    places = " nor ".join(str(folder) for folder in dict.fromkeys(tried))
    raise InputError(f"timing_bundle: no {HEADER_FILE} in {places}")


def bundle_folder(root: Path | str, header: BundleHeader, workload: str) -> Path:
    """Where the contract puts a bundle; a name cannot leave ``root``."""
    model = _safe(header.model.replace("/", "__"))
    engine = _safe(f"{header.engine}-{header.engine_version}")
    return Path(root) / _safe(header.gpu_type) / model / engine / _safe(workload)


def _safe(name: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._+@=-]", "_", name)
    return cleaned if cleaned.strip(".") else "_"


def save_bundle(
    root: Path | str,
    header: BundleHeader,
    points: Sequence[Point],
    workload: str,
) -> Bundle:
    """Write a bundle below ``root``; the whole folder appears at once, an old one is replaced.

    ``header.points_sha256`` is filled in here. Points that ``load_bundle`` would refuse are
    refused before anything is written. Raises InputError.
    """
    check_points(points, [f"point {i + 1} of {header.model}" for i in range(len(points))])
    if not points:
        raise InputError(f"{header.model}: a bundle needs at least one point")
    target = bundle_folder(root, header, workload)
    with staged_folder(target) as staging:
        save_bundle_files(staging, header, points_text(points).encode())
        load_bundle(staging)
    return load_bundle(target)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that then appears as ``target``, in the place of an old one.

    An old one is out of sight for an instant. Raises InputError where it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        staging.chmod(0o755)
        yield staging
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        os.replace(target, old / "bundle")
        try:
            os.replace(staging, target)
        except OSError:
            os.replace(old / "bundle", target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, target)
