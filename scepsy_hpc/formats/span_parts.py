"""A file of spans that grew: compressed parts in a folder of its name, then the file itself.

Of ``spans.jsonl`` these are ``spans/000001.jsonl.gz``, ``spans/000002.jsonl.gz``, ... in the order
of writing. A part not yet compressed has no ``.gz``. Where both are there the compressed one is
whole, since it was renamed into its place.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

_PART = re.compile(r"(\d{6,})\.jsonl(\.gz)?")
_CHUNK_BYTES = 2**20


def parts_folder(path: Path) -> Path:
    """Where the parts of a file of spans lie."""
    return path.with_suffix("")


def numbered_parts(path: Path) -> dict[int, Path]:
    """Parts by number, in order; none where the file never grew."""
    folder = parts_folder(path)
    if path.suffix != ".jsonl" or not folder.is_dir():
        return {}
    found: dict[int, Path] = {}
    for part in sorted(folder.iterdir()):  # `.jsonl` before `.jsonl.gz`, which then counts
        if named := _PART.fullmatch(part.name):
            found[int(named[1])] = part
    return dict(sorted(found.items()))


def files_of_spans(path: Path | str) -> list[Path]:
    """Every file that holds spans of ``path``, in the order of writing."""
    path = Path(path)
    return [*numbered_parts(path).values(), path]


def open_spans_file(path: Path) -> IO[bytes]:
    """A part or a whole file for reading, unpacked; also where it was compressed meanwhile."""
    packed = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if path.suffix == ".gz" or (not path.exists() and packed.exists()):
        return cast(IO[bytes], gzip.open(packed, "rb"))
    return path.open("rb")


def chunks_of_spans(path: Path | str) -> Iterator[bytes]:
    """The unpacked bytes of all parts and the file, one after the other."""
    for part in files_of_spans(path):
        with open_spans_file(part) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk


def sha256_of_spans(path: Path | str) -> str:
    """SHA-256 of what is written, in hex: the same however much of it was compressed since."""
    digest = hashlib.sha256()
    for chunk in chunks_of_spans(path):
        digest.update(chunk)
    return digest.hexdigest()
