"""Agents that are commands: one task's JSON on stdin, its result's JSON on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from scepsy_hpc.cluster.guard import signal_group
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.nursery import clean_environment, open_log


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
    """Run one task in a process of its own: `result` or `error`. Kills what it leaves behind."""
    # Files, not pipes: a child that the command leaves behind would hold a pipe open.
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(json.dumps(task).encode())
        given.seek(0)
        try:
            code = await _wait(agent, env, given, out, err)
        except OSError as error:
            return {"error": f"the agent's command cannot be started: {error}"}
        finally:
            complaint = _copy_to_log(task, err, log_path)
        if code != 0:
            return {"error": f"the agent's command ended with code {code}: {complaint}"}
        out.seek(0)
        return _parse_result(out.read().decode(errors="replace").strip())


def _argv(agent: Agent) -> list[str]:
    program, *rest = agent.command or ("",)
    return [sys.executable if program in ("python", "python3") else program, *rest]


async def _wait(
    agent: Agent, env: dict[str, str], given: IO[bytes], out: IO[bytes], err: IO[bytes]
) -> int:
    process = await asyncio.create_subprocess_exec(
        *_argv(agent),
        cwd=agent.folder,
        env={**clean_environment(), **env},
        stdin=given,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )
    try:
        return await process.wait()
    finally:
        signal_group(process.pid)
        await process.wait()


def _copy_to_log(task: dict[str, Any], err: IO[bytes], log_path: Path | None) -> str:
    """Append what the command wrote to stderr; return its last line."""
    err.seek(0)
    text = err.read().strip()
    if text:
        with open_log(log_path) as log, contextlib.suppress(OSError):
            if not isinstance(log, int):
                log.write(f"task {task.get('task_id')}:\n".encode() + text + b"\n")
    lines = text.decode(errors="replace").splitlines()
    return lines[-1] if lines else "it wrote nothing to stderr"


def _parse_result(text: str) -> dict[str, Any]:
    """The whole output as JSON, or, where more was printed, its last line."""
    for part in (text, text.rpartition("\n")[2]):
        try:
            return {"result": json.loads(part, parse_constant=_no_constant)}
        except ValueError:
            continue
    shown = text if len(text) <= 80 else text[:77] + "..."
    return {"error": f"the agent's stdout does not end with one line of JSON: {shown!r}"}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
