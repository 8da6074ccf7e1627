"""Functions that tests submit; in a module of their own, so that a task can import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from scepsy_hpc.cluster.jobs.tasks import rank
from scepsy_hpc.errors import RunError


def ask_rank(_: Any) -> tuple[int, int]:
    return rank()


def environ_of_task(_: Any) -> dict[str, str]:
    return dict(os.environ)


def fail(message: str) -> None:
    raise RunError(message)


def die(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_after_marking(path: Path) -> None:
    path.write_text("started")
    time.sleep(600)
