"""Folders and files of others are refused, whatever the umask made of one's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from scepsy_hpc.cluster.owned import (
    check_folder,
    make_own_folder,
    open_own,
    open_own_folder,
)
from scepsy_hpc.errors import InputError


@pytest.fixture
def open_umask():
    """The umask of many sites: what is made is writable by the group."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.fixture
def as_another(monkeypatch):
    """Seen by another user: everything here belongs to somebody else."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_a_folder_is_closed_whatever_the_umask(tmp_path):
    """A new folder is 0700, and so is an own one that others could read."""
    made = tmp_path / "group" / "results"
    make_own_folder(made)
    assert mode(made) == 0o700
    assert mode(made.parent) == 0o775  # the group's folder stays the group's
    readable = tmp_path / "readable"
    readable.mkdir(mode=0o755)
    check_folder(readable)
    make_own_folder(readable)
    assert mode(readable) == 0o700
    os.close(open_own_folder(readable))


@pytest.mark.parametrize("bits", [0o770, 0o722, 0o777, 0o2775])
def test_a_folder_that_others_may_write_to_is_refused(bits, tmp_path):
    """What lies in it may be theirs; nothing is changed, and the line says what to do."""
    folder = tmp_path / "results"
    folder.mkdir()
    folder.chmod(bits)
    for look in (make_own_folder, check_folder, open_own_folder):
        with pytest.raises(InputError, match=rf"results: .*mode {bits:o}.*chmod -R go-rwx"):
            look(folder)
    assert mode(folder) == bits


@pytest.mark.usefixtures("as_another")
def test_what_is_another_s_is_refused(tmp_path):
    """A folder, a file and a link of another user; the line names whose it is."""
    folder = tmp_path / "results"
    folder.mkdir(mode=0o700)
    for look in (make_own_folder, check_folder, open_own_folder):
        with pytest.raises(InputError, match="belongs to user"):
            look(folder)
    (folder / "file").write_text("planted")
    with pytest.raises(InputError, match="file: belongs to user"):
        open_own(folder / "file")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InputError, match=r"link: is a link that user .* made"):
        check_folder(tmp_path / "link")


def test_a_file_behind_a_link_or_a_pipe_is_refused(tmp_path):
    """Only plain files are read, and reading waits for nobody."""
    (tmp_path / "real").write_text("x")
    with open_own(tmp_path / "real") as stream:
        assert stream.read() == b"x"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic links"):
        open_own(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no plain file"):
        open_own(tmp_path / "pipe")


def test_no_folder_at_all(tmp_path):
    """A file in its place is named; nothing there is fine before, and an error at the node."""
    (tmp_path / "file").write_text("")
    for look in (check_folder, make_own_folder, open_own_folder):
        with pytest.raises(InputError, match="file"):
            look(tmp_path / "file")
    check_folder(tmp_path / "new")
    with pytest.raises(InputError, match="new: cannot be opened"):
        open_own_folder(tmp_path / "new")
