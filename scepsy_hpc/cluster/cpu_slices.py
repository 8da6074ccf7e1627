"""CPU slices: virtual GPUs for engines that run on CPUs, held by cgroup CPU quotas.

A machine of few cores offers nothing to plan if a GPU is a core. A GPU of type ``cpu_slice`` is a
fixed fraction of one core instead: an instance gets ``SLICE_CORES`` x tp_degree x share for all
its processes together. The quota is lifted while the engine starts. cgroup v1 and v2.

Jobs are unprivileged, so root (the set-up of a test cluster) first makes a folder of theirs with
:func:`delegate`, moves the daemon that starts jobs into it with :func:`enter`, and names it in the
environment variable ``SCEPSY_CPU_SLICE_CGROUP``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.errors import InputError, RunError

SLICE_CORES = 0.35
PARENT_VARIABLE = "SCEPSY_CPU_SLICE_CGROUP"
# Short against the 100 ms that is usual: a throttled engine stalls for most of a period, and a
# token should not have to wait that long.
PERIOD_S = 0.02
MIN_QUOTA_US = 1000  # the kernel refuses less

_OUTSIDE = "outside"
# $0 is the group's cgroup.procs. Refused on v2 when the caller is outside the delegated folder.
_ENTER = """echo $$ > "$0" || { echo "cannot enter $0: see cpu_slices.enter" >&2; exit 126; }
exec "$@"
"""
_V1_ROOTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"))
_V2_ROOT = Path("/sys/fs/cgroup")


def quota_cores(tp_degree: int, gpu_share_pct: int) -> float:
    """Cores that an instance on ``tp_degree`` slices may use, at this share of each."""
    return SLICE_CORES * tp_degree * gpu_share_pct / 100


@dataclass(frozen=True, slots=True)
class SliceGroup:
    """The cgroup of one engine instance."""

    path: Path

    def enter_command(self, command: list[str]) -> list[str]:
        """The command that enters this group and then becomes ``command``.

        Whatever it starts is then in the group from its first instruction on.
        """
        return ["/bin/sh", "-c", _ENTER, str(self.path / "cgroup.procs"), *command]

    def limit(self, cores: float) -> None:
        """Hold the group to ``cores`` (a fraction is usual) from now on."""
        period_us = round(PERIOD_S * 1e6)
        quota_us = max(MIN_QUOTA_US, round(cores * period_us))
        if _is_v2(self.path):
            _write(self.path / "cpu.max", f"{quota_us} {period_us}")
        else:
            _write(self.path / "cpu.cfs_period_us", str(period_us))
            _write(self.path / "cpu.cfs_quota_us", str(quota_us))

    def lift(self) -> None:
        """Take the quota away, as while an engine starts."""
        if _is_v2(self.path):
            _write(self.path / "cpu.max", "max")
        else:
            _write(self.path / "cpu.cfs_quota_us", "-1")

    def remove(self, timeout_s: float = 5.0) -> None:
        """Remove the group once its processes are gone; a group already removed is fine.

        Raises RunError when processes are left after ``timeout_s``.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                self.path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:  # EBUSY: an ended process leaves its group a little later
                if time.monotonic() >= until:
                    raise RunError(f"{self.path}: cannot be removed: {error.strerror}") from None
            time.sleep(0.05)


def make_group(name: str, environ: Mapping[str, str] = os.environ) -> SliceGroup:
    """A new group without quota for the instance ``name``. Raises InputError where it cannot be."""
    parent = find_parent(environ)
    path = parent / name
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(_refused(path, error)) from None
    group = SliceGroup(path)
    group.lift()
    return group


def find_parent(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder under which groups are made: what ``SCEPSY_CPU_SLICE_CGROUP`` names.

    Without it, the root of the CPU controller, which only root may write to. Raises InputError
    where no quota can be set.
    """
    named = environ.get(PARENT_VARIABLE)
    if named and not _has_cpu_controller(Path(named)):
        raise InputError(
            f"{PARENT_VARIABLE}: {named} is not a cgroup with the cpu controller; {_ADVICE}"
        )
    parent = Path(named) if named else controller_root()
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"gpu_type cpu_slice: {parent} is not writable for user {os.getuid()}; {_ADVICE}"
        )
    return parent


def controller_root() -> Path:
    """Where the CPU controller is mounted. Raises InputError when it is nowhere."""
    for root in (*_V1_ROOTS, _V2_ROOT):
        if _has_cpu_controller(root):
            return root
    raise InputError(f"gpu_type cpu_slice: no cgroup CPU controller is mounted; {_ADVICE}")


def delegate(parent: Path, uid: int) -> None:
    """As root: make ``parent``, an absolute path in the cgroup file system, a folder of ``uid``'s.

    Groups with quotas can then be made below it by that user. Raises InputError when not allowed.
    """
    try:
        if parent.parent.joinpath("cgroup.subtree_control").exists():
            _write(parent.parent / "cgroup.subtree_control", "+cpu")
        parent.mkdir(exist_ok=True)
        if _is_v2(parent):
            _write(parent / "cgroup.subtree_control", "+cpu")
        outside = parent / _OUTSIDE
        outside.mkdir(exist_ok=True)
        for path in (parent, parent / "cgroup.procs", outside, outside / "cgroup.procs"):
            os.chown(path, uid, -1)
    except OSError as error:
        raise InputError(_refused(parent, error)) from None


def enter(parent: Path, pid: int) -> None:
    """As root: put a process, and so all it starts from now on, into the folder, without quota.

    On v2 a user may move a process only between groups of one delegated folder. On v1 this is
    not needed and does no harm.
    """
    _write(parent / _OUTSIDE / "cgroup.procs", str(pid))


_ADVICE = (
    f"run as root, or let root make a folder for you "
    f"(scepsy_hpc.cluster.cpu_slices.delegate) and name it in {PARENT_VARIABLE}"
)


def _is_v2(path: Path) -> bool:
    return path.joinpath("cgroup.controllers").exists()


def _has_cpu_controller(path: Path) -> bool:
    if _is_v2(path):
        return "cpu" in path.joinpath("cgroup.controllers").read_text().split()
    return path.joinpath("cgroup.procs").exists() and any(path.glob("cpu.*"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(_refused(path, error)) from None


def _refused(path: Path, error: OSError) -> str:
    return f"gpu_type cpu_slice: {path}: {error.strerror}; {_ADVICE}"
