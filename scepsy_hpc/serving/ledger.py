"""The only truth about what is done: a record is synced before its task counts as ended.

Nothing here relies on locks, which many network file systems do not have. Each incarnation of a
batch writes a segment of its own (``formats.segments``); one that finds a later segment stops.
What stands in a segment is never changed: after a failed write the next begins on a new line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from scepsy_hpc.errors import RunError
from scepsy_hpc.files import json_line, to_plain
from scepsy_hpc.formats.results import TaskResult, result_line
from scepsy_hpc.formats.segments import (
    Merged,
    SegmentHeader,
    generations,
    merge_segments,
    read_merged,
    recorded_as,
    segment_path,
    segments_of,
)

MERGE_EVERY_S = 5.0
"""``results.jsonl`` is rewritten at most so often, and for at most a twentieth of the time."""


class Superseded(RunError):
    """Another start of the same batch began after this one: what this one writes counts nothing."""


class Ledger:
    """The results of one batch, as one incarnation writes them. Blocks: see ``LedgerWriter``."""

    def __init__(self, results: Path, attempt: str = "", retry_round: str | None = None) -> None:
        """``attempt`` names this start; ``retry_round`` the round of retries that it works on.

        Creates the segment. Raises InputError and OSError; nothing is left of it then.
        """
        self.results, self._folder = results, segments_of(results)
        self._retry_round = retry_round
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _take_over(results, self._folder)
        self._fd: int | None
        self.generation, self._fd = _create_next(self._folder)
        try:
            self.merged = merge_segments(results, before=self.generation)
            self._write_header(attempt)
        except BaseException:
            os.close(self._fd)
            segment_path(self._folder, self.generation).unlink(missing_ok=True)
            raise
        self._begins_anew = False
        self._shown: IO[bytes] | None = None
        self._shown_s, self._took_s = float("-inf"), 0.0
        self._show()

    def _write_header(self, attempt: str) -> None:
        """Say how much of the earlier segments counts: what was read of them, not what they are."""
        lengths = self.merged.lengths.items()
        header = SegmentHeader(
            generation=self.generation,
            attempt=attempt,
            earlier={segment_path(self._folder, g).name: n for g, n in lengths},
            retry_round=self._retry_round,
        )
        # The schema goes first: it is how a header is told from a record.
        line = json_line({"schema": header.schema, **to_plain(header)}).encode("ascii")
        assert self._fd is not None
        _write_all(self._fd, line)
        os.fsync(self._fd)
        _sync_folder(self._folder)

    def look(self) -> None:
        """Raise Superseded when a later incarnation has begun."""
        later = [g for g in generations(self._folder) if g > self.generation]
        if later:
            raise Superseded(
                f"{self._folder}: another start (generation {later[-1]}) goes on with this batch "
                f"since; this one (generation {self.generation}) ends, nothing recorded is lost"
            )

    def is_open(self, task_id: str) -> bool:
        """Whether a record of that task would count: it has none, or a failed one to replace."""
        return self.merged.counts(task_id, self._retry_round)

    def append(self, results: Sequence[TaskResult]) -> None:
        """Record tasks and sync them to disk, all of them or, with OSError, perhaps none.

        May be called again with the same ones then. Raises Unrecordable, Superseded, and RunError
        for a task that is recorded already.
        """
        for result in results:
            if not self.is_open(result.task_id):
                raise RunError(f"{self.results}: task {result.task_id!r} is recorded already")
        lines = [result_line(result) for result in results]
        self.look()
        offset = self._write(lines)
        replaced = any(result.task_id in self.merged.records for result in results)
        for result, line in zip(results, lines, strict=True):
            self.merged.records[result.task_id] = recorded_as(
                result, self.generation, offset, len(line), self._retry_round
            )
            offset += len(line)
        self._append_to_shown(lines, replaced)

    def _write(self, lines: Sequence[bytes]) -> int:
        """Write lines and sync; the offset of the first."""
        try:
            if self._fd is None:
                self._fd = _reopen(segment_path(self._folder, self.generation))
            offset = os.lseek(self._fd, 0, os.SEEK_END)
            begin, self._begins_anew = (b"\n" if self._begins_anew else b""), True
            _write_all(self._fd, begin + b"".join(lines))
            os.fsync(self._fd)
        except OSError:
            # The pages of a failed sync are gone, and a stale handle stays stale: begin anew.
            self._close_segment()
            raise
        self._begins_anew = False
        return offset + len(begin)

    def _close_segment(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _append_to_shown(self, lines: Sequence[bytes], replaced: bool) -> None:
        """Keep ``results.jsonl`` up to date at the cost of a line, where nothing is replaced."""
        if self._shown is None or replaced or not self._is_shown():
            self._hide()
        else:
            try:
                self._shown.write(b"".join(lines))
                self._shown.flush()
            except OSError:
                self._hide()
        self.refresh()

    def refresh(self) -> None:
        """Rewrite ``results.jsonl`` if it is behind, but not too often."""
        since_s = time.monotonic() - self._shown_s
        if self._shown is None and since_s > max(MERGE_EVERY_S, 20 * self._took_s):
            self._show()

    def _is_shown(self) -> bool:
        """Whether the open file is still the one of that name."""
        try:
            assert self._shown is not None
            return os.path.samestat(os.stat(self.results), os.fstat(self._shown.fileno()))
        except OSError:
            return False

    def _show(self) -> None:
        """Write ``results.jsonl`` as the merge is. A disk that is full now is tried again later."""
        begun_s = time.monotonic()
        with contextlib.suppress(OSError, Superseded):
            self.look()  # a later incarnation shows more
            self.merged.copy_to(self.results)
            # Unbuffered: half a line must not wait for the next one.
            self._shown = self.results.open("ab", buffering=0)
        self._shown_s = time.monotonic()
        self._took_s = self._shown_s - begun_s

    def _hide(self) -> None:
        stream, self._shown = self._shown, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    def close(self) -> None:
        """Bring ``results.jsonl`` up to date and close everything."""
        if self._shown is None or not self._is_shown():
            self._hide()
            self._show()
        self._hide()
        self._close_segment()


def repair_results(results: Path) -> Merged:
    """The state of a batch that no one writes to now; ``results.jsonl`` shows it afterwards."""
    merged = read_merged(results)
    stands = results.stat().st_size if results.exists() else 0
    if generations(segments_of(results)) and stands != merged.num_bytes():
        with contextlib.suppress(OSError):  # to look at a batch needs no right to write
            merged.copy_to(results)
    return merged


def _take_over(results: Path, folder: Path) -> None:
    """A ledger of a version without segments becomes generation 0."""
    if generations(folder) or not results.exists() or not results.stat().st_size:
        return
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".taken-over.")
    try:
        with os.fdopen(handle, "wb") as copy, results.open("rb") as stream:
            shutil.copyfileobj(stream, copy)
            copy.flush()
            os.fsync(copy.fileno())
        with contextlib.suppress(FileExistsError):  # another start was quicker
            os.link(temporary, segment_path(folder, 0))
    finally:
        Path(temporary).unlink(missing_ok=True)


def _create_next(folder: Path) -> tuple[int, int]:
    """The next free generation and its new segment: whoever creates the file has the number."""
    while True:
        generation = max(generations(folder), default=0) + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        try:
            return generation, os.open(segment_path(folder, generation), flags, 0o600)
        except FileExistsError:
            continue


def _reopen(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        raise RunError(f"{path}: is gone; was the results folder removed?") from None


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system syncs folders
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def num_recorded(results: Path) -> int:
    """Tasks that are recorded in a ledger that another process may be writing to."""
    return len(read_merged(results).records)
