"""What `status` expects: the pace of the last tasks, and what the queue says."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from scepsy_hpc.formats.status import RunOutlook, RunStatus, TaskCounts, WatchedRun
from scepsy_hpc.report.tables import status_tables
from scepsy_hpc.serving.job import Job
from scepsy_hpc.serving.outlook import outlook, recent_rate_rps
from scepsy_hpc.serving.run_folder import RunFolder

COUNTS = TaskCounts(
    total=100, recorded_before=0, ok=20, failed=0, in_flight=4, waiting=76, retried=0
)


def results(path: Path, ends: list[float]) -> Path:
    """A ledger of tasks that ended then."""
    path.write_text("".join(json.dumps({"task_id": "t", "finished_s": s}) + "\n" for s in ends))
    return path


def test_the_pace_is_that_of_the_last_tasks(tmp_path):
    """A slow start and a damaged line count for nothing; fewer than two ends tell no pace."""
    path = results(tmp_path / "r.jsonl", [0.0, *(1000.0 + 0.5 * i for i in range(201))])
    with path.open("ab") as stream:
        stream.write(b'{"task_id": "half')
    assert recent_rate_rps(path) == pytest.approx(2.0)
    assert recent_rate_rps(results(path, [5.0])) is None
    assert recent_rate_rps(tmp_path / "none.jsonl") is None


def test_a_long_ledger_is_read_from_its_end(tmp_path):
    """Of a million lines only the last are read."""
    path = tmp_path / "r.jsonl"
    line = json.dumps({"task_id": "t", "finished_s": 1.0}) + "\n"
    with path.open("w") as stream:
        stream.write(line * 300_000)
    assert recent_rate_rps(path) is None  # all ended at once


def squeue(folder: Path, line: str) -> None:
    """A squeue that says this."""
    tool = folder / "squeue"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(0o755)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder, and a place on PATH for a squeue."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    folder = RunFolder(tmp_path / "out")
    folder.create()
    return folder


def test_a_waiting_job_says_why_and_when(run, tmp_path):
    """The reason and the start that Slurm expects, on the screen as well."""
    squeue(tmp_path, "12|PENDING|2030-01-02T03:04:00|2030-01-02T04:04:00|Resources")
    job = Job(cluster="slurm", ids=("12",), host="login")
    found = outlook(run, RunStatus(attempt="a-0"), job)
    expected_s = datetime(2030, 1, 2, 3, 4).timestamp()
    assert (found.pending_job, found.pending_reason) == ("12", "Resources")
    assert found.expected_start_s == expected_s
    watched = WatchedRun(attempt="a-0", recorded=0, alive=True, cluster="slurm", outlook=found)
    text = "\n".join(map(str, status_tables(watched)))
    assert "job 12 waits in the queue: Resources; expected to start 2030-01-02 03:04" in text


def test_time_that_is_not_enough_is_said(run, tmp_path):
    """Eighty tasks at two a second take 40 s; a job that ends in ten leaves some to the next."""
    results(run.results, [10.0 + 0.5 * i for i in range(21)])
    end = datetime.fromtimestamp(time.time() + 10.0).isoformat(timespec="seconds")
    squeue(tmp_path, f"12|RUNNING|2026-01-01T00:00:00|{end}|None")
    status = RunStatus(attempt="a-0", state="running", tasks=COUNTS)
    found = outlook(run, status, Job(cluster="slurm", ids=("12",), host="login"))
    assert found.tasks_rps == pytest.approx(2.0)
    assert found.needed_s == pytest.approx(40.0)
    assert found.left_s is not None
    assert found.left_s <= 10.0
    watched = WatchedRun(
        attempt="a-0", recorded=20, alive=True, cluster="slurm", state="running", outlook=found
    )
    text = "\n".join(map(str, status_tables(watched)))
    assert "pace: 2 tasks/s; what is left takes 0:00:40" in text
    assert "not enough, the next job goes on with the rest" in text


def test_nothing_is_known_where_the_queue_is_silent(run, tmp_path):
    """N/A and a squeue that fails are nulls, not figures."""
    squeue(tmp_path, "12|PENDING|N/A|N/A|None")
    job = Job(cluster="slurm", ids=("12",), host="login")
    found = outlook(run, RunStatus(attempt="a-0"), job)
    assert (found.pending_job, found.pending_reason, found.expected_start_s) == ("12", None, None)
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert outlook(run, RunStatus(attempt="a-0"), job) == RunOutlook(job_ids=("12",))
