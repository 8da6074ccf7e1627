"""A file of spans and its compressed parts are one."""

from __future__ import annotations

import gzip

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import sha256_file
from scepsy_hpc.formats.span_parts import files_of_spans, numbered_parts, sha256_of_spans
from scepsy_hpc.formats.spans import Span, load_spans, save_spans


def spans(first: int, number: int) -> list[Span]:
    return [
        Span(run_id="r", span_id=f"s{i}", kind="run", start_s=0.0, end_s=1.0, status="ok")
        for i in range(first, first + number)
    ]


def split(whole, into):
    """The same spans as two parts, the second not yet packed, and a file."""
    (into / "spans").mkdir()
    lines = whole.read_bytes().splitlines(keepends=True)
    with gzip.open(into / "spans" / "000001.jsonl.gz", "wb") as stream:
        stream.writelines(lines[:2])
    (into / "spans" / "000002.jsonl").write_bytes(b"".join(lines[2:4]))
    (into / "spans.jsonl").write_bytes(b"".join(lines[4:]))
    return into / "spans.jsonl"


def test_parts_and_file_are_read_as_one(tmp_path):
    """In the order of writing, with the digest that one file has."""
    whole = tmp_path / "whole.jsonl"
    save_spans(whole, spans(0, 6))
    path = split(whole, tmp_path)
    assert [file.name for file in files_of_spans(path)] == [
        *("000001.jsonl.gz", "000002.jsonl", "spans.jsonl")
    ]
    assert load_spans(path) == load_spans(whole)
    assert sha256_of_spans(path) == sha256_file(whole) == sha256_of_spans(whole)


def test_a_packed_file_is_read_by_its_own_name(tmp_path):
    """One part alone, or a file that somebody packed by hand."""
    path = tmp_path / "mine.jsonl.gz"
    whole = tmp_path / "whole.jsonl"
    save_spans(whole, spans(0, 3))
    path.write_bytes(gzip.compress(whole.read_bytes()))
    assert load_spans(path) == load_spans(whole)


def test_other_files_in_the_folder_are_no_parts(tmp_path):
    """Only numbered parts count; a folder `spans` may be somebody's own."""
    path = tmp_path / "spans.jsonl"
    save_spans(path, spans(0, 1))
    (tmp_path / "spans").mkdir()
    for name in ("notes.jsonl", ".000001.jsonl.gz", "000001.json", "1.jsonl"):
        (tmp_path / "spans" / name).write_text("x")
    assert numbered_parts(path) == {}
    assert len(load_spans(path)) == 1


def test_a_damaged_part_is_named(tmp_path):
    """Cut short, or no gzip at all: one line with the part's name, never a part of the spans."""
    whole = tmp_path / "whole.jsonl"
    save_spans(whole, spans(0, 6))
    path = split(whole, tmp_path)
    part = tmp_path / "spans" / "000001.jsonl.gz"
    good = part.read_bytes()
    for bad in (good[:-9], b"not gzip", good[:30] + b"xxxx" + good[34:]):
        part.write_bytes(bad)
        with pytest.raises(InputError, match=r"000001\.jsonl\.gz"):
            load_spans(path)


def test_a_span_that_stands_twice_is_named_with_its_part(tmp_path):
    """Ids are unique over all parts; the error names part and line."""
    path = tmp_path / "spans.jsonl"
    save_spans(path, spans(1, 2))
    (tmp_path / "spans").mkdir()
    save_spans(tmp_path / "spans" / "000001.jsonl", spans(2, 1))
    with pytest.raises(InputError, match=r"spans\.jsonl line 2: span_id: 's2' stands twice"):
        load_spans(path)
    path.write_text("")
    assert len(load_spans(path)) == 1
