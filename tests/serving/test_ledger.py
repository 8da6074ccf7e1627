"""The ledger: recorded once, by whoever began last, whatever a crash or a disk left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scepsy_hpc.errors import RunError
from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.formats.segments import read_merged
from scepsy_hpc.serving import ledger as ledgers
from scepsy_hpc.serving.ledger import Ledger, Superseded, num_recorded, repair_results


def result(task_id: str, status: str = "ok", **more: object) -> TaskResult:
    found = {"result": {"a": 1}} if status == "ok" else {"error": "no", "error_class": "agent"}
    return TaskResult(
        task_id=task_id, status=status, attempts=1, started_s=1.0, finished_s=2.0, **found | more
    )


def record(path: Path, *results: TaskResult, **options: str) -> None:
    """One incarnation that records these."""
    ledger = Ledger(path, **options)
    for one in results:
        ledger.append([one])
    ledger.close()


def shown(path: Path) -> list[tuple[str, str]]:
    """Task and status of each line of ``results.jsonl``."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    return [(line["task_id"], line["status"]) for line in lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_a_task_is_recorded_once(path: Path) -> None:
    """A second record of one task is refused, in this incarnation and in the next."""
    ledger = Ledger(path)
    ledger.append([result("t1")])
    with pytest.raises(RunError, match="recorded already"):
        ledger.append([result("t1")])
    ledger.close()
    ledger = Ledger(path)
    with pytest.raises(RunError, match="recorded already"):
        ledger.append([result("t1")])
    assert not ledger.is_open("t1")
    ledger.close()
    assert shown(path) == [("t1", "ok")]


def test_each_incarnation_has_a_segment_that_tells_the_lengths_of_the_others(path: Path) -> None:
    """Numbered, private to the user, with a header; results.jsonl shows their merge in order."""
    record(path, result("b"), result("a"), attempt="first")
    record(path, result("c"), attempt="second")
    folder = path.with_name("results.d")
    one, two = (folder / name for name in ("000001.jsonl", "000002.jsonl"))
    assert sorted(folder.iterdir()) == [one, two]
    assert one.stat().st_mode & 0o077 == 0
    header = json.loads(two.read_bytes().split(b"\n")[0])
    assert (header["generation"], header["attempt"]) == (2, "second")
    assert header["earlier"] == {"000001.jsonl": one.stat().st_size}
    assert [name for name, _ in shown(path)] == ["b", "a", "c"]


