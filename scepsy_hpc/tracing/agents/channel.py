"""What the parent hears from its agents' processes; they may write there whatever they like."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from scepsy_hpc.formats.limits import MAX_RESULT_BYTES
from scepsy_hpc.tracing.agents.worker import HEAD_BYTES, length_of

MAX_MESSAGE_BYTES = MAX_RESULT_BYTES + (1 << 16)


async def receive(channel: socket.socket) -> dict[str, Any] | None:
    """Next message of a non-blocking socket; None when the other side is gone.

    Raises ValueError where what comes is no message of ours.
    """
    head = await _read(channel, HEAD_BYTES)
    if head is None:
        return None
    if (num_bytes := length_of(head)) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {num_bytes} bytes")
    body = await _read(channel, num_bytes)
    if body is None:
        return None
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("a message that is no object")
    return found


async def receive_answer(control: socket.socket) -> dict[str, Any] | None:
    """The nursery's next answer; None where it is gone or says what nobody understands."""
    try:
        return await receive(control)
    except (OSError, ValueError):
        return None


async def _read(channel: socket.socket, size: int) -> bytes | None:
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < size:
        try:
            part = await loop.sock_recv(channel, min(size - len(data), 1 << 20))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)
