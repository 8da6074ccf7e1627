"""Logs keep to a bounded size while somebody writes them."""

from __future__ import annotations

import subprocess
import sys

from scepsy_hpc.serving.log_room import cut_log, drop_old_logs, old_logs

MOST = 64_000


def test_a_large_log_keeps_head_and_tail(tmp_path):
    """The first lines and the last ones stay whole; a word says how much is left out."""
    path = tmp_path / "e.1.log"
    path.write_text("".join(f"line {i}\n" for i in range(20_000)))
    assert cut_log(path, MOST)
    lines = path.read_text().splitlines()
    assert lines[0] == "line 0"
    assert lines[-1] == "line 19999"
    assert path.stat().st_size < MOST / 3
    [word] = [i for i, line in enumerate(lines) if "bytes left out" in line]
    assert lines[:word] == [f"line {i}" for i in range(word)]
    assert lines[word + 1 :] == [f"line {20_000 - i}" for i in range(len(lines) - word - 1, 0, -1)]


def test_a_small_log_is_left_alone(tmp_path):
    """Nothing is touched that keeps to its size, nor what is not there."""
    path = tmp_path / "e.1.log"
    path.write_text("short\n")
    assert not cut_log(path, MOST)
    assert path.read_text() == "short\n"
    assert not cut_log(tmp_path / "gone.log", MOST)


WRITER = """
import sys
for i in range(int(sys.argv[1])):
    print("line", i, flush=True)
    if i % 1000 == 999:
        sys.stderr.write("x"); sys.stderr.flush(); sys.stdin.read(1)
"""


def test_whoever_writes_goes_on(tmp_path):
    """A process with its output in the log never notices the cut; what it says next is there."""
    path = tmp_path / "e.1.log"
    with (
        path.open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-c", WRITER, "10000"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.PIPE,
        ) as writer,
    ):
        for _ in range(10):
            assert writer.stderr.read(1) == b"x"
            cut_log(path, MOST)
            assert path.stat().st_size <= MOST
            writer.stdin.write(b"g")
            writer.stdin.flush()
    assert writer.returncode == 0
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("line 0", "line 9999")
    assert "\0" not in path.read_text()


def test_many_starts_leave_a_bounded_number_of_logs(tmp_path):
    """The first log of an instance and its last ones are kept; others' logs are left alone."""
    for start in range(1, 31):
        (tmp_path / f"a-0.{start}.log").touch()
    (tmp_path / "a-0b.1.log").touch()
    (tmp_path / "agent-rag.log").touch()
    drop_old_logs(tmp_path, "a-0")
    left = sorted(path.name for path in tmp_path.iterdir())
    kept = [f"a-0.{i}.log" for i in (1, *range(23, 31))]
    assert left == sorted([*kept, "a-0b.1.log", "agent-rag.log"])
    assert [p.name for p in old_logs(tmp_path, most=1)] == sorted(kept[:-1])
