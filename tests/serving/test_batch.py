"""The batch: nothing lost, nothing twice, nobody blamed for another's fault, nothing in the way."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from scepsy_hpc.formats.limits import MAX_RESULT_BYTES
from scepsy_hpc.formats.results import FailureClass
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving import batch as batches
from scepsy_hpc.serving import ledger_writer
from scepsy_hpc.serving.batch import Batch
from scepsy_hpc.serving.ledger import Ledger, Superseded
from scepsy_hpc.serving.ledger_writer import LedgerWriter
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.tracing.agents.pool import AgentOutcome

TASKS = [Task(f"t{i}", "rag", {"task_id": f"t{i}"}) for i in range(20)]
RunTask = Callable[[Task, int], Awaitable[AgentOutcome]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that are seconds in life."""
    monkeypatch.setattr(batches, "SAME_SIGNAL_S", 0.01)
    monkeypatch.setattr(batches, "pause_before_attempt_s", lambda number: 0.01)
    monkeypatch.setattr(ledger_writer, "FIRST_RETRY_S", 0.01)


def ended(result: Any = 1) -> AgentOutcome:
    return AgentOutcome(0.0, 1.0, result)


def failed(failure: FailureClass, error: str = "no") -> AgentOutcome:
    return AgentOutcome(0.0, 1.0, error=error, failure=failure)


def work_off(
    folder: Path,
    run_task: RunTask,
    tasks: list[Task] = TASKS,
    ready: Callable[[Batch], None] = lambda batch: None,
    retry_round: str | None = None,
    **settings: Any,
) -> tuple[Batch, dict[str, dict[str, Any]]]:
    """Run a batch to its end; returns it and the recorded lines by task, each there once."""

    async def go() -> Batch:
        asked = RunSettings(**(settings or {"max_runs_in_flight": 4}))
        ledger = Ledger(folder / "results.jsonl", retry_round=retry_round)
        async with LedgerWriter(ledger) as writer:
            batch = Batch(tasks, writer, run_task, asked)
            ready(batch)
            await asyncio.wait_for(batch.run(), 60)
            return batch

    return asyncio.run(go()), lines_of(folder)


def lines_of(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "results.jsonl").read_bytes().split(b"\n")
    found = [json.loads(line) for line in lines if line]
    by_task = {line["task_id"]: line for line in found}
    assert len(by_task) == len(found)
    return by_task


def test_every_task_once_and_never_more_in_flight_than_allowed(tmp_path: Path) -> None:
    """All tasks are recorded once; the limit is reached and kept."""
    running, most = 0, 0

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return ended(task.task_id)

    batch, lines = work_off(tmp_path, run_task)
    assert set(lines) == {t.task_id for t in TASKS}
    assert (most, batch.num_ok, batch.num_failed) == (4, 20, 0)


def test_a_fault_of_infrastructure_is_tried_again_then_left_unrecorded(tmp_path: Path) -> None:
    """Nobody is blamed for it; the tasks are named; a later start runs them."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        if task.task_id == "t2" and attempt < 3:
            return failed("infra", "engine gone")
        return failed("infra", "engine gone") if task.task_id == "t3" else ended()

    batch, lines = work_off(tmp_path, run_task, TASKS[:4], max_attempts=3, max_runs_in_flight=2)
    assert {n: line["attempts"] for n, line in lines.items()} == {"t0": 1, "t1": 1, "t2": 3}
    assert (batch.num_left, batch.counts().given_up, batch.num_retried) == (1, 1, 4)
    assert "1 tasks met faults" in batch.alerts()[0]
    assert "of t3: engine gone" in batch.alerts()[0]

    async def sound(task: Task, attempt: int) -> AgentOutcome:
        return ended()

    batch, lines = work_off(tmp_path, sound, TASKS[:4])
    assert (batch.num_skipped, set(lines)) == (3, {"t0", "t1", "t2", "t3"})


@pytest.mark.parametrize("retries", [0, 2])
def test_an_agents_failure_is_tried_again_as_often_as_asked(tmp_path: Path, retries: int) -> None:
    """Then it is recorded, with whose it is; faults in between do not count against it."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        if task.task_id == "t1":
            return failed("infra") if attempt == 1 else failed("agent", "ValueError: no")
        return failed("record") if task.task_id == "t2" else ended()

    _, lines = work_off(tmp_path, run_task, TASKS[:3], max_runs_in_flight=3, retries=retries)
    found = {n: (o["status"], o["attempts"], o.get("error_class")) for n, o in lines.items()}
    assert found == {
        "t0": ("ok", 1, None),
        "t1": ("failed", 2 + retries, "agent"),
        "t2": ("failed", 1 + retries, "record"),
    }


