"""Spans of a run as they come: ``spans.jsonl``, and once it is large, compressed parts beside it.

A part is renamed whole out of the file's place, compressed beside itself, and only then removed:
whatever kills this process, every span stands in one place for a reader. Spans are for later
plans; the ledger is what must not fail: what the disk refuses waits, is said, and the run goes on.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import json_line
from scepsy_hpc.formats.span_parts import numbered_parts, open_spans_file, parts_folder
from scepsy_hpc.formats.spans import Span, read_span

PART_BYTES = 64 * 2**20
# What waits in memory while the disk takes nothing; a span past it is lost, and counted.
MOST_WAITING_BYTES = 16 * 2**20
_LEVEL = 6
_TAIL_BYTES = 1 << 16


class SpanLog:
    """Appends spans; knows where those of this start begin. For one process at a time."""

    def __init__(self, path: Path, part_bytes: int | None = None) -> None:
        """Nothing is opened before ``open``; spans before that are passed over."""
        self._path, self._part_bytes = path, part_bytes or PART_BYTES
        self._descriptor: int | None = None
        self._size = self._first_part = self._first_byte = 0
        self._waiting = bytearray()
        self._num_waiting = self._num_lost = 0
        self._reason = ""
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="spans")

    def open(self) -> None:
        """Cut off what a crash left half-written at the end, pack what it left whole, and begin."""
        with contextlib.suppress(OSError):
            cut_torn_line(self._path)
        self._first_part = self._next_number()
        try:
            self._begin_file()
        except OSError as error:
            self._reason = error.strerror or "unknown"
        self._first_byte = self._size
        self._pack_all()

    def write(self, span: Span) -> None:
        """Append a span as soon as it is known. Never raises for what a disk does."""
        if self._descriptor is None:
            self._num_lost += bool(self._reason)
            return
        line = json_line(span).encode()
        if len(self._waiting) + len(line) > MOST_WAITING_BYTES:
            self._num_lost += 1
        else:
            self._waiting += line
            self._num_waiting += 1
        try:
            self._flush(self._descriptor)
            if self._size >= self._part_bytes:
                self._begin_part()
        except OSError as error:
            self._reason = error.strerror or "unknown"

    def since_open(self) -> list[Span]:
        """Spans that were written since; a line that is no span is passed over."""
        parts = numbered_parts(self._path)
        mine = [part for number, part in parts.items() if number >= self._first_part]
        found: list[Span] = []
        skip_bytes = self._first_byte
        for file in (*mine, self._path):
            with contextlib.suppress(OSError, EOFError), open_spans_file(file) as stream:
                stream.seek(skip_bytes)
                for line in stream:
                    with contextlib.suppress(InputError):
                        found.append(read_span(line, str(file)))
            skip_bytes = 0
        return found

    def alerts(self) -> tuple[str, ...]:
        """How many spans are not on disk, if any."""
        number = self._num_waiting + self._num_lost
        if not number:
            return ()
        lost = f"; {self._num_lost} are lost" if self._num_lost else "; they wait"
        return (f"{self._path}: {number} spans could not be written ({self._reason}){lost}",)

    def close(self) -> None:
        """Write what waits, and wait for what is being compressed."""
        descriptor, self._descriptor = self._descriptor, None
        self._reason = self._reason or "closed"
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self._flush(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._packer.shutdown(wait=True)

    def _begin_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _flush(self, descriptor: int) -> None:
        """All or nothing: half a line would spoil the one after it."""
        done = 0
        try:
            while done < len(self._waiting):
                done += os.write(descriptor, bytes(self._waiting[done:]))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            raise
        self._size += done
        self._waiting.clear()
        self._num_waiting = 0

    def _begin_part(self) -> None:
        folder = parts_folder(self._path)
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._path.exists():  # else the disk refused the new file after the last rename
            self._path.rename(folder / f"{self._next_number():06}.jsonl")
        before = self._descriptor
        self._begin_file()
        if before is not None:
            os.close(before)
        self._pack_all()

    def _next_number(self) -> int:
        return max(numbered_parts(self._path), default=0) + 1

    def _pack_all(self) -> None:
        for part in numbered_parts(self._path).values():
            if part.suffix != ".gz":
                self._packer.submit(compress_part, part)


def compress_part(part: Path) -> None:
    """Put a compressed one in the place of ``part``; where that fails it stays as it is."""
    packed, making = part.with_name(f"{part.name}.gz"), part.with_name(f".{part.name}.gz")
    try:
        with (
            part.open("rb") as reading,
            making.open("wb") as stream,
            gzip.GzipFile("", "wb", _LEVEL, stream, mtime=0) as writing,
        ):
            shutil.copyfileobj(reading, writing, 2**20)
            writing.close()
            stream.flush()
            os.fsync(stream.fileno())
        making.rename(packed)
        part.unlink()
    except OSError:  # A full disk: the next start tries again; readers take it unpacked.
        with contextlib.suppress(OSError):
            making.unlink()


def cut_torn_line(path: Path) -> None:
    """Take off what a crash left half-written at the end of a JSONL file; reads only its end."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        start = _end_of_lines(stream, end)
        stream.seek(start)
        if start == end:
            return
        if _is_object(stream.read()):  # whole, only the end of its line is missing
            stream.write(b"\n")
        else:
            stream.truncate(start)


def _end_of_lines(stream: IO[bytes], end: int) -> int:
    start = end
    while start > 0:
        begin = max(start - _TAIL_BYTES, 0)
        stream.seek(begin)
        found = stream.read(start - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        start = begin
    return 0


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
