"""One engine instance as a process group: started, found ready, stopped without leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import aiohttp
import psutil

from scepsy_hpc.cluster import guard
from scepsy_hpc.cluster.cpu_slices import SliceGroup, make_group, quota_cores
from scepsy_hpc.cluster.leftovers import ENGINE_MARK, lives, marked
from scepsy_hpc.engines import vllm
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.probe import Readiness, ask
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.parallelism import is_cpu_type

ENGINES = ("vllm", "simulated")
# The key of an engine is its own: not one that this environment has for something else.
_NOT_INHERITED = ("VLLM_API_KEY",)
NUM_LOG_LINES = 15
_NOT_ASKED = "not asked yet"


class EngineProcess:
    """A running engine. Start with :meth:`start`; always :meth:`stop` it."""

    def __init__(
        self,
        config: EngineConfig,
        popen: subprocess.Popen[bytes],
        group: SliceGroup | None,
        mark: str,
    ) -> None:
        self.config = config
        self._mark = mark
        self._popen = popen
        self._leader = psutil.Process(popen.pid)
        self._group = group

    @classmethod
    def start(cls, config: EngineConfig) -> EngineProcess:
        """Start the engine in a session of its own, its output in ``config.log_path``.

        Returns at once. If this process dies, however it dies, the engine dies with it. An engine
        on CPU slices gets a cgroup, whose quota holds from when it is ready.
        Raises InputError for an unknown engine or argument, RunError if it cannot be started.
        """
        command, environment = start_line(config)
        config.log_path.parent.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-I", "-S", guard.__file__, *command]
        inherited = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        mark = uuid.uuid4().hex
        group = _slice_group(config)
        if group is not None:
            line = group.enter_command(line)
        with config.log_path.open("ab") as log:
            try:
                popen = subprocess.Popen(
                    line,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=inherited | environment | {ENGINE_MARK: mark},
                    start_new_session=True,
                )
            except OSError as error:
                raise RunError(
                    f"{config.instance_id}: cannot start {command[0]}: {error}"
                ) from None
        return cls(config, popen, group, mark)

    @property
    def pid(self) -> int:
        """Process id, process group and session of the instance: all three are the same."""
        return self._popen.pid

    @property
    def base_url(self) -> str:
        """Root of the HTTP API, without ``/v1``."""
        return f"http://{self.config.host}:{self.config.port}"

    def is_alive(self) -> bool:
        """Whether the engine runs. Looks at the process, never at the log."""
        return self._popen.poll() is None

    @property
    def end(self) -> str:
        """Its signal or exit code in words; only when it is not alive."""
        return _status(self._popen.poll())

    def kill(self) -> None:
        """SIGKILL to its group, without waiting: what hangs acts on nothing else."""
        guard.signal_group(self.pid)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once HTTP answers and one real token came back.

        Raises RunError with the last log lines when the process dies, when it answers what
        waiting cannot change, or when ``timeout_s`` has passed.
        """
        until = time.monotonic() + timeout_s
        pause_s = 0.05
        reason = _NOT_ASKED
        async with aiohttp.ClientSession() as session:
            while (left_s := until - time.monotonic()) > 0:
                if not self.is_alive():
                    raise self._error(f"died with {_status(self._popen.returncode)}")
                asking = asyncio.ensure_future(ask(session, self.config, self.base_url, left_s))
                answer = await self._unless_dead(asking)
                if answer is not None and answer.ready and self.is_alive():
                    self._hold_to_quota()
                    return
                if answer is not None and answer.final:
                    raise self._error(answer.reason)
                # What was cut off by the end of our patience says less than the answer before.
                if answer is not None and (time.monotonic() < until or reason == _NOT_ASKED):
                    reason = answer.reason
                await asyncio.sleep(min(pause_s, max(left_s, 0.0)))
                pause_s = min(pause_s * 1.5, 0.5)
        raise self._error(f"not ready after {timeout_s:g} s: {reason}")

    async def _unless_dead(self, asking: asyncio.Future[Readiness]) -> Readiness | None:
        """The result of ``asking``; None, with ``asking`` cancelled, once the process is dead."""
        try:
            while not asking.done():
                await asyncio.wait([asking], timeout=0.2)
                if not asking.done() and not self.is_alive():
                    return None
            return asking.result()
        finally:
            asking.cancel()

    def _hold_to_quota(self) -> None:
        if self._group is not None:
            self._group.limit(quota_cores(self.config.tp_degree, self.config.gpu_share_pct))

    def _error(self, what: str) -> RunError:
        lines = last_lines(self.config.log_path, NUM_LOG_LINES)
        log = "\n  ".join(lines) if lines else "(empty)"
        return RunError(
            f"{self.config.instance_id} ({self.config.engine} {self.config.model}): {what}; "
            f"last lines of {self.config.log_path}:\n  {log}"
        )

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the whole process group: SIGTERM, and SIGKILL to what is left after ``grace_s``.

        Also ends children and orphans that left the group. Stopping twice does no harm. Raises
        RunError when some survive even SIGKILL.
        """
        if self._group is not None:
            self._group.lift()  # shutting down is work, too
        members = self._members()
        self._signal(members, signal.SIGTERM)
        members = await self._wait_gone(members, grace_s)
        if members:
            self._signal(members, signal.SIGKILL)
            members = await self._wait_gone(members, 10.0)
        self._popen.poll()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        if members:
            pids = ", ".join(str(p.pid) for p in members)
            raise RunError(f"{self.config.instance_id}: processes {pids} survive SIGKILL")
        if self._group is not None:
            self._group.remove()
            self._group = None

    def _members(self) -> set[psutil.Process]:
        """Every live process of the session, and what left it: by family, by the mark."""
        found = marked(ENGINE_MARK, self._mark)
        if self.is_alive():
            found.add(self._leader)
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update(self._leader.children(recursive=True))
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid:
                    found.add(process)
            except (ProcessLookupError, PermissionError):
                continue
        return {process for process in found if lives(process)}

    def _signal(self, members: set[psutil.Process], number: signal.Signals) -> None:
        guard.signal_group(self.pid, number)
        for process in members:
            try:
                if os.getpgid(process.pid) != self.pid:
                    process.send_signal(number)  # refuses a pid that was given to another process
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue

    async def _wait_gone(self, members: set[psutil.Process], limit_s: float) -> set[psutil.Process]:
        until = time.monotonic() + limit_s
        pause_s = 0.02
        while True:
            self._popen.poll()
            left = {process for process in members if lives(process)} | self._members()
            if not left or time.monotonic() >= until:
                return left
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.3)


def start_line(config: EngineConfig) -> tuple[list[str], dict[str, str]]:
    """Command and extra environment of an instance. Raises InputError."""
    if config.engine == "vllm":
        return vllm.vllm_start(config)
    if config.engine == "simulated":
        from scepsy_hpc.engines.simulated import (
            command,  # late: it serves HTTP, this only starts it
        )

        return command.simulated_command(config), {command.API_KEY_VARIABLE: config.api_key or ""}
    raise InputError(
        f"{config.instance_id}: engine: unknown engine {config.engine!r}; "
        f"known: {', '.join(ENGINES)}"
    )


def _slice_group(config: EngineConfig) -> SliceGroup | None:
    if config.engine != "vllm" or not is_cpu_type(config.gpu_type):
        return None
    name = re.sub(r"\W", "_", config.instance_id)
    return make_group(f"{name}-{os.getpid()}-{config.port}")


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, for a person to read; empty when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 16_384))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-count:]


def _status(code: int | None) -> str:
    if code is not None and code > 128:
        try:
            return f"signal {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
