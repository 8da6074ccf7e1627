"""Spans of a run: bounded parts, none lost whatever happens to process or disk."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from span_cases import call, run_span

from scepsy_hpc.formats.span_parts import numbered_parts, sha256_of_spans
from scepsy_hpc.formats.spans import Span, load_spans, save_spans
from scepsy_hpc.serving import span_log
from scepsy_hpc.serving.span_log import SpanLog, compress_part, cut_torn_line


def span(number: int) -> Span:
    return Span(
        run_id="r",
        span_id=f"s{number}",
        kind="llm",
        llm="a",
        start_s=float(number),
        end_s=number + 1.0,
        status="ok",
    )


def opened(path: Path, part_bytes: int | None = None) -> SpanLog:
    log = SpanLog(path, part_bytes)
    log.open()
    return log


def ids(spans) -> list[str]:
    return [one.span_id for one in spans]


def wanted(number: int) -> list[str]:
    return [f"s{i}" for i in range(number)]


def test_large_logs_become_compressed_parts(tmp_path):
    """Nothing is lost or doubled, the order stays, and all parts are packed when it is closed."""
    path = tmp_path / "spans.jsonl"
    log = opened(path, 1000)
    for number in range(50):
        log.write(span(number))
    log.close()
    assert ids(load_spans(path)) == wanted(50)
    parts = numbered_parts(path)
    assert len(parts) > 3
    assert {part.suffix for part in parts.values()} == {".gz"}
    assert path.stat().st_size < 1000
    assert (tmp_path / "spans").stat().st_mode & 0o777 == 0o700


def test_a_later_start_knows_its_own(tmp_path):
    """`since_open` reads what this start wrote and nothing of the starts before, across parts."""
    path = tmp_path / "spans.jsonl"
    for first in (0, 15):
        log = opened(path, 1000)
        for number in range(first, first + 15):
            log.write(span(number))
        assert ids(log.since_open()) == wanted(first + 15)[first:]
        log.close()
    assert ids(load_spans(path)) == wanted(30)


def test_a_torn_span_is_cut_off(tmp_path):
    """Half a line at the end, as a crash leaves it, goes; whole ones stay."""
    path = tmp_path / "spans.jsonl"
    log = opened(path)
    log.write(span(0))
    log.close()
    with path.open("a") as stream:
        stream.write('{"run_id": "r", "sp')
    log = opened(path)
    log.write(span(1))
    log.close()
    assert ids(load_spans(path)) == wanted(2)


def test_a_part_left_unpacked_is_packed_later(tmp_path):
    """A process killed before it compressed a part: readers have it, the next start packs it."""
    path = tmp_path / "spans.jsonl"
    log = opened(path)
    for number in range(3):
        log.write(span(number))
    log.close()
    (tmp_path / "spans").mkdir()
    path.rename(tmp_path / "spans" / "000001.jsonl")
    path.touch()
    before = sha256_of_spans(path)
    assert ids(load_spans(path)) == wanted(3)
    opened(path).close()
    assert [part.name for part in numbered_parts(path).values()] == ["000001.jsonl.gz"]
    assert ids(load_spans(path)) == wanted(3)
    assert sha256_of_spans(path) == before


def test_a_part_that_stands_twice_counts_once(tmp_path):
    """Killed between the rename and the removal: the packed one is whole and is the one read."""
    path = tmp_path / "spans.jsonl"
    log = opened(path)
    log.write(span(0))
    log.close()
    (tmp_path / "spans").mkdir()
    part = tmp_path / "spans" / "000001.jsonl"
    path.rename(part)
    path.touch()
    text = part.read_bytes()
    compress_part(part)
    part.write_bytes(text)
    assert ids(load_spans(path)) == wanted(1)


KILLED = """
import os, signal, sys
from pathlib import Path
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.serving.span_log import SpanLog

log = SpanLog(Path(sys.argv[1]), part_bytes=2000)
log.open()
for i in range(int(sys.argv[2])):
    log.write(Span(run_id="r", span_id=f"s{i}", kind="run", start_s=0.0, end_s=1.0, status="ok"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("number", [1, 39, 40, 41, 200])
def test_sigkill_loses_no_span(tmp_path, number):
    """Every span that was written is read back, wherever between two parts the process died."""
    path = tmp_path / "spans.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ids(load_spans(path)) == wanted(number)
    opened(path).close()
    assert ids(load_spans(path)) == wanted(number)


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    """Spans that the disk refused are written when it takes some again, each once and whole."""
    path = tmp_path / "spans.jsonl"
    log = opened(path)
    log.write(span(0))
    real = os.write

    def half(descriptor, data):
        """As a file system does that fills up: it takes a part, then nothing."""
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) - 30])

    monkeypatch.setattr(span_log.os, "write", half)
    log.write(span(1))
    [alert] = log.alerts()
    assert "1 spans could not be written (No space left on device); they wait" in alert
    assert ids(load_spans(path)) == wanted(1)
    monkeypatch.undo()
    log.write(span(2))
    assert log.alerts() == ()
    log.close()
    assert ids(load_spans(path)) == wanted(3)


