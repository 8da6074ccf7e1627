"""Agents that are commands: one task's JSON on stdin, its result's JSON on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from scepsy_hpc.cluster.guard import signal_group
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.limits import MAX_RESULT_BYTES, parsed_json
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.nursery import clean_environment, died, open_log

MAX_STDERR_BYTES = 1 << 20
"""Of what a command writes to stderr so much goes to the log of a task."""


def check_command(agent: Agent) -> None:
    """Raise InputError when the agent's program cannot be found."""
    program = _argv(agent)[0]
    # A relative path is relative to the agent's folder; a bare name is looked up in PATH.
    place = str(Path(agent.folder or ".") / program) if "/" in program else program
    if shutil.which(place) is None:
        where = f"in {agent.folder}" if "/" in program else "in PATH"
        raise InputError(f"agent.command: {program!r} is no program {where}; give one that is")


async def run_command(
    agent: Agent, task: dict[str, Any], env: dict[str, str], log_path: Path | None
) -> dict[str, Any]:
    """Run one task in a process of its own: `result` or `error`, and `cpu_s`, its CPU seconds.

    Kills what it leaves behind.
    """
    # Files, not pipes: a child that the command leaves behind would hold a pipe open. A disk that
    # is full (OSError) is not the agent's fault.
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(json.dumps(task).encode())
        given.seek(0)
        try:
            code, cpu_s = await _wait(agent, env, given, out, err)
        except OSError as error:
            what = f"the agent's command cannot be started: {error}"
            return {"error": what, "failure": "infra"}
        finally:
            complaint = _copy_to_log(task, err, log_path)
        if code != 0:
            what = f"the agent's command ended with code {code}: {complaint}"
            no_memory = complaint.startswith("MemoryError")
            failure = "infra" if no_memory else died(code)["failure"]
            return {"error": what, "failure": failure, "cpu_s": cpu_s}
        return _parse_result(out) | {"cpu_s": cpu_s}


def _argv(agent: Agent) -> list[str]:
    program, *rest = agent.command or ("",)
    return [sys.executable if program in ("python", "python3") else program, *rest]


async def _wait(
    agent: Agent, env: dict[str, str], given: IO[bytes], out: IO[bytes], err: IO[bytes]
) -> tuple[int, float]:
    """Exit code and CPU seconds of the process and of the children it has waited for."""
    process = subprocess.Popen(
        _argv(agent),
        cwd=agent.folder,
        env={**clean_environment(), **env},
        stdin=given,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )
    ended = _end_of(process)
    try:
        return await asyncio.shield(ended)
    finally:
        signal_group(process.pid)
        await ended


def _end_of(process: subprocess.Popen[bytes]) -> asyncio.Future[tuple[int, float]]:
    """Resolves when the process has ended. asyncio's own wait says nothing of CPU time."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[int, float]] = loop.create_future()

    def tell(code: int, cpu_s: float) -> None:
        if not ended.done():
            ended.set_result((code, cpu_s))

    def wait() -> None:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody asks any more.
            loop.call_soon_threadsafe(tell, process.returncode, used.ru_utime + used.ru_stime)

    # One thread a process, as asyncio has them too: a kernel before 5.3 has no pidfd.
    threading.Thread(target=wait, name=f"end-of-{process.pid}", daemon=True).start()
    return ended


def _copy_to_log(task: dict[str, Any], err: IO[bytes], log_path: Path | None) -> str:
    """Append what the command wrote to stderr; return its last line."""
    text = _last_bytes(err, MAX_STDERR_BYTES).strip()
    if text:
        # A log that cannot be written costs no task its result.
        with contextlib.suppress(OSError), open_log(log_path) as log:
            if not isinstance(log, int):
                log.write(f"task {task.get('task_id')}:\n".encode() + text + b"\n")
    lines = text.decode(errors="replace").splitlines()
    return lines[-1] if lines else "it wrote nothing to stderr"


def _last_bytes(stream: IO[bytes], most: int) -> bytes:
    """The last of what a file holds; of a longer one without the line that is cut."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - most, 0))
    if size > most:
        stream.readline()
    return stream.read()


def _parse_result(out: IO[bytes]) -> dict[str, Any]:
    """The whole output as JSON, or, where more was printed, its last line."""
    text, reason = _last_bytes(out, MAX_RESULT_BYTES).decode(errors="replace").strip(), ""
    if not text and out.tell():
        reason = f" of at most {MAX_RESULT_BYTES} bytes"
    for part in (text, text.rpartition("\n")[2]):
        try:
            return {"result": parsed_json(part)}
        except json.JSONDecodeError:
            continue
        except ValueError as error:
            reason = f" ({error})"
    shown = text if len(text) <= 80 else text[:77] + "..."
    what = f"the agent's stdout does not end with one line of JSON{reason}: {shown!r}"
    return {"error": what, "failure": "record"}
