"""jobs/*.sbatch: submitted as they are, so they must be right as they are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from scepsy_hpc.cli.main import scepsy

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.sbatch"))


def commands_of(text: str) -> list[list[str]]:
    """The scepsy lines of a script, continuations joined, as words."""
    joined = text.replace("\\\n", " ")
    return [line.split() for line in joined.splitlines() if line.startswith("scepsy ")]


def test_there_is_a_job_for_each_stage():
    """Profiling, planning and running a batch each have their file."""
    assert [path.stem for path in JOBS] == ["plan", "profile", "run"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_is_shell_that_reads_on_one_page(path):
    """Each file is correct bash, one page long, and stops at the first error."""
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert "set -euo pipefail" in text


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_uses_commands_and_options_that_exist(path):
    """Each scepsy line of a file names a command and options that its --help lists."""
    commands = commands_of(path.read_text())
    assert commands
    for words in commands:
        name = words[1 : 3 if words[1] == "bundle" else 2]
        shown = CliRunner().invoke(scepsy, [*name, "--help"])
        assert shown.exit_code == 0, shown.output
        for option in (word for word in words if re.match(r"-\w|--\w", word)):
            assert re.search(rf"{option}\b", shown.output), f"{path.name}: {option}"
