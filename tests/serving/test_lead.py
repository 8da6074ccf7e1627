"""Whole runs with simulated engines in which tasks, writers, disks and clocks misbehave."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import serving_cases as cases

from scepsy_hpc.cli.main import run_line as scepsy
from scepsy_hpc.serving.ledger import Ledger

PAIR = {"l0": ("large", "a", (0,)), "s0": ("small", "b", (0,))}
# What agents do wrong, by the task's key `odd`.
ODD = """
import os, signal, socket, stat


def odd(what):
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "writes":
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, b"progress: 50%\\n")
            except OSError:
                pass
    if what == "deep":
        value = []
        for _ in range(600):
            value = [value]
        return value
    if what == "prints":
        print("x" * 100_000_000)
    return {
        "nan": float("nan"),
        "large": "x" * 50_000_000,
        "separators": "a\\u2028b\\u0085c\\x00d",
        "surrogate": "\\ud800",
        "brackets": '["' * 100_000,
        "digits": 10**5000,
    }.get(what)
"""


def make(folder: Path, tasks: list[dict[str, Any]]) -> list[str]:
    """The words of a run of these tasks into ``out``."""
    plan, path = cases.make_case(folder, PAIR, tasks)
    agent = folder / "tiny_agent.py"
    agent.write_text(
        agent.read_text().replace(
            "def run(task):",
            "def run(task):\n    if 'odd' in task:\n        return odd(task['odd'])",
        )
        + ODD
    )
    return ["run", str(plan), str(path), "-o", str(folder / "out")]


def begun(words: list[str]) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "scepsy_hpc", *words]
    pipe = subprocess.PIPE
    return cases.ended_with(
        subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    )


def lines_of(out: Path) -> dict[str, dict[str, Any]]:
    """Recorded tasks, each there once."""
    found = [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]
    by_task = {line["task_id"]: line for line in found}
    assert len(by_task) == len(found)
    return by_task


def test_odd_tasks_harm_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is recorded for what it is, those that meet no fault of their own are all well; a task
    whose process is killed again and again is nobody's failure: unrecorded, named, exit code 4."""
    kept = ["separators", "surrogate", "brackets", "prints"]
    refused = ["deep", "nan", "large", "digits", "writes"]
    tasks = [{"task_id": what, "odd": what} for what in [*kept, *refused, "dies"]]
    words = make(tmp_path, [*tasks, *({"task_id": f"t{i}"} for i in range(6))])
    assert scepsy([*words, "--cluster", "debug"]) == 4
    errors = capsys.readouterr().err
    assert "1 tasks met faults of engines or nodes 3 times and are not recorded: dies" in errors
    assert "died by signal 9" in errors
    found = lines_of(tmp_path / "out")
    assert "dies" not in found
    classes = {name: (o["status"], o.get("error_class")) for name, o in found.items()}
    well = [*kept, *(f"t{i}" for i in range(6))]
    assert classes == {
        **dict.fromkeys(well, ("ok", None)),
        **dict.fromkeys(refused, ("failed", "record")),
    }
    assert found["separators"]["result"] == "a\u2028b\u0085c\x00d"
    assert found["surrogate"]["result"] == "\ud800"
    status = cases.status_of(tmp_path / "out")
    assert (status["tasks"]["given_up"], status["state"]) == (1, "ended")
    assert scepsy(["status", str(tmp_path / "out")]) == 0


def test_killed_workers_cost_an_attempt_and_nothing_else(tmp_path: Path) -> None:
    """SIGKILL to all agents' processes and to the one that forks them, in mid-task."""
    gate = tmp_path / "gate"
    tasks = [{"task_id": "t0"}, *({"task_id": f"g{i}", "gate": str(gate)} for i in range(3))]
    with begun(make(tmp_path, tasks)) as running:
        cases.wait_for_results(running, tmp_path / "out", 1)
        everyone = psutil.Process(running.pid).children(recursive=True)
        agents = [p for p in everyone if "tiny_agent:run" in p.cmdline()]
        assert len(agents) >= 4, "the nursery and a worker for each task"
        for process in agents:
            process.kill()
        gate.touch()
        _, errors = running.communicate(timeout=90)
    assert running.returncode == 0, errors
    found = lines_of(tmp_path / "out")
    assert {o["status"] for o in found.values()} == {"ok"}
    assert {found[f"g{i}"]["attempts"] for i in range(3)} == {2}
    assert found["t0"]["attempts"] == 1


