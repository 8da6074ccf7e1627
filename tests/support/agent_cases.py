"""Agents of the tests that run some: written into a folder, run, and looked for afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool


def write_agent(folder: Path, text: str, name: str = "my_agent") -> Path:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def with_pool(
    agent: Agent,
    test: Callable[[AgentPool], Awaitable[Any]],
    num_workers: int = 2,
    log_path: Path | None = None,
) -> Any:
    """Run ``test`` with a pool, within 60 s; then no process may be left in the agent's folder."""

    async def main() -> Any:
        async with AgentPool(agent, num_workers, log_path) as pool:
            return await asyncio.wait_for(test(pool), 60)

    result = asyncio.run(main())
    deadline = time.monotonic() + 20
    while left := processes_in(str(agent.folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    return result


def processes_in(folder: str) -> list[psutil.Process]:
    """Living processes whose working directory is ``folder``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == folder:
                found.append(process)
    return found


def run_tasks(agent: Agent, *tasks: dict[str, Any], **options: Any) -> list[AgentOutcome]:
    """Outcomes of tasks run one after the other."""

    async def test(pool: AgentPool) -> list[AgentOutcome]:
        return [await pool.run({"task_id": "t", **task}, {}) for task in tasks]

    found: list[AgentOutcome] = with_pool(agent, test, **options)
    return found
