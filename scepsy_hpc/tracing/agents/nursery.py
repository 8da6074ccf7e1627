"""The parent's side of Python agents: one nursery process that forks, and its workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from scepsy_hpc.cluster.guard import signal_group
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.channel import receive, receive_answer
from scepsy_hpc.tracing.agents.worker import (
    FORK,
    ORDER,
    REAP,
    TAKE_OVER,
    WAIT,
    pack_message,
)

IMPORT_TIMEOUT_S = 300.0
# Between the end of a process's connection and its end as the kernel tells it.
DEATH_S = 2.0
# Sent to an agent's process by others: the kernel short of memory, Slurm, a person.
OTHERS_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def clean_environment() -> dict[str, str]:
    """This process's environment without the addresses and keys of other OpenAI endpoints."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}


@contextlib.contextmanager
def open_log(path: Path | None) -> Iterator[int | IO[bytes]]:
    """Where an agent's output goes; nowhere without a path."""
    if path is None:
        yield subprocess.DEVNULL
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        yield stream


class Nursery:
    """A process that has imported the agent's module and forks workers from there.

    Where the module starts threads a fork would break them: then ``may_fork`` is False and the
    process can only become one worker itself.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        """Use ``start``."""
        self._process, self._control = process, control
        self.may_fork = True

    @classmethod
    async def start(cls, agent: Agent, log_path: Path | None) -> Nursery:
        """Import ``agent.python``. Raises InputError when that fails."""
        control, theirs = socket.socketpair()
        control.setblocking(False)
        command = [sys.executable, "-X", "faulthandler", "-m", "scepsy_hpc.tracing.agents.worker"]
        try:
            with open_log(log_path) as log:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    str(Path(agent.folder or ".").resolve()),
                    str(agent.python),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                    env=clean_environment(),
                    start_new_session=True,
                )
        except BaseException:
            control.close()
            raise
        finally:
            theirs.close()
        nursery = cls(process, control)
        try:
            async with asyncio.timeout(IMPORT_TIMEOUT_S):
                hello = await receive_answer(control)
            nursery._greet(hello, agent, log_path)
        except TimeoutError:
            await nursery.close()
            message = f"agent.python: {agent.python}: not imported within {IMPORT_TIMEOUT_S:g} s"
            raise InputError(message) from None
        except BaseException:
            await nursery.close()
            raise
        return nursery

    def _greet(self, hello: dict[str, Any] | None, agent: Agent, log_path: Path | None) -> None:
        reason = hello.get("error") if hello else "its process ended while importing"
        if hello and reason is None:
            self.may_fork = bool(hello["may_fork"])
            return
        hint = ""
        if "OPENAI" in str(reason) or "api_key" in str(reason):
            hint = "; make the client inside the function: its address differs from task to task"
        where = f" (log: {log_path})" if log_path else ""
        raise InputError(
            f"agent.python: {agent.python!r} in {agent.folder} cannot be loaded: "
            f"{reason}{hint}{where}"
        )

    async def fork(self) -> Worker:
        """One more worker. One call at a time. Raises RunError when the process is gone."""
        ours = self._hand_over(FORK)
        try:
            reply = await receive_answer(self._control)
            if reply is None or "pid" not in reply:
                reason = reply["error"] if reply else "the process that forks them died"
                raise RunError(f"no worker for the agent: {reason}")
            return Worker(reply["pid"], ours, self)
        except BaseException:
            ours.close()
            raise

    def take_over(self) -> Worker:
        """The process itself as the one worker. Raises RunError when it is gone."""
        return Worker(self._process.pid, self._hand_over(TAKE_OVER), self)

    def _hand_over(self, order: bytes) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            socket.send_fds(self._control, [ORDER.pack(order, 0)], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise RunError(f"no worker for the agent: {error.strerror}") from None
        finally:
            theirs.close()
        return ours

    async def exit_code(self, pid: int) -> int | None:
        """How its dead worker ended, minus the signal; None where that cannot be told.

        One call at a time, and none beside ``fork``.
        """
        try:
            if not self.may_fork:
                async with asyncio.timeout(DEATH_S):
                    return await self._process.wait()
            self._control.send(ORDER.pack(WAIT, pid))
            async with asyncio.timeout(2 * DEATH_S):
                reply = await receive_answer(self._control)
            return reply.get("code") if reply else None
        except (OSError, TimeoutError):
            return None

    def reap(self, pid: int) -> None:
        """Its worker ``pid`` was killed: take it off the process table."""
        if self.may_fork:
            with contextlib.suppress(OSError):
                self._control.send(ORDER.pack(REAP, pid))

    async def close(self) -> None:
        """End the process."""
        if self._process.returncode is None:
            signal_group(self._process.pid)
        await self._process.wait()
        self._control.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker said of a task: `result` or `error`, nothing where it died.

    ``is_usable``: the worker may run another task.
    """

    reply: dict[str, Any] = field(default_factory=dict)
    is_usable: bool = True


