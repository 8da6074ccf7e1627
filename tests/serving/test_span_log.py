"""The spans of a run: appended, never in the way, and only this start's read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from span_cases import call, run_span

from scepsy_hpc.formats.spans import load_spans, save_spans
from scepsy_hpc.serving import span_log
from scepsy_hpc.serving.span_log import SpanLog, cut_torn_line


def test_only_what_this_start_wrote_is_read(tmp_path: Path) -> None:
    """A million spans of earlier starts are not looked at, however they are."""
    path = tmp_path / "spans.jsonl"
    save_spans(path, [run_span("old", 0.0, 1.0)])
    path.write_text(path.read_text() + "no span at all\n")
    log = SpanLog(path)
    log.open()
    log.write(run_span("new", 1.0, 2.0))
    log.write(call("new", "m", 1.0, 2.0))
    assert [span.run_id for span in log.since_open()] == ["new", "new"]
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
    assert [span.run_id for span in load_spans(tmp_path / "spans.jsonl")] == ["r"]


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