def test_what_a_predecessor_writes_later_does_not_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ignored and named, by whoever reads; the task may be recorded by the successor."""
    old = Ledger(path)
    old.append([result("t1")])
    new = Ledger(path)
    # It looked before the successor began, and writes after.
    with monkeypatch.context() as patch:
        patch.setattr(old, "look", lambda: None)
        old.append([result("t2", result="late")])
    new.append([result("t2", result="mine")])
    merged = read_merged(path)
    assert merged.records["t2"].generation == 2
    assert ["written after a successor had begun" in text for text in merged.problems] == [True]
    new.close()
    old.close()
    assert shown(path) == [("t1", "ok"), ("t2", "ok")]
    assert b"late" not in path.read_bytes()


def test_a_predecessor_stops_once_it_looks(path: Path) -> None:
    """Before each record, and when asked."""
    old = Ledger(path)
    old.look()
    new = Ledger(path)
    for act in (old.look, lambda: old.append([result("t1")])):
        with pytest.raises(Superseded, match="generation 2"):
            act()
    old.close()
    new.append([result("t2")])
    new.close()
    assert shown(path) == [("t2", "ok")]


def test_two_that_start_together_take_two_numbers(path: Path) -> None:
    """Whoever creates the file has the number, without a lock; only the later one goes on."""
    code = (
        "import sys, pathlib\n"
        "from scepsy_hpc.serving.ledger import Ledger\n"
        "input()\n"
        "print(Ledger(pathlib.Path(sys.argv[1])).generation)\n"
    )
    command, pipe = [sys.executable, "-c", code, str(path)], subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    assert sorted(int(one.communicate(timeout=60)[0]) for one in both) == [1, 2]


def test_a_killed_writer_loses_nothing_that_it_recorded(path: Path) -> None:
    """SIGKILL at any moment: what it said was recorded is there, each task once."""
    code = (
        "import sys, pathlib\n"
        "from scepsy_hpc.formats.results import TaskResult\n"
        "from scepsy_hpc.serving.ledger import Ledger\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]))\n"
        "for i in range(100_000):\n"
        "    ledger.append([TaskResult(task_id=f't{i}', status='ok', attempts=1,\n"
        "                              started_s=0.0, finished_s=1.0, result='x' * 5000)])\n"
        "    print(f't{i}', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        said = [writer.stdout.readline() for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        said += writer.stdout.read().splitlines(keepends=True)
    wanted = {line.strip() for line in said if line.endswith("\n")}
    merged = repair_results(path)
    assert wanted <= set(merged.records)
    names = [name for name, _ in shown(path)]
    assert sorted(names) == sorted(merged.records)


@pytest.mark.parametrize(
    "damage",
    [
        b'{"task_id": "t2", "sta',
        b"\x00\x00\xff\xfe",
        b'{"task_id": "t2", "status": "done", "attempts": 1, "started_s": 0, "finished_s": 1}',
        b'["' * 100_000,
        b"[]",
    ],
    ids=["half", "binary", "schema", "nested", "list"],
)
@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_damaged_line_is_set_aside_and_named(path: Path, damage: bytes, where: str) -> None:
    """It costs its own task only, which runs again; the file and the byte are named."""
    record(path, result("t1"), result("t3"))
    segment = path.with_name("results.d") / "000001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    lines.insert(2 if where == "middle" else 3, damage)
    segment.write_bytes(b"\n".join(lines).rstrip(b"\n") + (b"\n" if where == "middle" else b""))
    offset = segment.read_bytes().index(damage)
    ledger = Ledger(path)
    [problem] = ledger.merged.problems
    assert f"{segment} at byte {offset}: damaged" in problem
    assert len(problem) < 1000
    assert set(ledger.merged.records) == {"t1", "t3"}
    ledger.append([result("t2")])
    ledger.close()
    assert [name for name, _ in shown(path)] == ["t1", "t3", "t2"]


def test_a_line_that_lacks_only_its_newline_is_kept(path: Path) -> None:
    """A record that was written whole is not thrown away."""
    record(path, result("t1"))
    segment = path.with_name("results.d") / "000001.jsonl"
    segment.write_bytes(segment.read_bytes().rstrip(b"\n"))
    record(path, result("t2"))
    assert [name for name, _ in shown(path)] == ["t1", "t2"]


def test_a_ledger_without_segments_is_taken_over(path: Path) -> None:
    """A folder of the version before goes on: what stands there counts, a torn line does not."""
    old = '{"task_id":"t%d","status":"%s","attempts":1,"started_s":0.0,"finished_s":1.0}\n'
    path.write_text(old % (1, "ok") + old % (2, "failed") + '{"task_id":"t3","sta')
    assert num_recorded(path) == 2
    record(path, result("t3"))
    assert shown(path) == [("t1", "ok"), ("t2", "failed"), ("t3", "ok")]
    assert (path.with_name("results.d") / "000000.jsonl").exists()


def test_a_round_of_retries_replaces_failed_records_only(path: Path) -> None:
    """An ok is final; within a round, also in its next incarnation, the first record stands."""
    record(path, result("a"), result("b", "failed"), result("c", "failed"))
    ledger = Ledger(path, retry_round="r1")
    assert [ledger.is_open(name) for name in "abc"] == [False, True, True]
    ledger.append([result("b"), result("c", "failed", error="again")])
    ledger.close()
    again = Ledger(path, retry_round="r1")
    assert [again.is_open(name) for name in "abc"] == [False, False, False]
    again.close()
    later = Ledger(path, retry_round="r2")
    assert [later.is_open(name) for name in "abc"] == [False, False, True]
    later.close()
    assert shown(path) == [("a", "ok"), ("b", "ok"), ("c", "failed")]
    assert json.loads(path.read_text().splitlines()[2])["error"] == "again"


def test_results_never_show_a_task_twice_while_a_round_goes_on(path: Path) -> None:
    """A replaced line is rewritten away, not appended to; at the end all is up to date."""
    record(path, *(result(f"t{i}", "failed") for i in range(5)))
    ledger = Ledger(path, retry_round="r")
    for i in range(5):
        ledger.append([result(f"t{i}")])
        names = [name for name, _ in shown(path)]
        assert sorted(names) == sorted(set(names))
    ledger.close()
    assert shown(path) == [(f"t{i}", "ok") for i in range(5)]


class Disk:
    """Stands for a disk that fails: the system's calls for writing."""

    def __init__(self, number: int) -> None:
        self.number, self.fails, self.part = number, True, 7
        self._write, self._fsync = os.write, os.fsync

    def write(self, fd: int, data: bytes) -> int:
        if self.fails and self.part:
            part, self.part = self.part, 0
            return self._write(fd, bytes(data[:part]))
        if self.fails:
            raise OSError(self.number, os.strerror(self.number))
        return self._write(fd, data)

    def fsync(self, fd: int) -> None:
        if self.fails:
            raise OSError(self.number, os.strerror(self.number))
        self._fsync(fd)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_write_that_failed_half_way_is_done_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    """The same records are appended once more on a line of their own: none lost, none twice."""
    ledger, disk = Ledger(path), Disk(number)
    ledger.append([result("t1")])
    monkeypatch.setattr(ledgers.os, call, getattr(disk, call))
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(number)):
            ledger.append([result("t2"), result("t3")])
    disk.fails = False
    ledger.append([result("t2"), result("t3")])
    ledger.append([result("t4")])
    monkeypatch.undo()
    ledger.close()
    assert [name for name, _ in shown(path)] == ["t1", "t2", "t3", "t4"]
    assert num_recorded(path) == 4


