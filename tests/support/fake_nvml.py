"""A stand-in for NVML's Python module: H100s of 80 GiB, joined as the test says."""

from __future__ import annotations

import sys
import types
from collections.abc import Collection
from typing import Any


def install(monkeypatch: Any, num_gpus: int, links: Collection[set[int]] = ()) -> None:
    """Answer as ``pynvml`` for ``num_gpus`` GPUs; ``links``: pairs joined by NVLink.

    GPUs 0 and 1 are under one PCIe root, 2 and 3 under the next, and so on.
    """
    made: Any = types.ModuleType("pynvml")
    made.NVMLError = type("NVMLError", (Exception,), {})
    made.NVML_P2P_CAPS_INDEX_NVLINK = 2
    made.NVML_P2P_STATUS_OK = 0
    made.NVML_TOPOLOGY_SYSTEM = 50
    made.NVML_DEVICE_MIG_ENABLE = 1
    made.nvmlInit = made.nvmlShutdown = lambda: None
    made.nvmlDeviceGetCount = lambda: num_gpus
    made.nvmlDeviceGetHandleByIndex = lambda i: i
    made.nvmlDeviceGetName = lambda h: "NVIDIA H100 80GB HBM3"
    made.nvmlDeviceGetMemoryInfo = lambda h: types.SimpleNamespace(total=80 * 2**30)
    made.nvmlDeviceGetP2PStatus = lambda a, b, _: 0 if {a, b} in links else 5
    made.nvmlDeviceGetTopologyCommonAncestor = lambda a, b: 30 if a // 2 == b // 2 else 50
    made.nvmlDeviceGetMigMode = lambda h: (0, 0)
    monkeypatch.setitem(sys.modules, "pynvml", made)
