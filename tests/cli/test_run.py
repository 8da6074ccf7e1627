"""`run`: what cannot run is refused, and leaves no folder."""

from __future__ import annotations

from command_cases import error_lines
from report_case import plan_of

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.formats.plan import save_plan


def test_a_plan_that_cannot_run_is_refused_before_anything_is_written(tmp_path, capsys):
    """No agent: exit code 2 naming the workflow, and no results folder."""
    plan, tasks = tmp_path / "plan.yaml", tmp_path / "tasks.jsonl"
    save_plan(plan, plan_of("simulated"))
    tasks.write_text('{"task_id": "a"}\n')
    assert run_line(["run", str(plan), str(tasks), "-o", str(tmp_path / "out")]) == 2
    assert "agent: missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_never_submitted_leaves_no_folder(tmp_path, capsys, monkeypatch):
    """--cluster here outside an allocation: exit code 2, and no results folder."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    plan, tasks, out = tmp_path / "plan.yaml", tmp_path / "tasks.jsonl", tmp_path / "out"
    plan.write_text(
        "schema: scepsy/plan/v1\n"
        "workflows: [{name: w, llms: {a: a}, agent: {command: [cat]}}]\n"
        "llms: {a: {model: m, engine: simulated, gpu_type: h100_sxm, tp_degree: 1, "
        "gpu_share_pct: 100, num_replicas: 1}}\n"
        "instances: [{id: a0, llm: a, node: n, gpus: [0], gpu_share_pct: 100}]\n"
    )
    tasks.write_text('{"task_id": "t"}\n')
    assert run_line(["run", str(plan), str(tasks), "-o", str(out), "--cluster", "here"]) == 2
    assert "SLURM_JOB_ID" in error_lines(capsys)[0]
    assert not out.exists()
