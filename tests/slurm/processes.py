"""Starting daemons so that they outlive us, and finding every process of a cluster again.

A process belongs to a cluster when its environment names the cluster's slurm.conf: Slurm hands
``SLURM_CONF`` down to the job steps and their children, so this also finds what a dead daemon
left behind. Processes are remembered by pid and creation time, since pids are used again.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

NODE_MARK = "MINI_SLURM_NODE"  # in the environment of a slurmd and of the step daemons it starts


@dataclass(frozen=True, slots=True)
class Daemon:
    """One started daemon; ``create_time_s`` is Unix time as psutil gives it."""

    name: str
    pid: int
    create_time_s: float

    def process(self) -> psutil.Process | None:
        """The live process, or None when it ended (a zombie has ended)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time_s) < 0.1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def launch(name: str, command: list[str], env: dict[str, str], log: Path) -> Daemon:
    """Starts ``command`` in a session of its own with its output appended to ``log``."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    daemon = Daemon(name, child.pid, psutil.Process(child.pid).create_time())
    # Reaped by end() when we are still its parent, else by init: not Popen's business any more.
    child.returncode = 0
    return daemon


def end(processes: list[psutil.Process], patience_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL for what is left after ``patience_s``; returns when all are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    kill(alive)


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, as when the power fails; returns when all are gone.

    All stop first: srun's shepherd, say, would have the step killed on every node in the moment
    between the death of srun and its own.
    """
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def of_cluster(
    slurm_conf: Path, node: str | None = None, spared: frozenset[int] = frozenset()
) -> list[psutil.Process]:
    """Live processes of the cluster (of one of its nodes), with the children that hide.

    Leaves out this process and its ancestors (a shell may have exported SLURM_CONF by hand), and
    the pids ``spared`` with their direct children.
    """
    us = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            env = process.environ()
            if env.get("SLURM_CONF") != str(slurm_conf):
                continue
            if node is None or node in (env.get(NODE_MARK), env.get("SLURMD_NODENAME")):
                members = [process, *process.children(recursive=True)]
                found |= {member.pid: member for member in members}
    return [p for pid, p in found.items() if pid not in us and _lives(p, spared)]


def _lives(process: psutil.Process, spared: frozenset[int]) -> bool:
    try:
        dead = process.status() == psutil.STATUS_ZOMBIE
        return not dead and not spared & {process.pid, process.ppid()}
    except psutil.NoSuchProcess:
        return False
