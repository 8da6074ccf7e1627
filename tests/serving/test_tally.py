"""The exit code of a batch is its ledger's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.serving.ledger import Ledger
from scepsy_hpc.serving.run_folder import RunFolder, write_json
from scepsy_hpc.serving.settings import RunSettings, save_settings
from scepsy_hpc.serving.tally import BatchTally, end_at_once, is_complete, tally


def folder_of(root: Path, tasks: str, **statuses: str) -> RunFolder:
    """A batch of the tasks named by letters, some of them recorded."""
    folder = RunFolder(root)
    folder.create()
    folder.tasks.write_text("".join(json.dumps({"task_id": name}) + "\n" for name in tasks))
    save_settings(folder.settings, RunSettings())
    ledger = Ledger(folder.results)
    for name, status in statuses.items():
        ledger.append(
            [
                TaskResult(
                    task_id=name,
                    status="ok" if status == "ok" else "failed",
                    attempts=1,
                    started_s=0.0,
                    finished_s=1.0,
                )
            ]
        )
    ledger.close()
    return folder


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ({"a": "ok", "b": "ok"}, 0),
        ({"a": "ok", "b": "failed"}, 1),
        ({"a": "failed"}, 4),
        ({"a": "ok"}, 4),
        ({"a": "ok", "b": "ok", "gone": "failed"}, 0),
    ],
)
def test_the_exit_code(tmp_path: Path, statuses: dict[str, str], code: int) -> None:
    """4 while one is unrecorded, even beside failed ones; tasks that are gone do not count."""
    found = tally(folder_of(tmp_path, "ab", **statuses))
    assert found.exit_code == code
    assert found.total == 2


def test_what_a_crash_left_behind_is_shown_once_it_is_over(tmp_path: Path) -> None:
    """While the batch may go on nobody else writes its results."""
    folder = folder_of(tmp_path, "ab", a="ok", b="ok")
    whole = folder.results.read_bytes()
    folder.results.write_bytes(whole[:10])
    write_json(folder.status, RunStatus(attempt="a", state="running").plain())
    assert tally(folder) == BatchTally(2, 2, 0, 0)
    assert folder.results.read_bytes() == whole[:10]
    write_json(folder.status, RunStatus(attempt="a", state="interrupted").plain())
    assert tally(folder) == BatchTally(2, 2, 0, 0)
    assert folder.results.read_bytes() == whole


def test_a_batch_is_complete_or_a_round_of_retries_is_not(tmp_path: Path) -> None:
    """Failed tasks are left only for a round; then the status says how it stands."""
    folder = folder_of(tmp_path, "ab", a="ok", b="failed")
    assert is_complete(folder)
    save_settings(folder.settings, RunSettings(retry_round="r"))
    assert not is_complete(folder)
    end_at_once(folder)
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["tasks"]["recorded_before"]) == ("ended", 2)


def test_a_folder_without_a_batch(tmp_path: Path) -> None:
    """Of `serve`, say: nothing is left."""
    assert tally(RunFolder(tmp_path)) == BatchTally(0, 0, 0, 0)
