"""Records are written many at a time, beside the event loop, and once whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scepsy_hpc.errors import RunError
from scepsy_hpc.formats.limits import Unrecordable
from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.serving import ledger as ledgers
from scepsy_hpc.serving import ledger_writer
from scepsy_hpc.serving.ledger import Ledger, Superseded
from scepsy_hpc.serving.ledger_writer import LedgerWriter, open_writer


def result(task_id: str, value: object = 1) -> TaskResult:
    return TaskResult(
        task_id=task_id, status="ok", attempts=1, started_s=0.0, finished_s=1.0, result=value
    )


def names_of(folder: Path) -> list[str]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["task_id"] for line in lines]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_writer, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(ledger_writer, "LOOK_EVERY_S", 3600.0)


class SlowDisk:
    """Stands for a file system: syncs wait until it is let go, and are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go, self.num_syncs = threading.Event(), 0
        sync = ledgers.os.fsync

        def slow(fd: int) -> None:
            self.num_syncs += 1
            assert self.let_go.wait(60)
            sync(fd)

        self._patch: Callable[[], None] = lambda: monkeypatch.setattr(ledgers.os, "fsync", slow)

    def begin(self) -> None:
        self._patch()


def test_a_slow_disk_holds_up_nobody_and_one_sync_serves_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop goes on while a sync lasts; what ends meanwhile shares the next one."""
    disk = SlowDisk(monkeypatch)

    async def go() -> None:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            disk.begin()
            jobs = [asyncio.create_task(writer.record(result("first")))]
            while not disk.num_syncs:
                await asyncio.sleep(0.001)
            jobs += [asyncio.create_task(writer.record(result(f"t{i}"))) for i in range(50)]
            await asyncio.sleep(0.05)
            assert not any(job.done() for job in jobs)
            monkeypatch.setattr(ledger_writer, "SLOW_S", 0.0)
            assert "file system has been busy" in writer.alerts()[0]
            disk.let_go.set()
            await asyncio.wait_for(asyncio.gather(*jobs), 60)
            assert disk.num_syncs == 2

    asyncio.run(go())
    assert names_of(tmp_path) == ["first", *(f"t{i}" for i in range(50))]


def test_who_waits_and_is_cancelled_is_recorded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that ended has ended; the end of the run waits for its record."""
    disk = SlowDisk(monkeypatch)

    async def go() -> None:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            disk.begin()
            jobs = [asyncio.create_task(writer.record(result(name))) for name in "ab"]
            while not disk.num_syncs:
                await asyncio.sleep(0.001)
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
            threading.Timer(0.05, disk.let_go.set).start()

    asyncio.run(go())
    assert names_of(tmp_path) == ["a", "b"]


def test_a_result_that_cannot_be_written_is_its_own_task_s_matter(tmp_path: Path) -> None:
    """Those that are written with it are recorded."""

    async def go() -> list[object]:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            jobs = [writer.record(result("a")), writer.record(result("b", {1}))]
            return await asyncio.gather(*jobs, writer.record(result("c")), return_exceptions=True)

    a, b, c = asyncio.run(go())
    assert (a, c) == (None, None)
    assert isinstance(b, Unrecordable)
    assert names_of(tmp_path) == ["a", "c"]


def test_one_record_too_many_is_refused(tmp_path: Path) -> None:
    """It is a bug of ours, and raised where it is made."""

    async def go() -> None:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            await writer.record(result("a"))
            with pytest.raises(RunError, match="recorded already"):
                await writer.record(result("a"))
            await writer.record(result("b"))

    asyncio.run(go())
    assert names_of(tmp_path) == ["a", "b"]


def test_after_a_successor_nothing_is_recorded(tmp_path: Path) -> None:
    """Neither what waits nor what comes later."""

    async def go() -> None:
        path = tmp_path / "results.jsonl"
        async with LedgerWriter(Ledger(path)) as writer:
            successor = Ledger(path)
            for name in "ab":
                with pytest.raises(Superseded):
                    await writer.record(result(name))
            successor.append([result("a")])
            successor.close()

    asyncio.run(go())
    assert names_of(tmp_path) == ["a"]


def test_a_batch_begins_when_the_disk_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header that cannot be written is tried again and leaves no segment behind."""
    fails, said = [2], list[str]()
    write = ledgers._write_all

    def broken(fd: int, data: bytes) -> None:
        if fails[0]:
            fails[0] -= 1
            raise OSError(errno.EROFS, "Read-only file system")
        write(fd, data)

    monkeypatch.setattr(ledgers, "_write_all", broken)

    async def go() -> None:
        async with await open_writer(tmp_path / "results.jsonl", "a", None, said.append) as writer:
            await writer.record(result("a"))

    asyncio.run(go())
    assert ["Read-only file system" in text for text in said] == [True, True, False]
    assert [path.name for path in (tmp_path / "results.d").iterdir()] == ["000001.jsonl"]


def test_problems_of_the_ledger_are_alerts_but_not_thousands(tmp_path: Path) -> None:
    """The first few are named, the others counted."""

    async def go() -> tuple[str, ...]:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            writer.ledger.merged.problems.extend(f"p{i}" for i in range(100))
            return writer.alerts()

    assert asyncio.run(go()) == ("p0", "p1", "p2", "p3", "p4", "and 95 more like these")