def test_a_round_of_retries_runs_failed_tasks_only(tmp_path: Path) -> None:
    """Their new record replaces the old; without a round they are not run again."""
    seen = []

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        seen.append(task.task_id)
        return failed("agent") if len(seen) <= 3 else ended()

    work_off(tmp_path, run_task, TASKS[:3])
    work_off(tmp_path, run_task, TASKS[:4])
    assert sorted(seen) == ["t0", "t1", "t2", "t3"]
    batch, lines = work_off(tmp_path, run_task, TASKS[:4], retry_round="r")
    assert (len(seen), batch.num_skipped) == (7, 1)
    assert {line["status"] for line in lines.values()} == {"ok"}


def test_who_waits_to_run_again_holds_no_seat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one seat the others go on while a task's pause lasts, here for as long as they need."""
    monkeypatch.setattr(batches, "pause_before_attempt_s", lambda number: 3600.0)
    order, made = [], list[Batch]()

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        order.append(task.task_id)
        if len(order) == len(TASKS):
            made[0].has_time = lambda: False  # the end, for want of a test that lasts an hour
        return failed("infra") if order == ["t0"] else ended()

    batch, lines = work_off(tmp_path, run_task, ready=made.append, max_runs_in_flight=1)
    assert order == [t.task_id for t in TASKS]
    assert set(lines) == set(order) - {"t0"}
    assert (batch.num_left, batch.num_retried) == (1, 1)


def test_a_task_starts_with_its_first_attempt_and_ends_with_its_last(tmp_path: Path) -> None:
    """The times recorded are the agents' own, not those of waiting for a place."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        error = "engine gone" if attempt == 1 else None
        failure: FailureClass | None = "infra" if attempt == 1 else None
        begin_s = 10.0 * attempt
        return AgentOutcome(begin_s, begin_s + 1.0, 1, error, failure=failure)

    _, lines = work_off(tmp_path, run_task, TASKS[:1])
    found = lines["t0"]
    assert (found["started_s"], found["finished_s"], found["attempts"]) == (10.0, 21.0, 2)


def test_resume_takes_only_what_is_not_recorded(tmp_path: Path) -> None:
    """A second run on the same ledger runs the rest and nothing else."""
    seen = []

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        seen.append(task.task_id)
        return ended()

    work_off(tmp_path, run_task, TASKS[:5])
    batch, lines = work_off(tmp_path, run_task)
    assert len(seen) == len(set(seen)) == len(lines) == 20
    assert batch.num_skipped == 5


def test_cancelled_runs_leave_no_record(tmp_path: Path) -> None:
    """What is cut off is not recorded, so that it runs again; what had ended stays."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        if task.task_id != "t0":
            await asyncio.Event().wait()
        return ended()

    async def go() -> Batch:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            batch = Batch(TASKS, writer, run_task, RunSettings(max_runs_in_flight=3))
            job = asyncio.create_task(batch.run())
            while len(batch.in_flight) < 3 or batch.num_ok < 1:
                await asyncio.sleep(0.001)
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            return batch

    assert asyncio.run(go()).in_flight == {}
    assert set(lines_of(tmp_path)) == {"t0"}


def test_a_failure_beside_a_signal_is_not_recorded(tmp_path: Path) -> None:
    """The signal ends agents too: such a task runs again."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        return failed("agent")

    async def go() -> int:
        interrupted = asyncio.Event()
        interrupted.set()
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            batch = Batch(
                TASKS[:2], writer, run_task, RunSettings(max_runs_in_flight=2), interrupted
            )
            await asyncio.wait_for(batch.run(), 60)
            return batch.num_left

    assert asyncio.run(go()) == 2
    assert lines_of(tmp_path) == {}


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task begins meanwhile, an alert says why, and afterwards all stand there once."""
    full, begun, alerts = [True], [], list[str]()
    monkeypatch.setattr(ledger_writer, "MAX_UNWRITTEN", 4)
    write = os.write

    def fails(fd: int, data: bytes) -> int:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        begun.append(task.task_id)
        return ended()

    async def go() -> None:
        async with LedgerWriter(Ledger(tmp_path / "results.jsonl")) as writer:
            monkeypatch.setattr("scepsy_hpc.serving.ledger._write_all", fails)
            batch = Batch(TASKS, writer, run_task, RunSettings(max_runs_in_flight=2))
            job = asyncio.create_task(batch.run())
            while not writer.is_stalled:
                await asyncio.sleep(0.001)
            while batch.in_flight:
                await asyncio.sleep(0.001)
            held = len(begun)
            await asyncio.sleep(0.1)
            assert len(begun) == held <= 8
            alerts.extend(writer.alerts())
            full[0] = False
            await asyncio.wait_for(job, 60)
            assert writer.alerts() == ()

    asyncio.run(go())
    assert "cannot be written (No space left on device)" in alerts[0]
    assert set(lines_of(tmp_path)) == {t.task_id for t in TASKS}


