"""The report as a page: what stands on it, and where it cannot be written."""

from __future__ import annotations

import re

from report_case import make_run, planned_run

from scepsy_hpc.cli.main import run_line


def test_a_report_says_what_the_prediction_rests_on(tmp_path):
    """Real engines are named with how their profile was made; flags stand there in words."""
    planned = planned_run(tmp_path)
    out = tmp_path / "report.html"
    assert run_line(["report", str(planned), "-o", str(out)]) == 0
    text = " ".join(re.sub(r"<[^>]+>", " ", out.read_text()).split())
    assert "SIMULATED" not in text
    assert "Qwen/Qwen3-8B by vllm 0.24.0 on h100_sxm, predicted from a modelled profile" in text
    assert "modelled, not measured" in text
    assert "capacity_lower_bound" not in text
    assert "time outside LLM calls" in text
    assert not (planned / "report.html").exists()


def test_a_bad_output_folder_leaves_nothing(tmp_path, capsys):
    """A report that cannot be written is one line and exit code 2."""
    folder = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert run_line(["report", str(folder), "-o", str(tmp_path / "file" / "r.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
