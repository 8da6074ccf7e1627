"""The batch: nothing lost, nothing twice, at most so many at a time."""

import asyncio
import json

import pytest

from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving.batch import AttemptEnd, Batch
from scepsy_hpc.serving.ledger import Ledger
from scepsy_hpc.serving.settings import RunSettings

TASKS = [Task(f"t{i}", "rag", {"task_id": f"t{i}"}) for i in range(20)]


def work_off(tmp_path, run_task, tasks=TASKS, **settings):
    """Run a batch to its end; returns it and the recorded lines."""

    async def go():
        ledger = Ledger(tmp_path / "results.jsonl")
        asked = RunSettings(**(settings or {"max_runs_in_flight": 4}))
        batch = Batch(tasks, ledger, run_task, asked)
        try:
            await batch.run()
        finally:
            ledger.close()
        return batch

    batch = asyncio.run(go())
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    return batch, [json.loads(line) for line in lines]


def test_every_task_once_and_never_more_in_flight_than_allowed(tmp_path):
    """All tasks are recorded once; the limit is reached and kept."""
    running, most = 0, 0

    async def run_task(task, attempt):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return AttemptEnd(0.0, 1.0, result=task.task_id)

    batch, lines = work_off(tmp_path, run_task)
    assert sorted(line["task_id"] for line in lines) == sorted(t.task_id for t in TASKS)
    assert (most, batch.num_ok, batch.num_failed) == (4, 20, 0)


def test_a_fault_is_tried_again_and_an_agents_own_failure_is_not(tmp_path):
    """Attempts are counted; a task that keeps meeting faults is recorded as failed in the end."""

    async def run_task(task, attempt):
        if task.task_id == "t1":
            return AttemptEnd(0.0, 1.0, error="ValueError: no", faulted=False)
        if task.task_id == "t2" and attempt < 2:
            return AttemptEnd(0.0, 1.0, error="engine gone", faulted=True)
        if task.task_id == "t3":
            return AttemptEnd(0.0, 1.0, error="engine gone", faulted=True)
        return AttemptEnd(0.0, 1.0, result=1)

    batch, lines = work_off(tmp_path, run_task, TASKS[:4], max_attempts=2)
    found = {line["task_id"]: (line["status"], line["attempts"]) for line in lines}
    assert found == {"t0": ("ok", 1), "t1": ("failed", 1), "t2": ("ok", 2), "t3": ("failed", 2)}
    assert batch.num_retried == 2


def test_a_task_starts_with_its_first_attempt_and_ends_with_its_last(tmp_path):
    """The times recorded are the agents' own, not those of waiting for a place."""

    async def run_task(task, attempt):
        error = "engine gone" if attempt == 1 else None
        return AttemptEnd(10.0 * attempt, 10.0 * attempt + 1.0, 1, error, faulted=True)

    _, lines = work_off(tmp_path, run_task, TASKS[:1])
    assert (lines[0]["started_s"], lines[0]["finished_s"], lines[0]["attempts"]) == (10.0, 21.0, 2)


def test_resume_takes_only_what_is_not_recorded(tmp_path):
    """A second run on the same ledger runs the rest and nothing else."""
    seen = []

    async def run_task(task, attempt):
        seen.append(task.task_id)
        return AttemptEnd(0.0, 1.0, result=1)

    work_off(tmp_path, run_task, TASKS[:5])
    batch, lines = work_off(tmp_path, run_task)
    assert len(seen) == len(set(seen)) == len(lines) == 20
    assert batch.num_skipped == 5


def test_cancelled_runs_leave_no_record(tmp_path):
    """What is cut off is not recorded, so that it runs again; what had ended stays."""

    async def go():
        async def run_task(task, attempt):
            if task.task_id != "t0":
                await asyncio.Event().wait()
            return AttemptEnd(0.0, 1.0, result=1)

        ledger = Ledger(tmp_path / "results.jsonl")
        batch = Batch(TASKS, ledger, run_task, RunSettings(max_runs_in_flight=3))
        job = asyncio.create_task(batch.run())
        while len(batch.in_flight) < 3 or batch.num_ok < 1:
            await asyncio.sleep(0.001)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        ledger.close()
        return batch

    batch = asyncio.run(go())
    assert batch.in_flight == set()
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["task_id"] for line in lines] == ["t0"]


def test_a_full_disk_ends_the_batch(tmp_path):
    """A record that cannot be written is not passed over in silence."""

    async def run_task(task, attempt):
        await asyncio.sleep(0)
        return AttemptEnd(0.0, 1.0, result=1)

    class Full(Ledger):
        def append(self, result):
            raise OSError("disk full")

    async def go():
        ledger = Full(tmp_path / "results.jsonl")
        try:
            await Batch(TASKS, ledger, run_task, RunSettings(max_runs_in_flight=2)).run()
        finally:
            ledger.close()

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(go())


def test_poisson_arrivals_admit_everything(tmp_path):
    """At a high rate all tasks enter without a limit on runs in flight."""

    async def run_task(task, attempt):
        return AttemptEnd(0.0, 1.0, result=1)

    _, lines = work_off(tmp_path, run_task, rate_rps=2000.0, seed=1)
    assert len(lines) == 20
