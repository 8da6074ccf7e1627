"""TCP ports for engines: spaced ranges below the range the kernel gives to outgoing connections.

Choosing a free port and binding it later is a race that cannot be won from outside: these
functions make a clash unlikely, and an engine that loses the race dies at once and says so.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from scepsy_hpc.errors import RunError

FIRST_PORT = 20_000
LAST_PORT = 32_000  # Linux hands out 32768 and up as outgoing ports
# One engine's range: its HTTP port, then the internal ports that vLLM counts up from VLLM_PORT.
SPACING = 40
INTERNAL_OFFSET = 8


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nothing on this machine is bound to the port right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def spaced_ports(
    count: int, host: str = "127.0.0.1", avoid: Iterable[int] = (), seed: int | None = None
) -> list[int]:
    """``count`` free HTTP ports, each the first of a range of ``SPACING`` ports.

    The search starts at a random range, so that jobs of two users on one node rarely meet.
    Raises RunError when there are not enough.
    """
    starts = list(range(FIRST_PORT, LAST_PORT, SPACING))
    random.Random(seed).shuffle(starts)
    taken = {port - port % SPACING for port in avoid}
    found: list[int] = []
    for start in starts:
        if len(found) == count:
            break
        if start not in taken and is_free(start, host) and is_free(start + INTERNAL_OFFSET, host):
            found.append(start)
    if len(found) < count:
        raise RunError(
            f"ports: only {len(found)} of {count} ranges of {SPACING} ports are free on {host} "
            f"between {FIRST_PORT} and {LAST_PORT}"
        )
    return found


def internal_port(port: int) -> int:
    """Where an engine whose HTTP port is ``port`` may start its internal ports (VLLM_PORT)."""
    return port + INTERNAL_OFFSET
