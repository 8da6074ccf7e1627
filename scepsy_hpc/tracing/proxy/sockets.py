"""Sockets that notice a silent peer: a node that loses power sends no end of its connections."""

from __future__ import annotations

import socket
from typing import Any

# A peer that answers nothing is given up after IDLE + COUNT x INTERVAL: 35 s.
KEEP_IDLE_S, KEEP_INTERVAL_S, KEEP_COUNT = 15, 5, 4
_OPTIONS = (
    ("TCP_KEEPIDLE", KEEP_IDLE_S),
    ("TCP_KEEPINTVL", KEEP_INTERVAL_S),
    ("TCP_KEEPCNT", KEEP_COUNT),
    # The same for what was sent and never acknowledged, which keepalive does not cover.
    ("TCP_USER_TIMEOUT", 1000 * (KEEP_IDLE_S + KEEP_COUNT * KEEP_INTERVAL_S)),
)


def lively_socket(address: tuple[Any, ...]) -> socket.socket:
    """A TCP socket for this entry of ``getaddrinfo``; options that a system lacks are left out."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
