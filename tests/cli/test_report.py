"""`report`: measured beside predicted, and when there is none."""

from __future__ import annotations

import json

import pytest
from report_case import make_run

from scepsy_hpc.cli.main import run_line


def test_report_and_noise_floor(tmp_path, capsys):
    """Measured figures are the run's; the noise floor is the difference to another run."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", slower=1.1)
    assert run_line(["report", str(first), "--again", str(second), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    rows = {row["metric"]: row for row in shown["rows"]}
    assert rows["mean latency"]["measured"] == pytest.approx(6.5)
    assert rows["makespan"]["measured"] == pytest.approx(65.0)
    assert rows["throughput"]["measured"] == pytest.approx(10 / 65.0)
    assert rows["mean latency"]["noise"] == pytest.approx(0.1)
    assert "pipeline_error" not in rows["mean latency"]
    assert any("no new prediction" in note for note in shown["notes"])
    assert (first / "report.html").exists()


def test_a_real_engine_is_not_called_simulated(tmp_path):
    """The loud note stands only where engines were simulated."""
    for engine, expected in (("simulated", True), ("vllm", False)):
        folder = make_run(tmp_path / engine, engine)
        assert run_line(["report", str(folder)]) == 0
        assert ("SIMULATED" in (folder / "report.html").read_text()) is expected


def test_an_unfinished_run_has_no_report(tmp_path, capsys):
    """Exit code 2 and no file while nothing was measured."""
    folder = make_run(tmp_path / "a")
    (folder / "measured.json").unlink()
    assert run_line(["report", str(folder)]) == 2
    assert "has not ended" in capsys.readouterr().err
    assert not (folder / "report.html").exists()
