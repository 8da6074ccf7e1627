"""Agents that write what they like to the connection to their parent."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from agent_cases import run_tasks, write_agent

from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents.channel import MAX_MESSAGE_BYTES, receive, receive_answer
from scepsy_hpc.tracing.agents.worker import pack_message

AGENT = """
    import json, os, socket, stat, struct

    def connection():
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    return fd
            except OSError:
                pass

    def message(data):
        return struct.pack("!Q", len(data)) + data

    def write(task):
        data = {
            "text": b"hello, I am progress\\n" * 1000,
            "short": b"hi",
            "no json": message(b"no json"),
            "a list": message(b"[1]"),
            "deep": message(b"[" * 100_000),
            "another reply": message(json.dumps({"result": "stolen"}).encode()),
            "another's reply": message(json.dumps({"result": 1, "mark": "00"}).encode()),
        }.get(task["what"])
        if task["what"] == "closed":
            os.close(connection())
        elif data:
            os.write(connection(), data)
        return task["what"]
"""


@pytest.mark.parametrize(
    "what",
    [
        *("text", "short", "no json", "a list", "deep"),
        *("another reply", "another's reply", "closed"),
    ],
)
def test_a_task_s_own_writing_is_no_result(tmp_path: Path, what: str) -> None:
    """Its task fails, whatever it wrote; the next one gets its own result, not what was left."""
    agent = Agent(python="my_agent:write", folder=str(write_agent(tmp_path, AGENT)))
    bad, good = run_tasks(agent, {"what": what}, {"what": "nothing"}, num_workers=1)
    assert bad.failure == ("agent" if what == "closed" else "record")
    if what != "closed":  # then it may also be gone before anyone looks
        assert "wrote to the connection to the process that runs it" in bad.error
    assert good.result == "nothing"


def heard(data: bytes, ask: Any = receive) -> Any:
    """What is made of bytes that come, when nothing follows."""

    async def go() -> Any:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            return await asyncio.wait_for(ask(ours), 60)

    return asyncio.run(go())


def test_messages_are_read_and_others_refused() -> None:
    """None where the other side is gone, in mid-message too."""
    whole = pack_message({"a": 1}, '["x"]')
    assert heard(whole) == {"a": 1, "result": ["x"]}
    assert heard(b"") is None
    assert heard(whole[:-1]) is None
    assert heard(whole[:3]) is None
    for wrong in (struct.pack("!Q", MAX_MESSAGE_BYTES + 1), struct.pack("!Q", 2) + b"no"):
        with pytest.raises(ValueError, match=r"."):
            heard(wrong)
        assert heard(wrong, receive_answer) is None
