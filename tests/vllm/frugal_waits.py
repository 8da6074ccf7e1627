"""A vLLM plugin for engines on CPU slices: its processes sleep while they wait for each other.

The processes of a tensor parallel engine wait by spinning. On a GPU node that costs a host core;
under a CPU quota it would be charged to the slice, so that half of it went on waiting. vLLM itself
stays as it is: this replaces one yield by a short sleep, through vLLM's own plugin interface.
"""

from __future__ import annotations

import time

NAP_S = 0.0002


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.distributed.device_communicators import shm_broadcast

    assert callable(shm_broadcast.sched_yield)  # pinned version: tests/vllm/requirements.txt
    shm_broadcast.sched_yield = lambda: time.sleep(NAP_S)
