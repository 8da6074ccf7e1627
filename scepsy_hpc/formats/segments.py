"""``results.d/``: the ledger as it is written, one segment for each incarnation of a batch.

A segment is created exclusively and numbered by generation. Its first line says how long all
earlier segments were then: what their writers added later counts nothing. The state of a batch is
the merge in the order (generation, offset), and ``results.jsonl`` shows that merge.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, record
from scepsy_hpc.formats.results import TaskResult, parse_result

SEGMENT_SCHEMA = "scepsy/results-segment/v1"
_HEADER_START = b'{"schema": "scepsy/results-segment/'


@record
class SegmentHeader:
    """First line of a segment. ``earlier``: bytes that count of each earlier segment, by file name.

    ``retry_round`` names the round of ``--retry-failed`` that this incarnation works on: its
    records replace failed ones of before.
    """

    schema: str = SEGMENT_SCHEMA
    generation: int
    attempt: str
    earlier: dict[str, int] = field(default_factory=dict)
    retry_round: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where the record of a task stands, and what it says in short."""

    status: Literal["ok", "failed"]
    duration_s: float
    generation: int
    offset: int
    num_bytes: int
    retry_round: str | None


@dataclass(slots=True)
class Merged:
    """The state of a batch: records by task id, the segments' lengths, and what was set aside.

    ``problems`` names damaged lines and what does not count, one line each.
    """

    folder: Path
    records: dict[str, Recorded] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def counts(self, task_id: str, retry_round: str | None) -> bool:
        """Whether a record of that round would count: a first one, or in place of a failed one."""
        before = self.records.get(task_id)
        if before is None:
            return True
        again = retry_round is not None and retry_round != before.retry_round
        return again and before.status == "failed"

    def in_order(self) -> list[Recorded]:
        """Records in the order (generation, offset)."""
        return sorted(self.records.values(), key=lambda r: (r.generation, r.offset))

    def num_bytes(self) -> int:
        """Length of ``results.jsonl`` when it shows all records."""
        return sum(found.num_bytes for found in self.records.values())

    def copy_to(self, out: Path) -> None:
        """Write ``results.jsonl`` anew, by rename. Raises OSError."""
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                for line in self._lines():
                    stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, out)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _lines(self) -> Iterator[bytes]:
        """The records' bytes, a run of neighbours at a time."""
        open_generation, stream = None, None
        try:
            for found in self.in_order():
                if found.generation != open_generation:
                    if stream is not None:
                        stream.close()
                    stream = segment_path(self.folder, found.generation).open("rb")
                    open_generation = found.generation
                assert stream is not None
                stream.seek(found.offset)
                yield stream.read(found.num_bytes).rstrip(b"\n") + b"\n"
        finally:
            if stream is not None:
                stream.close()


def segments_of(results: Path) -> Path:
    """The folder of segments that belongs to a ``results.jsonl``."""
    return results.with_name("results.d")


def segment_path(folder: Path, generation: int) -> Path:
    """The file of one generation."""
    return folder / f"{generation:06d}.jsonl"


def generations(folder: Path) -> list[int]:
    """Those that have a segment, in order. Raises OSError where the folder cannot be read."""
    try:
        # Listing opens the folder, which makes a network file system look again.
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(m[1]) for name in names if (m := re.fullmatch(r"(\d{6,})\.jsonl", name)))


def read_merged(results: Path) -> Merged:
    """The state of the batch whose ``results.jsonl`` this is: the one way to read it.

    Raises InputError where a segment cannot be read, or was written by a newer version.
    """
    try:
        return merge_segments(results)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None


def merge_segments(results: Path, before: int | None = None) -> Merged:
    """The same of the generations ``before`` one. Raises OSError where a disk fails."""
    folder = segments_of(results)
    merged = Merged(folder)
    found = [g for g in generations(folder) if before is None or g < before]
    if not found and results.exists():  # the ledger of a version that had no segments
        _add_lines(merged, results, 0, None, False)
        return merged
    limits = _limits(folder, found)
    for generation in found:
        growing = before is None and generation == found[-1]
        path = segment_path(folder, generation)
        with contextlib.suppress(FileNotFoundError):  # one that could not be begun is taken back
            _add_lines(merged, path, generation, limits.get(generation), growing)
    return merged


def _limits(folder: Path, found: list[int]) -> dict[int, int]:
    """Bytes that count of each generation, from the latest down: a header counts where it does."""
    limits: dict[int, int] = {}
    for generation in reversed(found):
        path = segment_path(folder, generation)
        header, num_bytes = _header_of(path)
        if header is None or num_bytes > limits.get(generation, num_bytes):
            continue
        for earlier in found:
            length = header.earlier.get(segment_path(folder, earlier).name)
            if length is not None and earlier < generation:
                limits[earlier] = min(length, limits.get(earlier, length))
    return limits


def _header_of(path: Path) -> tuple[SegmentHeader | None, int]:
    try:
        with path.open("rb") as stream:
            line = stream.readline()
    except FileNotFoundError:
        return None, 0
    return (_header(line, path) if line.endswith(b"\n") else None), len(line)


def _header(line: bytes, path: Path) -> SegmentHeader | None:
    if not line.startswith(_HEADER_START):
        return None
    if not line.startswith(f'{{"schema": "{SEGMENT_SCHEMA}"'.encode()):
        raise InputError(
            f"{path}: was written by a newer version of scepsy; go on with that version, or give "
            "another folder with -o"
        )
    try:
        return check(json.loads(line), SegmentHeader, str(path))
    except (ValueError, InputError):
        return None


def _add_lines(
    merged: Merged, path: Path, generation: int, limit: int | None, growing: bool
) -> None:
    """Put the records of one segment into the merge, as far as they count.

    The last line of a ``growing`` one may be on its way.
    """
    offset, retry_round = 0, None
    with path.open("rb") as stream:
        for line in stream:
            start, offset = offset, offset + len(line)
            if limit is not None and offset > limit:
                line = line[: max(limit - start, 0)]
            if line.startswith(_HEADER_START) and start == 0:
                header = _header(line, path)
                retry_round = header.retry_round if header else None
                problem = None if header else "damaged header"
            else:
                problem = _add(merged, line, generation, start, retry_round)
            if problem and (line.endswith(b"\n") or not growing):
                merged.problems.append(f"{path} at byte {start}: {problem}; this line is set aside")
            if limit is not None and offset >= limit:
                break
        merged.lengths[generation] = min(offset, limit) if limit is not None else offset
    _name_what_came_late(merged, path, limit)


def _add(
    merged: Merged, line: bytes, generation: int, start: int, retry_round: str | None
) -> str | None:
    """Take one line in; what is wrong with it, if anything is."""
    if not line.strip():
        return None
    try:
        result = parse_result(line)
    except ValueError as error:
        return f"damaged ({str(error)[:200]})"
    if merged.counts(result.task_id, retry_round):
        merged.records[result.task_id] = recorded_as(
            result, generation, start, len(line), retry_round
        )
    return None


def recorded_as(
    result: TaskResult, generation: int, offset: int, num_bytes: int, retry_round: str | None
) -> Recorded:
    """What the merge keeps of a record."""
    duration_s = result.finished_s - result.started_s
    return Recorded(result.status, duration_s, generation, offset, num_bytes, retry_round)


def _name_what_came_late(merged: Merged, path: Path, limit: int | None) -> None:
    late = path.stat().st_size - limit if limit is not None else 0
    if late > 0:
        merged.problems.append(
            f"{path}: {late} bytes were written after a successor had begun; they do not count, "
            "and their tasks run again"
        )
