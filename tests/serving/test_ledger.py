"""The ledger: recorded once, survives a crash in mid-line, one writer."""

import json
import subprocess
import sys

import pytest

from scepsy_hpc.errors import RunError
from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.serving.ledger import Ledger


def result(task_id):
    return TaskResult(
        task_id=task_id, status="ok", attempts=1, started_s=1.0, finished_s=2.0, result={"a": 1}
    )


def test_a_task_is_recorded_once(tmp_path):
    """A second record of one task is refused, in this run and after reopening."""
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    ledger.append(result("t1"))
    with pytest.raises(RunError, match="recorded already"):
        ledger.append(result("t1"))
    ledger.close()
    ledger = Ledger(path)
    with pytest.raises(RunError, match="recorded already"):
        ledger.append(result("t1"))
    assert ledger.recorded == {"t1": "ok"}
    ledger.close()
    assert [json.loads(line)["task_id"] for line in path.read_text().splitlines()] == ["t1"]


def test_a_torn_line_is_cut_off(tmp_path):
    """What a crash left half-written counts as not recorded; whole lines stay."""
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    ledger.append(result("t1"))
    ledger.close()
    whole = path.read_text()
    path.write_text(whole + '{"task_id": "t2", "sta')
    ledger = Ledger(path)
    assert ledger.recorded == {"t1": "ok"}
    ledger.append(result("t2"))
    ledger.close()
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_lacks_only_its_newline_is_kept(tmp_path):
    """A record that was written whole is not thrown away."""
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    ledger.append(result("t1"))
    ledger.close()
    path.write_text(path.read_text().rstrip("\n"))
    ledger = Ledger(path)
    ledger.append(result("t2"))
    ledger.close()
    assert [json.loads(line)["task_id"] for line in path.read_text().splitlines()] == ["t1", "t2"]


def test_two_processes_do_not_write_one_ledger(tmp_path):
    """A second run on the same folder is told so."""
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    code = (
        "import sys, pathlib\n"
        "from scepsy_hpc.serving.ledger import Ledger\n"
        "from scepsy_hpc.errors import RunError\n"
        "try:\n    Ledger(pathlib.Path(sys.argv[1]))\n"
        "except RunError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "another run writes" in done.stdout
    ledger.close()
