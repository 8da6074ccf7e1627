"""The process behind Python agents: imports the agent once, then forks one worker per seat.

Started by ``nursery.py`` as a program of its own; talks over sockets, never over stdout, so that
whatever an agent prints goes to its log. Imports little beside the standard library, so that it
starts quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from scepsy_hpc.formats.limits import Unrecordable, result_json, short_error

# Orders on the control socket: one letter and a process id; a fork or takeover carries a socket.
ORDER = struct.Struct("!cQ")
FORK, TAKE_OVER, REAP, WAIT = b"F", b"T", b"R", b"W"
_DEATH_S = 1.0
_LENGTH = struct.Struct("!Q")
AgentFunction = Callable[[dict[str, Any]], Any]


def pack_message(message: dict[str, Any], result: str | None = None) -> bytes:
    """A message as its length and its JSON; ``result`` is JSON already."""
    text = json.dumps(message)
    if result is not None:
        text = f'{text[:-1]}, "result": {result}}}'
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


def length_of(head: bytes) -> int:
    """Bytes that follow the head of a message."""
    return int(_LENGTH.unpack(head)[0])


HEAD_BYTES = _LENGTH.size


def _receive(channel: socket.socket) -> Any:
    """Next message; None when the other side is gone."""
    head = _read(channel, HEAD_BYTES)
    body = _read(channel, length_of(head)) if head else None
    return json.loads(body) if body else None


def _read(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def host_agents(arguments: list[str]) -> int:
    """``arguments``: descriptor of the control socket, folder, `module:function`."""
    control = socket.socket(fileno=int(arguments[0]))
    os.set_inheritable(control.fileno(), False)
    try:
        function = _load(arguments[1], arguments[2])
    except BaseException as error:
        traceback.print_exc()
        control.sendall(pack_message({"error": error_text(error)}))
        return 1
    # A fork would lose the threads that the agent's modules started, and the locks they hold.
    control.sendall(pack_message({"may_fork": threading.active_count() == 1}))
    _obey(control, function)
    return 0


def _load(folder: str, target: str) -> AgentFunction:
    os.chdir(folder)
    sys.path[0] = folder
    module_name, _, name = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{target} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def error_text(error: BaseException) -> str:
    """Type and message in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _obey(control: socket.socket, function: AgentFunction) -> None:
    workers: set[int] = set()
    ended: set[int] = set()
    try:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, ORDER.size, 1)
            if not data:
                return
            order, pid = ORDER.unpack(data)
            if order == FORK:
                workers |= _fork(control, descriptors[0], function)
            elif order == TAKE_OVER:
                _work(socket.socket(fileno=descriptors[0]), function)
                return
            elif order == REAP:
                ended.add(pid)
            elif order == WAIT:
                code = _exit_code(pid)
                workers -= {pid} if code is not None else set()
                control.sendall(pack_message({"code": code}))
            # Never blocking: one that cannot die yet is tried again at the next order.
            gone = {pid for pid in ended if os.waitpid(pid, os.WNOHANG)[0]}
            ended -= gone
            workers -= gone
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _exit_code(pid: int) -> int | None:
    """How a child ended that is dead, or about to be; None where it is neither."""
    until_s = time.monotonic() + _DEATH_S
    while time.monotonic() < until_s:
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
            continue
        return None
    return None


def _fork(control: socket.socket, descriptor: int, function: AgentFunction) -> set[int]:
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(descriptor)
        control.sendall(pack_message({"error": error_text(error)}))
        return set()
    if pid == 0:
        try:
            control.close()
            os.setpgid(0, 0)
            _work(socket.socket(fileno=descriptor), function)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(descriptor)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # Here too: before the answer it must be one to kill as a group.
    control.sendall(pack_message({"pid": pid}))
    return {pid}


def _work(channel: socket.socket, function: AgentFunction) -> None:
    """Run one task after the other until the other side is gone."""
    os.set_inheritable(channel.fileno(), False)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Else every fork draws the same numbers.
    environment, folder = dict(os.environ), os.getcwd()
    while (request := _receive(channel)) is not None:
        reply = _run(function, request)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # an agent may have closed it
                stream.flush()
        channel.sendall(reply)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)


def _run(function: AgentFunction, request: dict[str, Any]) -> bytes:
    """The reply to one task: `result` or `error`, and `cpu_s`, the CPU seconds that it took.

    ``mark`` of the request stands in the reply: nothing else that comes is one.
    """
    before_s, task, mark = _cpu_s(), request["task"], request["mark"]
    try:
        os.environ.update(request["env"])
        result = function(task)
        if inspect.isawaitable(result):
            result = asyncio.run(_wait_for(result))
    except BaseException as error:
        with contextlib.suppress(Exception):
            print(f"task {task.get('task_id')} failed:", file=sys.stderr)
            traceback.print_exc()
        failure = "infra" if isinstance(error, MemoryError) else "agent"
        said = {"error": short_error(error_text(error)), "failure": failure}
        return pack_message({**said, "mark": mark, "cpu_s": _since(before_s)})
    cpu_s = _since(before_s)
    try:
        return pack_message({"mark": mark, "cpu_s": cpu_s}, result_json(result))
    except Unrecordable as error:
        what = f"the agent's result cannot be written as JSON: {error}"
        return pack_message({"error": what, "failure": "record", "mark": mark, "cpu_s": cpu_s})
    except MemoryError as error:
        what = error_text(error)
        return pack_message({"error": what, "failure": "infra", "mark": mark, "cpu_s": cpu_s})


def _since(before_s: float) -> float:
    return max(_cpu_s() - before_s, 0.0)


def _cpu_s() -> float:
    """CPU seconds so far of this process, its threads and the processes that it started.

    A worker runs one task at a time, so a difference is one task's. Not seen: a process whose
    parent ended before it, and where the kernel lists no children, those that still live.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used) + _living_s(os.getpid())


def _living_s(pid: int) -> float:
    """CPU seconds of the living processes below ``pid``; they count as children once waited for."""
    total_s = 0.0
    with contextlib.suppress(OSError):  # Ended meanwhile, or no such list.
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as stream:
                children = [int(child) for child in stream.read().split()]
            total_s += sum(_used_s(child) + _living_s(child) for child in children)
    return total_s


def _used_s(pid: int) -> float:
    """CPU seconds of one process and of the children it has waited for."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stream:
        # The name, in brackets, may hold anything; utime is the 12th field after it.
        fields = stream.read().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


if __name__ == "__main__":
    sys.exit(host_agents(sys.argv[1:]))
