"""Stands between a parent and an engine: when the parent dies, the whole process group dies.

    python guard.py COMMAND...

Its standard input is a pipe that only the parent holds open, so end of file means that the parent
is gone, however it went. Run as a script: imports nothing of the package and starts in no time.
"""

import os
import select
import signal
import subprocess
import sys


def main() -> int:
    # SIGTERM goes to the whole group: the engine acts on it, the guard waits for the engine.
    # A handler, because exec resets it for the engine, while an ignored signal stays ignored.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    engine = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(engine.pid)
    readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
    if ended not in readable:
        os.killpg(os.getpgid(0), signal.SIGKILL)
    status = engine.wait()
    # The shell's convention, so that the parent can name the signal.
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
