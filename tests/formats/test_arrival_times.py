"""Files of arrival times: what is read, and what is refused by a line."""

from __future__ import annotations

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.arrival_times import load_arrival_times


def test_csv_and_json_lines_say_the_same(tmp_path):
    """Two workflows, a burst of two; the first run of all is at 0."""
    csv, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text("time_s,workflow,count\n10,a,\n10.5,b,2\n12,a,1\n")
    jsonl.write_text(
        '{"time_s": 10, "workflow": "a"}\n\n{"time_s": 10.5, "workflow": "b", "count": 2}\n'
        '{"time_s": 12.0, "workflow": "a"}\n'
    )
    for path in (csv, jsonl):
        found = load_arrival_times(path, ["a", "b"])
        assert {name: list(times) for name, times in found.items()} == {
            "a": [0.0, 2.0],
            "b": [0.5, 0.5],
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"time_s": 2}\n{"time_s": 1}\n', "line 2: time_s: 1.0 is before the line ahead"),
        ('{"time_s": "x"}\n', "line 1: time_s: must be a finite number; is 'x'"),
        ('{"time_s": 1, "count": 0}\n', "line 1: count: must be a whole number of at least 1"),
        ('{"time": 1}\n', "line 1: time: unknown key; known: time_s, workflow, count"),
        ('{"time_s": 1, "workflow": "v"}\n', "line 1: workflow: must be one of w; is 'v'"),
        ('{"time_s": 1, "count": 1000000000000}\n', "line 1: count: must be at most 1000000"),
        (
            '{"time_s": 1e308}\n',
            "line 1: time_s: must be a finite number of seconds, 1e+11",
        ),
        ("[1]\n", "line 1: must be an object"),
        ("{\n", "line 1: not JSON"),
        ("", "no run of workflow w comes"),
    ],
)
def test_what_makes_no_sense_is_refused(text, message, tmp_path):
    """One line that names file, line and key."""
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_arrival_times(path, ["w"])
    assert message in str(caught.value)


def test_a_table_without_header_and_a_long_value_are_told_in_one_screen_line(tmp_path):
    """No "no run comes" where the first run was read as header, and no line of megabytes."""
    csv, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text("1,w,1\n")
    with pytest.raises(InputError, match=r"line 1: must name the columns: time_s"):
        load_arrival_times(csv, ["w"])
    jsonl.write_text('{"time_s": 1, "workflow": "' + "x" * 100_000 + '"}\n')
    with pytest.raises(InputError) as caught:
        load_arrival_times(jsonl, ["w"])
    assert len(str(caught.value)) < 500
