"""A CPU cgroup that the unprivileged user may divide: only root can make the first one.

Version 1 of the cpu controller, where a user may move its own processes into any group whose
``cgroup.procs`` it may write.
"""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from pathlib import Path

CPU_CONTROLLER = Path("/sys/fs/cgroup/cpu")


def delegate(owner: pwd.struct_passwd, name: str) -> Path:
    """Makes the group ``name`` in which the user can make groups with a ``cpu.cfs_quota_us``.

    Raises RuntimeError where the machine has no cpu controller of version 1.
    """
    if not (CPU_CONTROLLER / "cpu.cfs_period_us").exists():
        raise RuntimeError(f"no cpu controller of cgroup version 1 is mounted at {CPU_CONTROLLER}")
    group = CPU_CONTROLLER / name
    group.mkdir(exist_ok=True)
    for path in (group, group / "cgroup.procs", group / "tasks"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    return group


def remove(name: str) -> None:
    """Removes the group and those inside it; their processes must have ended."""
    group = CPU_CONTROLLER / name
    for inner, _, _ in os.walk(group, topdown=False):
        with suppress(FileNotFoundError):
            os.rmdir(inner)
