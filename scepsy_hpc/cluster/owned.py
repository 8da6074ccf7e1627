"""Whose is it? Checks by descriptor of what would run code, or be believed, if it were read.

A folder that lies in a directory of a group can be swapped by anyone of that group between a check
and a use. So the folder is opened first and the open descriptor is asked: of a folder that is the
user's own and that nobody else may write to, every file in it is the user's own, too.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import BinaryIO

from scepsy_hpc.errors import InputError

PRIVATE = 0o700


def open_own_folder(path: Path) -> int:
    """Descriptor of a folder that is the user's own and closed to all others.

    Raises InputError where it is another's, open to others, no folder, or a link of another's.
    """
    refuse_planted_link(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened as a folder: {error.strerror}") from None
    try:
        _refuse_another_s(path, os.fstat(descriptor), PRIVATE ^ 0o777)
    except InputError:
        os.close(descriptor)
        raise
    return descriptor


def make_own_folder(path: Path) -> None:
    """Make a folder that only the user can enter, whatever the umask; take an own one as it is.

    An own folder that others may read is closed to them. Raises InputError where it is another's,
    or others may write to it: what lies there may be theirs.
    """
    refuse_planted_link(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=PRIVATE, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from None
    try:
        _refuse_another_s(path, os.fstat(descriptor), 0o022)
        os.fchmod(descriptor, PRIVATE)
    except OSError as error:
        raise InputError(f"{path}: cannot be closed to others: {error.strerror}") from None
    finally:
        os.close(descriptor)


def check_folder(path: Path) -> None:
    """Refuse what `make_own_folder` would refuse; a folder that is not there yet is fine.

    Writes nothing. Raises InputError.
    """
    refuse_planted_link(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be looked at: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: is no folder; give another one")
    _refuse_another_s(path, found, 0o022)


def open_own(path: Path) -> BinaryIO:
    """Open a file that is the user's own and that no other may write to.

    Raises InputError where it is not, OSError where it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is no plain file; remove it")
        # The mode of a file in a folder of the user's own is the umask's; its owner is what counts.
        _refuse_another_s(path, found, 0)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_planted_link(path: Path) -> None:
    """A link that another user made may lead anywhere. Raises InputError."""
    try:
        found = path.lstat()
    except OSError:
        return
    if stat.S_ISLNK(found.st_mode) and found.st_uid != os.geteuid():
        raise InputError(
            f"{path}: is a link that {user_name(found.st_uid)} made; give a folder of your own"
        )


def user_name(uid: int) -> str:
    """Name of a user; the number where it has none here."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _refuse_another_s(path: Path, found: os.stat_result, closed: int) -> None:
    """``closed``: permission bits that must not be set."""
    if found.st_uid != os.geteuid():
        raise InputError(
            f"{path}: belongs to {user_name(found.st_uid)}, not to you; give a folder of your own"
        )
    if found.st_mode & closed:
        mode = stat.S_IMODE(found.st_mode)
        raise InputError(
            f"{path}: others may write to it or look into it (mode {mode:o}), so what lies there "
            f"may be theirs; if all of it is yours run `chmod -R go-rwx {path}`, or give another"
        )
