"""A profile bundle: ``bundle.yaml`` says what was measured how, ``points.csv`` the points."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Positive, read_yaml, record, sha256_file, write_yaml
from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.points import POINTS_FILE, Point, read_points
from scepsy_hpc.formats.workflow import EngineArgs

BUNDLE_SCHEMA = "scepsy/profile/v1"

HEADER_FILE = "bundle.yaml"

How = Literal["measured", "modelled", "derived"]


@record
class BundleHeader:
    """``bundle.yaml``. ``how`` says whether an engine was measured, modelled or derived."""

    model: str
    engine: str
    engine_version: str
    engine_args: EngineArgs
    precision: str
    gpu_type: str
    gpu_memory_gib: Positive
    how: How
    source: str
    licence: str
    date: str
    points_sha256: str
    imported_from: str | None = None
    driver: str | None = None
    link: Link | None = None
    weights_gib: Positive | None = None
    kv_bytes_per_token: Positive | None = None
    spans_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle; ``sha256`` (of ``points.csv``) is its name in plans."""

    header: BundleHeader
    points: tuple[Point, ...]
    path: Path

    @property
    def sha256(self) -> str:
        """Identity of the bundle: the digest of its points."""
        return self.header.points_sha256


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check one bundle folder.

    Raises InputError that names the file, the key or line, the value and what is allowed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle folder; it must hold {HEADER_FILE}")
    header = read_yaml(folder / HEADER_FILE, BundleHeader, BUNDLE_SCHEMA)
    points_path = folder / POINTS_FILE
    points = read_points(points_path)
    found = sha256_file(points_path)
    if found != header.points_sha256:
        raise InputError(
            f"{folder / HEADER_FILE}: points_sha256: is {header.points_sha256!r} but "
            f"{POINTS_FILE} has {found!r}; the points were changed after the bundle was written"
        )
    return Bundle(header, points, folder)


def save_bundle_files(folder: Path, header: BundleHeader, points_csv: bytes) -> None:
    """Write both files of a bundle into a folder; the points' bytes stay as they are."""
    (folder / POINTS_FILE).write_bytes(points_csv)
    digest = hashlib.sha256(points_csv).hexdigest()
    write_yaml(folder / HEADER_FILE, replace(header, points_sha256=digest), BUNDLE_SCHEMA)