def test_a_removed_folder_is_said_and_not_waited_for(path: Path) -> None:
    """Whoever removes the results of a running batch finds no half-made folder there again."""
    ledger = Ledger(path)
    segment = path.with_name("results.d") / "000001.jsonl"
    ledger._close_segment()
    segment.unlink()
    with pytest.raises(RunError, match="is gone"):
        ledger.append([result("t1")])
    ledger.close()


def test_odd_texts_stand_in_lines_of_their_own(path: Path) -> None:
    """Half a surrogate pair, other ends of lines and NUL come back as they were given."""
    odd = {"x": "a\u2028b\u0085c\rd\ud800e\x00f\nü"}
    record(path, result("t1", result=odd), result("t2"))
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3
    assert lines[0].isascii()
    assert json.loads(lines[0])["result"] == odd
    record(path, result("t3"))
    assert [name for name, _ in shown(path)] == ["t1", "t2", "t3"]


def test_results_are_mended_when_a_crash_left_them_behind(path: Path) -> None:
    """What was synced but not shown yet, or shown half, is there after the next look."""
    record(path, result("t1"), result("t2"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 5])
    assert set(repair_results(path).records) == {"t1", "t2"}
    assert path.read_bytes() == whole


def test_a_large_ledger_is_read_in_little_memory(path: Path) -> None:
    """100,000 records with results of 2 kB are read without their results staying in memory."""
    import tracemalloc

    folder = path.with_name("results.d")
    record(path)
    with (folder / "000001.jsonl").open("ab") as stream:
        for i in range(20_000):
            line = {"task_id": f"t{i}", "status": "ok", "attempts": 1, "started_s": 0.0}
            stream.write(json.dumps({**line, "finished_s": 1.0, "result": "x" * 2000}).encode())
            stream.write(b"\n")
    tracemalloc.start()
    try:
        assert num_recorded(path) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_looking_is_cheap_beside_other_files(path: Path) -> None:
    """Files in the folder that are no segments are passed over."""
    record(path, result("t1"))
    (path.with_name("results.d") / "000009.jsonl~").touch()
    (path.with_name("results.d") / "notes.txt").touch()
    ledger = Ledger(path)
    assert ledger.generation == 2
    ledger.close()