_OF_ERRORS = ("error", "failure", "cpu_s")


class Worker:
    """One process that runs one task at a time; ``end`` it after anything unusual."""

    def __init__(self, pid: int, channel: socket.socket, nursery: Nursery) -> None:
        """Made by a nursery."""
        self.pid, self.nursery, self._channel = pid, nursery, channel
        self._pidfd: int | None = None
        self._dead, self._is_reaped = asyncio.Event(), False
        # A child of the agent may hold the channel open beyond the worker's death.
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)
        self._is_watched = self._pidfd is not None
        if self._pidfd is not None:
            asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    def _died(self) -> None:
        self._unwatch()
        self._dead.set()
        self.hang_up()

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def hang_up(self) -> None:
        """Make a pending ``run`` return None."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended."""
        return self._dead.is_set()

    async def has_died(self) -> bool:
        """Whether the process has ended by itself; waits a moment where its connection has."""
        if not self._is_watched:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEATH_S):
                await self._dead.wait()
        return self.is_dead

    async def exit_code(self) -> int | None:
        """See ``Nursery.exit_code``; asked once, of a process that has died."""
        # What it started goes first: as long as it is on the table its group is no other's.
        signal_group(self.pid)
        code = await self.nursery.exit_code(self.pid)
        self._is_reaped = code is not None
        return code

    async def run(self, task: dict[str, Any], env: dict[str, str]) -> Answer:
        """Its answer to a task. What an agent itself writes to the connection is no answer."""
        loop, mark = asyncio.get_running_loop(), secrets.token_hex(8)
        request = {"task": task, "env": env, "mark": mark}
        try:
            await loop.sock_sendall(self._channel, pack_message(request))
            reply = await receive(self._channel)
        except OSError:
            return Answer(is_usable=False)
        except (ValueError, RecursionError):
            reply = {}
        if reply is None:
            return Answer(is_usable=False)
        if reply.pop("mark", None) != mark or not reply.keys() <= {"result", *_OF_ERRORS}:
            what = "the agent wrote to the connection to the process that runs it"
            return Answer({"error": what, "failure": "record"}, is_usable=False)
        return Answer(reply)

    def end(self) -> None:
        """Kill it and what it started. Not while ``run`` waits: use ``hang_up`` first."""
        self._unwatch()
        self._channel.close()
        if not self._is_reaped:
            signal_group(self.pid)
            self.nursery.reap(self.pid)


def died(code: int | None) -> dict[str, str]:
    """What to say of an agent's process that ended before its task did.

    A signal from outside is not the agent's doing; nor is an end of which nothing is known, as
    where the process that forked it was killed too. A shell passes a signal on as 128 + n.
    """
    signals = [number for number in OTHERS_SIGNALS if code in (-number, 128 + number)]
    failure = "infra" if signals or code is None else "agent"
    how = "in a way that is not known" if code is None else f"with code {code}"
    if code is not None and (signals or code < 0):
        number = signals[0] if signals else -code
        how = f"by signal {number}"
    return {"error": f"the agent's process died {how} while it ran this task", "failure": failure}
