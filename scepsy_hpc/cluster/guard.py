"""Stands between a parent and a server: when the parent dies, the whole process group dies.

    python guard.py COMMAND...

Its standard input is a pipe that only the parent holds open, so end of file means that the parent
is gone, however it went. Run as a script: imports nothing of the package and starts in no time.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys


def signal_group(leader: int, number: int = signal.SIGKILL) -> None:
    """Signal a process group; one that is empty or another user's is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def stand_guard() -> int:
    # SIGTERM goes to the whole group: the server acts on it, the guard waits for the server.
    # A handler, because exec resets it for the server, while an ignored signal stays ignored.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(server.pid)
    readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
    if ended not in readable:
        signal_group(os.getpgid(0))
    status = server.wait()
    # The shell's convention, so that the parent can name the signal.
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(stand_guard())
