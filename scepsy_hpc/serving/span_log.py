"""Spans of a run as they come: ``spans.jsonl``, and once it is large, compressed parts beside it.

A part is renamed whole out of the file's place, compressed beside itself, and only then removed:
whatever kills this process, every span stands in one place for a reader.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from scepsy_hpc.files import json_line
from scepsy_hpc.formats.span_parts import numbered_parts, parts_folder
from scepsy_hpc.formats.spans import Span, spans_in

PART_BYTES = 64 * 2**20
# What waits in memory while the disk takes nothing; a span past it is lost, and counted.
MOST_WAITING_BYTES = 16 * 2**20
_LEVEL = 6


class SpanLog:
    """Appends spans; open it from one process at a time. ``trouble`` says why the disk refuses."""

    def __init__(self, path: Path, part_bytes: int = PART_BYTES) -> None:
        """Open or create the file. A span cut short by a crash is taken off its end."""
        self.trouble = ""
        self.num_lost = 0
        self._path, self._part_bytes = path, part_bytes
        self._waiting = bytearray()
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="spans")
        self._packing: list[Future[None]] = []
        self._open()
        self._first_part = self._next_number()
        self._first_byte = self._size
        for part in numbered_parts(path).values():
            self._pack(part)

    def write(self, span: Span) -> None:
        """Append one span. Where the disk refuses it waits, with others, for the next one."""
        line = json_line(span).encode()
        if len(self._waiting) + len(line) > MOST_WAITING_BYTES:
            self.num_lost += 1
        else:
            self._waiting += line
        try:
            self._flush()
            if self._size >= self._part_bytes:
                self._begin_part()
        except OSError as error:
            lost = f", {self.num_lost} spans are lost" if self.num_lost else ""
            self.trouble = f"{self._path}: spans cannot be written: {error.strerror}{lost}"
        else:
            self.trouble = ""

    def own(self) -> list[Span]:
        """Spans that were written since this was opened. Raises InputError for a damaged file."""
        parts = numbered_parts(self._path)
        mine = [part for number, part in parts.items() if number >= self._first_part]
        found: list[Span] = []
        skip_bytes = self._first_byte
        for file in (*mine, self._path):
            found += spans_in(file, skip_bytes)
            skip_bytes = 0
        return found

    def close(self) -> None:
        """Write what waits, and wait for what is being compressed."""
        with contextlib.suppress(OSError):
            self._flush()
        self._packer.shutdown(wait=True)
        os.close(self._descriptor)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = _whole_lines(self._descriptor)

    def _flush(self) -> None:
        """All or nothing: half a line would spoil the one after it."""
        done = 0
        try:
            while done < len(self._waiting):
                done += os.write(self._descriptor, bytes(self._waiting[done:]))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += done
        self._waiting.clear()

    def _begin_part(self) -> None:
        folder = parts_folder(self._path)
        folder.mkdir(mode=0o700, exist_ok=True)
        part = folder / f"{self._next_number():06}.jsonl"
        self._path.rename(part)
        before = self._descriptor
        self._open()
        os.close(before)
        self._pack(part)

    def _next_number(self) -> int:
        return max(numbered_parts(self._path), default=0) + 1

    def _pack(self, part: Path) -> None:
        if part.suffix != ".gz":
            self._packing = [job for job in self._packing if not job.done()]
            self._packing.append(self._packer.submit(compress_part, part))


def compress_part(part: Path) -> None:
    """Put ``part`` and ``.gz`` in its place; where that fails it stays as it is."""
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


def _whole_lines(descriptor: int) -> int:
    """Cut off half a line at the end, as a crash leaves it; how many bytes are left."""
    size = os.fstat(descriptor).st_size
    end = size
    while end:
        start = max(0, end - 65_536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end
