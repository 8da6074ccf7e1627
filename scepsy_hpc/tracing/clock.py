"""The recorder's clock: Unix seconds whose differences come from the monotonic clock."""

from __future__ import annotations

import time

_UNIX_BASE_S = time.time() - time.monotonic()


def now_s() -> float:
    """Unix seconds now. A step of the system clock after the start never changes a duration."""
    return _UNIX_BASE_S + time.monotonic()
