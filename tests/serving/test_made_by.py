"""An upgrade of the package in the middle of a batch goes on, or is refused in words."""

from __future__ import annotations

import json

import pytest
import serving_cases as cases

from scepsy_hpc import __version__
from scepsy_hpc.errors import InputError
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving.host import host
from scepsy_hpc.serving.made_by import (
    FOLDER_FORMAT,
    check_made_by,
    made_by_path,
    note_made_by,
)
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.serving.start import Start


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "out")
    made.create()
    return made


def written(folder):
    return json.loads(made_by_path(folder).read_text())


def say(folder, folder_format, *versions):
    text = json.dumps({"folder_format": folder_format, "versions": versions})
    made_by_path(folder).write_text(text)


def test_a_folder_notes_every_version_once(folder):
    """The first start notes its version, the next of the same says nothing, another is added."""
    assert note_made_by(folder) is None
    assert note_made_by(folder) is None
    assert written(folder) == {"folder_format": FOLDER_FORMAT, "versions": [__version__]}
    say(folder, FOLDER_FORMAT, "0.0.9")
    assert note_made_by(folder) == "0.0.9"
    assert written(folder)["versions"] == ["0.0.9", __version__]


def test_a_folder_of_before_is_gone_on_with(folder):
    """One without the note was made by a version that did not write it yet."""
    check_made_by(folder)


@pytest.mark.parametrize("other", [FOLDER_FORMAT + 1, 0])
def test_a_form_that_is_not_known_is_refused_in_words(folder, other):
    """One line: who used it last, that nothing is lost, and what to install."""
    say(folder, other, "0.1.0", "9.9.9")
    with pytest.raises(InputError) as caught:
        note_made_by(folder)
    said = str(caught.value)
    assert "\n" not in said
    for word in ("9.9.9", f"this is {__version__}", "is safe", "pip install scepsy-hpc==9.9.9"):
        assert word in said
    assert written(folder)["versions"] == ["0.1.0", "9.9.9"]


def test_neither_a_resume_nor_a_queued_job_touches_it(tmp_path):
    """The command refuses before it writes, and a job that had waited refuses as it starts."""
    plan, tasks = cases.make_case(tmp_path, {"s0": ("small", "a", (0,))}, 1)
    out = tmp_path / "out"
    folder = runs.prepare(plan, tasks, out, RunSettings())
    assert written(folder)["versions"] == [__version__]
    say(folder, FOLDER_FORMAT + 1, "9.9.9")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"9\.9\.9"):
        runs.prepare(plan, tasks, out, RunSettings(), resume=True)
    with pytest.raises(InputError, match=r"9\.9\.9"):
        host(Start(str(out), "attempt", pretended=True))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_upgrade_is_said(tmp_path, capsys):
    """A resume by another version of the same form goes on and names the one before."""
    plan, tasks = cases.make_case(tmp_path, {"s0": ("small", "a", (0,))}, 1)
    folder = runs.prepare(plan, tasks, tmp_path / "out", RunSettings())
    say(folder, FOLDER_FORMAT, "0.0.9")
    runs.prepare(plan, tasks, tmp_path / "out", RunSettings(), resume=True)
    assert "last used by scepsy-hpc 0.0.9; going on" in capsys.readouterr().err
