"""Stands between a parent and a server: when the parent dies, all that the server started dies.

    python guard.py COMMAND...

Its standard input is a pipe that only the parent holds open, so end of file means that the parent
is gone, however it went. What leaves the process group (``setsid``) stays below the guard, which
adopts orphans where the system can (Linux). Run as a script: imports nothing of the package and
starts in no time.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_MANY_ROUNDS = 200


def signal_group(leader: int, number: int = signal.SIGKILL) -> None:
    """Signal a process group; one that is empty or another user's is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def stand_guard() -> int:
    # SIGTERM goes to the whole group: the server acts on it, the guard waits for the server.
    # A handler, because exec resets it for the server, while an ignored signal stays ignored.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    ended, parent = os.pidfd_open(server.pid), sys.stdin.fileno()
    while True:
        readable, _, _ = select.select([parent, ended, woken], [], [])
        if ended in readable or parent in readable:
            break
        os.read(woken, 4096)
        _reap_adopted(server.pid)
    _kill_below(os.getpid(), server.pid)
    if ended not in readable:
        signal_group(os.getpgid(0))
    status = server.wait()
    # The shell's convention, so that the parent can name the signal.
    return status if status >= 0 else 128 - status


def _reap_adopted(server: int) -> None:
    """Take ended orphans off the process table; how the server ends is asked later."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid == server:
                return
            os.waitpid(found.si_pid, os.WNOHANG)


def _kill_below(pid: int, server: int) -> None:
    """SIGKILL to every descendant, those too that are born meanwhile; leaves no zombie of them."""
    killed = set[int]()
    for _ in range(_MANY_ROUNDS):
        found = _descendants(pid)
        for one in killed - {server}:
            with contextlib.suppress(OSError):
                os.waitpid(one, os.WNOHANG)
        if not found:
            return
        for one in found:
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)
        killed |= found
        time.sleep(0.01)


def _descendants(pid: int) -> set[int]:
    """Living ones, by the process table; empty where there is none to read."""
    parents = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{int(name)}/stat", "rb") as stream:
                state, parent = stream.read().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                parents[int(name)] = int(parent)
    found, edge = set[int](), {pid}
    while edge:
        edge = {one for one, parent in parents.items() if parent in edge} - found
        found |= edge
    return found


if __name__ == "__main__":
    sys.exit(stand_guard())