def test_failed_tasks_run_again_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By --retries in one run; by --retry-failed later, whose records replace the failed ones.
    A folder with nothing left ends at once, with the exit code of what it holds."""
    tasks = [{"task_id": "good"}, {"task_id": "bad", "needs": str(tmp_path / "needed")}]
    words = [*make(tmp_path, tasks), "--cluster", "debug"]
    assert scepsy([*words, "--retries", "1"]) == 1
    assert lines_of(tmp_path / "out")["bad"]["attempts"] == 2
    capsys.readouterr()
    assert scepsy([*words, "--resume"]) == 1
    said = capsys.readouterr().err
    assert "nothing is left to run" in said
    assert "1 tasks failed" in said
    (tmp_path / "needed").touch()
    assert scepsy([*words, "--resume", "--retry-failed"]) == 0
    assert {o["status"] for o in lines_of(tmp_path / "out").values()} == {"ok"}
    assert [len(cases.run_ids_of(tmp_path / "out", name)) for name in ("good", "bad")] == [1, 3]
    assert scepsy([*words, "--resume", "--retry-failed"]) == 0
    assert "nothing is left to run" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "results.d").iterdir())) == 2


def test_another_start_goes_on_and_this_one_ends(tmp_path: Path) -> None:
    """Two that work on one batch: the earlier one ends by itself, and counts nothing any more."""
    gate, out = tmp_path / "gate", tmp_path / "out"
    tasks = [{"task_id": "t0"}, *({"task_id": f"g{i}", "gate": str(gate)} for i in range(3))]
    with begun(make(tmp_path, tasks)) as running:
        cases.wait_for_results(running, out, 1)
        successor = Ledger(out / "results.jsonl", "another")
        _, errors = running.communicate(timeout=90)
    assert running.returncode == 4
    assert "another start (generation 2) goes on with this batch" in errors
    assert "1 of 4 tasks are recorded" in errors
    assert not successor.is_open("t0")
    successor.close()
    assert cases.processes_of(out) == []
    gate.touch()
    words = ["run", str(tmp_path / "plan.yaml"), str(tmp_path / "tasks.jsonl"), "-o", str(out)]
    assert scepsy([*words, "--resume", "--cluster", "debug"]) == 0
    assert set(lines_of(out)) == {"t0", "g0", "g1", "g2"}


def test_damage_costs_its_own_task_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of the ledger that is damaged, and a status that is half-written."""
    out = tmp_path / "out"
    words = [*make(tmp_path, [{"task_id": f"t{i}"} for i in range(3)]), "--cluster", "debug"]
    assert scepsy(words) == 0
    segment = out / "results.d" / "000001.jsonl"
    text = segment.read_text()
    segment.write_text(text.replace('{"task_id": "t1"', '{"task_id"\x00"t1"'))
    status = (out / "status.json").read_text()
    (out / "status.json").write_text(status[:100])
    capsys.readouterr()
    assert scepsy(["status", str(out)]) == 2
    assert "status.json: is damaged" in capsys.readouterr().err
    assert scepsy([*words, "--resume"]) == 0
    errors = capsys.readouterr().err
    assert f"alert: {segment} at byte" in errors
    assert set(lines_of(out)) == {"t0", "t1", "t2"}
    assert [len(cases.run_ids_of(out, f"t{i}")) for i in range(3)] == [1, 2, 1]


def test_a_job_ends_before_its_time_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not end in time is cut before Slurm does it: to be resumed, exit code 4."""
    never = str(tmp_path / "never")
    tasks = [{"task_id": "t0"}, *({"task_id": f"g{i}", "gate": never} for i in range(6))]
    words = [*make(tmp_path, tasks), "--cluster", "debug"]
    monkeypatch.setenv("SLURM_JOB_END_TIME", f"{time.time() + 15:.0f}")
    assert scepsy(words) == 4
    errors = capsys.readouterr().err
    assert "the time limit is near: no new tasks begin" in errors
    assert set(lines_of(tmp_path / "out")) <= {"t0"}
    status = cases.status_of(tmp_path / "out")
    assert (status["state"], status["error"]) == ("interrupted", None)
    assert cases.processes_of(tmp_path / "out") == []


def test_another_batch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is submitted, with what differs; --changed-ok goes on with it."""
    words = [*make(tmp_path, [{"task_id": "t0"}]), "--cluster", "debug"]
    assert scepsy(words) == 0
    (tmp_path / "tasks.jsonl").write_text('{"task_id": "t1"}\n')
    assert scepsy([*words, "--resume"]) == 2
    assert "1 new: t1 (task 1), 1 gone: t0" in capsys.readouterr().err
    assert scepsy([*words, "--changed-ok"]) == 2
    assert "--changed-ok goes with --resume" in capsys.readouterr().err
    assert scepsy([*words, "--resume", "--changed-ok"]) == 0
    assert set(lines_of(tmp_path / "out")) == {"t0", "t1"}
