"""A stand-in for the Python that has vLLM, whose server misbehaves as the test says.

:func:`install` writes an executable to point SCEPSY_VLLM_PYTHON at; the rest of this file is what
it runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMAND = ["-m", "vllm.entrypoints.cli.main", "serve"]


def install(folder: Path, behaviour: str) -> Path:
    """An executable that behaves so: good, dies, late=N (dies in its first N starts, which it
    counts in STARTS_FILE), mute, status=NNN, no_token, stubborn or forks (leaves orphans).
    """
    path = folder / f"python-{behaviour}"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {behaviour} "$@"\n')
    path.chmod(0o755)
    return path


class Handler(BaseHTTPRequestHandler):
    status = 200
    num_tokens = 1

    def do_GET(self) -> None:
        self.reply(200, {"version": "0.32.0"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        usage = {"prompt_tokens": 1, "completion_tokens": self.num_tokens}
        self.reply(self.status, {"choices": [{"text": "a"}], "usage": usage})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        print("harmless line that says ERROR", flush=True)


def main() -> None:
    behaviour, *arguments = sys.argv[1:]
    if arguments[0] == "-c":
        print("0.32.0")
        return
    assert arguments[:3] == COMMAND, arguments
    if behaviour.startswith("late="):
        with Path(os.environ["STARTS_FILE"]).open("a") as starts:
            starts.write("x")
            is_late = starts.tell() > int(behaviour.partition("=")[2])
        behaviour = "good" if is_late else "dies"
    if behaviour == "dies":
        print("first line\nCUDA out of everything", flush=True)
        sys.exit(3)
    if behaviour == "mute":
        time.sleep(600)
    if behaviour.startswith("status="):
        Handler.status = int(behaviour.partition("=")[2])
    if behaviour == "no_token":
        Handler.num_tokens = 0
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        worker = [sys.executable, "-c", "import time; time.sleep(600)"]
        children = [subprocess.Popen(worker), subprocess.Popen(worker, start_new_session=True)]
        Path(os.environ["CHILDREN_FILE"]).write_text(" ".join(str(c.pid) for c in children))
    if behaviour == "forks":
        # Twice: the parent of what stays is gone, and it has a session of its own.
        orphan = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], stdout=s.DEVNULL).pid)"
        sleeper = ("-c", "import time; time.sleep(600)")
        for environment in (None, {}):
            line = [sys.executable, "-c", orphan, sys.executable, *sleeper]
            started = subprocess.run(
                line, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
            )
            with Path(os.environ["CHILDREN_FILE"]).open("a") as children:
                children.write(started.stdout)
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