FULL = """
import resource, signal, sys
from pathlib import Path
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.serving.span_log import SpanLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = SpanLog(Path(sys.argv[1]))
log.open()
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
one = lambda i: Span(run_id="r", span_id=f"s{i}", kind="run", start_s=0.0, end_s=1.0, status="ok")
for i in range(60):
    log.write(one(i))
print(bool(log.alerts()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write(one(60))
print(bool(log.alerts()))
log.close()
"""


def test_a_real_limit_on_the_file_leaves_whole_lines(tmp_path):
    """The kernel's own refusal (EFBIG) in the middle of a line: nothing is lost or torn."""
    path: Path = tmp_path / "spans.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), "1234"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
    assert ids(load_spans(path)) == wanted(61)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_only_what_this_start_wrote_is_read(tmp_path: Path) -> None:
    """A million spans of earlier starts are not looked at, however they are."""
    path = tmp_path / "spans.jsonl"
    save_spans(path, [run_span("old", 0.0, 1.0)])
    path.write_text(path.read_text() + "no span at all\n")
    log = SpanLog(path)
    log.open()
    log.write(run_span("new", 1.0, 2.0))
    log.write(call("new", "m", 1.0, 2.0))
    assert [one.run_id for one in log.since_open()] == ["new", "new"]
    log.close()
    assert log.alerts() == ()


def test_spans_before_and_after_are_passed_over(tmp_path: Path) -> None:
    """Before the run serves nothing is recorded; what comes after its end is counted as lost."""
    log = SpanLog(tmp_path / "spans.jsonl")
    log.write(run_span("early", 0.0, 1.0))
    log.open()
    log.write(run_span("r", 0.0, 1.0))
    log.close()
    log.write(run_span("late", 0.0, 1.0))
    assert [one.run_id for one in load_spans(tmp_path / "spans.jsonl")] == ["r"]


def test_a_disk_that_is_full_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    """Real ENOSPC, as the kernel's full device gives it: counted, said, not raised."""
    log = SpanLog(Path("/dev/full"))
    log.open()
    for _ in range(3):
        log.write(run_span("r", 0.0, 1.0))
    [alert] = log.alerts()
    assert "3 spans could not be written (No space left on device)" in alert
    log.close()


@pytest.mark.parametrize("size", [1, 10, 1 << 20])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"a\nb\nhalf", b"a\nb\n"),
        (b"a\nb\n", b"a\nb\n"),
        (b"half", b""),
        (b"", b""),
        (b"a\n" + b"x" * 1000, b"a\n"),
    ],
)
def test_a_torn_line_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, kept: bytes, size: int
) -> None:
    """From the end on, however long it is and wherever the pieces that are read begin."""
    monkeypatch.setattr(span_log, "_TAIL_BYTES", size)
    path = tmp_path / "spans.jsonl"
    path.write_bytes(text)
    cut_torn_line(path)
    assert path.read_bytes() == kept


def test_there_may_be_no_spans_yet(tmp_path: Path) -> None:
    """The first start makes the file."""
    cut_torn_line(tmp_path / "spans.jsonl")
    assert not (tmp_path / "spans.jsonl").exists()


def test_spans_that_wait_too_long_are_counted_as_lost(tmp_path, monkeypatch):
    """Memory is bounded, too: past it spans are lost, and the alert says how many."""
    monkeypatch.setattr(span_log, "MOST_WAITING_BYTES", 500)
    log = opened(Path("/dev/full"))
    for number in range(20):
        log.write(span(number))
    [alert] = log.alerts()
    assert "20 spans could not be written" in alert
    assert re.search(r"; 1\d are lost$", alert)
    log.close()


def test_a_new_file_that_is_refused_is_made_later(tmp_path, monkeypatch):
    """The disk takes a rename but no new file for a while: spans go on, and end up in parts."""
    path = tmp_path / "spans.jsonl"
    log = opened(path, 1000)
    real = os.open

    def refuse(name, *more):
        if Path(name) == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, *more)

    monkeypatch.setattr(span_log.os, "open", refuse)
    for number in range(20):
        log.write(span(number))
    assert not path.exists()
    monkeypatch.undo()
    for number in range(20, 40):
        log.write(span(number))
    assert log.alerts() == ()
    assert ids(log.since_open()) == wanted(40)
    log.close()
    assert ids(load_spans(path)) == wanted(40)
