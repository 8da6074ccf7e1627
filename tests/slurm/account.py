"""The unprivileged user whose jobs run on the mini cluster, and what it may reach.

A checkout, a virtual environment or the interpreter beneath it often lies in a home directory of
mode 0700, and a job that cannot start Python says nothing useful. Rather than copy them or open
the directory to all, the user gets search permission (an ACL entry ``x``) on just those parent
directories that deny it: it may pass through them and list nothing. The entries stay, as the user
does; ``setfacl -x u:scepsy-test DIRECTORY`` and ``userdel scepsy-test`` undo both.
"""

from __future__ import annotations

import pwd
import stat
import subprocess
from collections import deque
from collections.abc import Iterable
from pathlib import Path

USER_NAME = "scepsy-test"


def ensure_user(name: str = USER_NAME) -> pwd.struct_passwd:
    """The account ``name``, created as a system user without a home where it is missing."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/nonexistent", "--shell", "/bin/bash", name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 9):  # 9: another start was faster
        raise RuntimeError(f"cannot create the user {name}: {done.stderr.strip()}")
    return pwd.getpwnam(name)


def let_pass(account: pwd.struct_passwd, paths: Iterable[Path]) -> list[Path]:
    """Lets the user pass through every directory on the way to ``paths``.

    Returns the directories that needed the ACL entry: none where all of them let everybody pass.
    Raises RuntimeError naming the directory where the file system refuses.
    """
    closed = [
        directory
        for directory in sorted({step for path in paths for step in directories_on_the_way(path)})
        if not directory.stat().st_mode & stat.S_IXOTH
    ]
    for directory in closed:
        command = ["setfacl", "-m", f"u:{account.pw_name}:x", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"{directory} keeps the user {account.pw_name} out, and setfacl failed "
                f"({done.stderr.strip()}); run chmod o+x on it, or use a checkout and a Python "
                "that every user can reach"
            )
    return closed


def directories_on_the_way(path: Path) -> set[Path]:
    """Directories the kernel searches to open ``path``, those behind symbolic links included."""
    path.resolve(strict=True)  # no loop and no missing part, so that the walk below ends
    passed: set[Path] = set()
    here, ahead = Path("/"), deque(path.absolute().parts[1:])
    while ahead:
        passed.add(here)
        step = here / ahead.popleft()
        if step.name == "..":
            here = here.parent
        elif step.is_symlink():
            target = step.readlink()
            here = Path("/") if target.is_absolute() else here
            ahead.extendleft(reversed([part for part in target.parts if part != "/"]))
        else:
            here = step
    return passed
