"""The group `scepsy`: help, the list of commands, and how each error ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import click
import pytest
from command_cases import BUNDLE, error_lines

from scepsy_hpc.cli.main import COMMANDS, run_line, scepsy


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_every_command(command, capsys):
    """--help ends with 0, starts with a usage line and says what the command does."""
    assert run_line([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: scepsy {command}")
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80


def test_python_m_equals_scepsy():
    """`python -m scepsy_hpc` is the same program, exit code included."""
    line = [sys.executable, "-m", "scepsy_hpc", "status", "/nowhere/at/all"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["frob"], ["frob"]),
        (["plan"], ["Missing option"]),
        (["topology", "-o", "t.yaml"], ["--local", "--slurm"]),
        (["status", "nowhere"], ["nowhere"]),
        (["run", "nowhere.yaml", "tasks.jsonl", "-o", "out"], ["nowhere.yaml", "no such file"]),
        (["simulate", "nowhere.yaml"], ["--rate"]),
        (["bundle", "list", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_usage_is_one_line(line, words, capsys, tmp_path, monkeypatch):
    """Exit code 2, one line on stderr that names what is wrong, and no file."""
    monkeypatch.chdir(tmp_path)
    assert run_line(line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: ")
    for word in words:
        assert word in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [[], ["bundle"], ["spans"]])
def test_a_group_alone_shows_its_help(line, capsys):
    """Exit code 2: the help on stderr, and one line that says what is missing."""
    assert run_line(line) == 2
    assert error_lines(capsys) == [
        f"error: {' '.join(['scepsy', *line])}: give one of the commands above"
    ]


def test_the_list_of_commands_is_whole(capsys):
    """Each command stands in `scepsy --help` with a full line, none cut off."""
    assert run_line(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.split("Commands:")[1]
    for name, line in COMMANDS.items():
        assert f"{name} " in shown
        assert line in shown
        assert scepsy.get_command(click.Context(scepsy), name) is not None


def test_a_slip_of_the_pen_is_answered_with_the_nearest_command(capsys):
    """An unknown command is named, with the one that was meant."""
    assert run_line(["plann"]) == 2
    assert "did you mean 'plan'?" in error_lines(capsys)[0]


def test_a_full_disk_is_no_bug(tmp_path, capsys, monkeypatch):
    """Exit code 1 and the system's reason; the old file stays, no part of a new one."""
    out = tmp_path / "ours.tar.gz"
    out.write_text("old")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(os, "replace", full)
    assert run_line(["bundle", "export", str(BUNDLE), "-o", str(out)]) == 1
    assert error_lines(capsys) == [f"error: {out}: No space left on device"]
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