def test_a_successor_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not the latest admits no more and records no more, though nothing ends here."""
    monkeypatch.setattr(ledger_writer, "LOOK_EVERY_S", 0.01)

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        await asyncio.Event().wait()
        return ended()

    async def go() -> None:
        path = tmp_path / "results.jsonl"
        async with LedgerWriter(Ledger(path)) as writer:
            batch = Batch(TASKS, writer, run_task, RunSettings(max_runs_in_flight=2))
            job = asyncio.create_task(batch.run())
            while len(batch.in_flight) < 2:
                await asyncio.sleep(0.001)
            successor = Ledger(path)
            with pytest.raises(Superseded):
                await asyncio.wait_for(job, 60)
            assert batch.in_flight == {}
            successor.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (float("nan"), "not JSON compliant"),
        ("x" * (MAX_RESULT_BYTES + 1), "write large results into files"),
        (10**5000, "digits"),
        (object(), "not JSON serializable"),
    ],
    ids=["nan", "large", "digits", "no json"],
)
def test_a_result_that_cannot_be_recorded(tmp_path: Path, result: Any, says: str) -> None:
    """Its task is recorded as failed for that reason, and the rest goes on."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        return ended(result if task.task_id == "t1" else 1)

    _, lines = work_off(tmp_path, run_task, TASKS[:3])
    odd = lines.pop("t1")
    assert (odd["status"], odd["error_class"]) == ("failed", "record")
    assert says in odd["error"]
    assert {line["status"] for line in lines.values()} == {"ok"}


def test_a_bug_of_ours_costs_its_task_and_not_the_batch(tmp_path: Path) -> None:
    """It is nobody's failure: tried again, named, left unrecorded."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        if task.task_id == "t1":
            raise KeyError("odd")
        return ended()

    batch, lines = work_off(tmp_path, run_task, TASKS[:3])
    assert set(lines) == {"t0", "t2"}
    assert "of t1: KeyError('odd')" in batch.alerts()[0]


def test_a_batch_without_time_admits_no_more_and_drains(tmp_path: Path) -> None:
    """What is in flight ends and is recorded; the rest is left, and said to be."""
    batch_of: list[Batch] = []

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        if task.task_id == "t4":
            batch_of[0].has_time = lambda: False
        await asyncio.sleep(0.01)
        return ended()

    batch, lines = work_off(tmp_path, run_task, ready=batch_of.append, max_runs_in_flight=2)
    assert batch.is_out_of_time
    assert len(lines) == 20 - batch.num_left
    assert {"t0", "t1", "t2", "t3", "t4"} <= set(lines)
    assert batch.num_left >= 14
    assert batch.in_flight == {}


def test_lengths_are_those_of_tasks_that_ended_and_of_those_that_last(tmp_path: Path) -> None:
    """Of this start, of the starts before, and so far of what is in flight."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        return AgentOutcome(5.0, 8.0, 1)

    first, _ = work_off(tmp_path, run_task, TASKS[:2])
    assert first.lengths_s() == [3.0, 3.0]
    seen = []

    async def last(task: Task, attempt: int) -> AgentOutcome:
        seen.extend(second[0].lengths_s())
        return AgentOutcome(5.0, 6.0, 1)

    second: list[Batch] = []
    work_off(tmp_path, last, TASKS[:3], ready=second.append)
    assert seen[:2] == [3.0, 3.0]
    assert 0 <= seen[2] < 60


def test_poisson_arrivals_admit_everything(tmp_path: Path) -> None:
    """At a high rate all tasks enter without a limit on runs in flight."""

    async def run_task(task: Task, attempt: int) -> AgentOutcome:
        return ended()

    _, lines = work_off(tmp_path, run_task, rate_rps=2000.0, seed=1)
    assert len(lines) == 20
