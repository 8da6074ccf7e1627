"""``spans.jsonl`` of a run: appended to while it goes on, never read as a whole.

Spans are for later plans; the ledger is what must not fail. A span that cannot be written is
counted and said, and the run goes on.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import json_line
from scepsy_hpc.formats.spans import Span, read_span

_TAIL_BYTES = 1 << 16


class SpanLog:
    """Appends spans; knows where those of this start begin."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened before ``open``; spans before that are passed over."""
        self._path = path
        self._stream: IO[bytes] | None = None
        self._begin = self._num_lost = 0
        self._reason = ""

    def open(self) -> None:
        """Cut off what a crash left half-written at the end, and begin."""
        with contextlib.suppress(OSError):
            cut_torn_line(self._path)
        try:
            self._stream = self._path.open("ab")
            self._begin = self._stream.tell()
        except OSError as error:
            self._reason = error.strerror or "unknown"

    def write(self, span: Span) -> None:
        """Append a span as soon as it is known. Never raises for what a disk does."""
        if self._stream is None:
            self._num_lost += bool(self._reason)
            return
        try:
            self._stream.write(json_line(span).encode())
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            self._num_lost += 1
            self._reason = getattr(error, "strerror", None) or "closed"

    def since_open(self) -> list[Span]:
        """Spans that were written since; a line that is no span is passed over."""
        found = []
        with contextlib.suppress(OSError), self._path.open("rb") as stream:
            stream.seek(self._begin)
            for line in stream:
                with contextlib.suppress(InputError):
                    found.append(read_span(line, str(self._path)))
        return found

    def alerts(self) -> tuple[str, ...]:
        """How many spans were lost, if any."""
        if not self._num_lost:
            return ()
        return (f"{self._path}: {self._num_lost} spans could not be written ({self._reason})",)

    def close(self) -> None:
        """Close the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def cut_torn_line(path: Path) -> None:
    """Take off what a crash left half-written at the end of a JSONL file; reads only its end."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        start = end
        while start > 0:
            begin = max(start - _TAIL_BYTES, 0)
            stream.seek(begin)
            found = stream.read(start - begin).rfind(b"\n")
            if found >= 0:
                start = begin + found + 1
                break
            start = begin
        if start < end:
            stream.truncate(start)
