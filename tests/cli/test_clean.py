"""`clean`: what goes, how much, and nothing else."""

from __future__ import annotations

import json

import pytest
import serving_cases as cases
from command_cases import error_lines

from scepsy_hpc.cli.main import run_line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A batch that was worked off on this machine, and the command that did it."""
    folder = tmp_path_factory.mktemp("run")
    instances = {"s0": ("small", "a", (0,)), "l0": ("large", "a", (1,))}
    plan, tasks = cases.make_case(folder, instances, 3)
    line = ["run", str(plan), str(tasks), "-o", str(folder / "out")]
    assert run_line(line) == 0
    return folder / "out", line


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_clean_resume_and_report_of_a_real_run(finished, capsys):
    """A dry run removes nothing; cleaning leaves what --resume and status need."""
    out, line = finished
    before = files(out)
    assert run_line(["clean", str(out), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["removed"] is False
    assert told["num_bytes"] > 0
    assert files(out) == before
    assert run_line(["clean", str(out)]) == 0
    shown = capsys.readouterr()
    assert "MiB" in shown.out
    assert "removed" in shown.err
    gone = before - files(out)
    assert gone
    assert all(name.startswith(("private/", "logs/")) for name in gone)
    assert run_line(["clean", str(out)]) == 0
    assert "nothing to remove" in capsys.readouterr().err
    assert run_line(["status", str(out)]) == 0
    assert run_line([*line, "--resume"]) == 0
    cases.assert_each_once(out, line[2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a results folder, or --weights"),
        (["nowhere"], "holds no status.json"),
        (["nowhere", "--site", "site.yaml"], "add --weights"),
    ],
)
def test_bad_usage(words, said, capsys, tmp_path, monkeypatch):
    """One line, exit code 2."""
    monkeypatch.chdir(tmp_path)
    assert run_line(["clean", *words]) == 2
    assert said in error_lines(capsys)[0]


def test_weights_alone(tmp_path, capsys):
    """Without a folder only the copies on this machine's scratch disk go."""
    site = tmp_path / "site.yaml"
    site.write_text(f"schema: scepsy/site/v1\nscratch: {tmp_path}\n")
    assert run_line(["clean", "--weights", "--site", str(site)]) == 0
    assert "nothing to remove" in capsys.readouterr().err
