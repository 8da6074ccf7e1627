"""Where engines and the dispatcher listen: no wider than those who call them need."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from scepsy_hpc.errors import RunError

LOOPBACK = "127.0.0.1"


def node_address(hosts: Sequence[str], own: str) -> str:
    """Where this node's engines listen: loopback when all is on one machine, else its address."""
    others = [name for name in hosts if name != own]
    return own_address(others[0]) if others else LOOPBACK


def own_address(towards: str | None = None) -> str:
    """This node's address on the network that leads to ``towards`` (default: outside).

    The routing table is asked, and no packet is sent: a node's own name may mean loopback. Raises
    RunError when the other name does not resolve.
    """
    target = towards or "192.0.2.1"  # An address for documentation: it stands for outside.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError as error:
            if towards is None:
                return LOOPBACK
            raise RunError(f"node {towards} cannot be found from here: {error}") from None
        return str(probe.getsockname()[0])
