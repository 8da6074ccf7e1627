"""The ledger's segments: what counts, what does not, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.segments import SEGMENT_SCHEMA, read_merged


def header(generation: int, **more: Any) -> str:
    found = {"schema": SEGMENT_SCHEMA, "generation": generation, "attempt": "a", **more}
    return json.dumps(found) + "\n"


def line(task_id: str, status: str = "ok") -> str:
    found = {"task_id": task_id, "status": status, "attempts": 1, "started_s": 0.0}
    return json.dumps(found | {"finished_s": 1.0}) + "\n"


def write(folder: Path, *segments: str) -> Path:
    """Segments from generation 1 on; returns the path of ``results.jsonl``."""
    (folder / "results.d").mkdir()
    for number, text in enumerate(segments, start=1):
        (folder / "results.d" / f"{number:06d}.jsonl").write_text(text)
    return folder / "results.jsonl"


def test_the_shortest_length_that_a_successor_saw_counts(tmp_path: Path) -> None:
    """Whoever came next has decided; a later one that saw more does not bring it back."""
    one = header(1) + line("a") + line("late")
    seen = len(header(1) + line("a"))
    two = header(2, earlier={"000001.jsonl": seen})
    three = header(3, earlier={"000001.jsonl": len(one), "000002.jsonl": len(two)}) + line("b")
    merged = read_merged(write(tmp_path, one, two, three))
    assert set(merged.records) == {"a", "b"}
    [problem] = merged.problems
    assert f"000001.jsonl: {len(line('late'))} bytes were written after" in problem
    assert merged.lengths == {1: seen, 2: len(two), 3: len(three)}


def test_a_header_that_came_too_late_decides_nothing(tmp_path: Path) -> None:
    """Of two that start together the later one sees the other's segment without its header."""
    one = header(1) + line("a")
    two = header(2, earlier={"000001.jsonl": 0}) + line("b")
    three = header(3, earlier={"000001.jsonl": len(one), "000002.jsonl": 0}) + line("c")
    merged = read_merged(write(tmp_path, one, two, three))
    assert set(merged.records) == {"a", "c"}


def test_a_record_that_a_successor_saw_half_does_not_count(tmp_path: Path) -> None:
    """It was on its way when the successor looked: it is set aside, its task runs again."""
    one = header(1) + line("a") + line("b")
    two = header(2, earlier={"000001.jsonl": len(one) - 10})
    merged = read_merged(write(tmp_path, one, two))
    assert set(merged.records) == {"a"}
    assert any("damaged" in problem for problem in merged.problems)


def test_a_record_that_is_on_its_way_is_no_damage(tmp_path: Path) -> None:
    """Readers of a batch that goes on see half a line at the end of the latest segment."""
    merged = read_merged(write(tmp_path, header(1) + line("a") + line("b")[:-10]))
    assert (set(merged.records), merged.problems) == ({"a"}, [])


def test_a_segment_without_a_header_is_read_all_the_same(tmp_path: Path) -> None:
    """Empty, as after a crash at its start, or damaged in its first line, which is named."""
    torn = header(2)[:40] + "\n" + line("b")
    merged = read_merged(write(tmp_path, "", torn, header(3) + line("c")))
    assert set(merged.records) == {"b", "c"}
    [problem] = merged.problems
    assert "000002.jsonl at byte 0: damaged" in problem


@pytest.mark.parametrize("retry_round", [None, "r"])
def test_a_later_record_replaces_a_failed_one_in_a_round_only(
    tmp_path: Path, retry_round: str | None
) -> None:
    """Else the first record of a task stands; an ok stands always."""
    one = header(1) + line("a") + line("b", "failed") + line("b")
    two = header(2, retry_round=retry_round) + line("a", "failed") + line("b") + line("b", "failed")
    merged = read_merged(write(tmp_path, one, two))
    found = {name: (r.status, r.generation) for name, r in merged.records.items()}
    assert found == {"a": ("ok", 1), "b": ("ok", 2) if retry_round else ("failed", 1)}


def test_a_segment_of_a_newer_version_is_refused_in_words(tmp_path: Path) -> None:
    """Going on without what it says would run tasks again."""
    newer = header(1).replace("segment/v1", "segment/v2")
    with pytest.raises(InputError, match="written by a newer version of scepsy"):
        read_merged(write(tmp_path, newer))


def test_a_folder_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    """A segment that cannot be read is no empty one."""
    path = write(tmp_path, header(1))
    (tmp_path / "results.d" / "000002.jsonl").mkdir()
    with pytest.raises(InputError, match=r"000002.jsonl: cannot be read: Is a directory"):
        read_merged(path)


def test_nothing_there_is_an_empty_ledger(tmp_path: Path) -> None:
    """No folder, no file: no records."""
    assert read_merged(tmp_path / "results.jsonl").records == {}
