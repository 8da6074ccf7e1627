"""Waiting for the memory of GPUs, with a stand-in for NVML."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import fake_nvml
import pytest

from scepsy_hpc.cluster import gpu_memory
from scepsy_hpc.cluster.gpu_memory import wait_for_memory


def free_in_turn(monkeypatch: pytest.MonkeyPatch, *free_gib: float) -> list[object]:
    """GPUs of 80 GiB with that much free at each look, the last for ever; returns who was asked."""
    fake_nvml.install(monkeypatch, 2)
    asked: list[object] = []
    nvml = __import__("pynvml")

    def info(handle: object) -> SimpleNamespace:
        asked.append(handle)
        free = free_gib[min(len(asked), len(free_gib)) - 1]
        return SimpleNamespace(total=80 * 2**30, free=free * 2**30)

    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", info)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByUUID", lambda u: f"by {u}", raising=False)
    monkeypatch.setattr(gpu_memory, "_LOOK_S", 0.001)
    return asked


def test_memory_that_becomes_free_is_waited_for(monkeypatch):
    """Three looks, then all is well; GPUs are found by index and by UUID."""
    asked = free_in_turn(monkeypatch, 5, 5, 79)
    assert asyncio.run(wait_for_memory(["1"], 0.9, 60.0)) is None
    assert asked == [1, 1, 1]
    assert asyncio.run(wait_for_memory(["GPU-aa"], 0.9, 60.0)) is None
    assert asked[3:] == ["by GPU-aa"]


def test_memory_that_stays_taken_is_named(monkeypatch):
    """After the limit it goes on, and says which GPU lacks what."""
    free_in_turn(monkeypatch, 20)
    said = asyncio.run(wait_for_memory(["0"], 0.9, 0.01))
    assert said is not None
    assert "90% of the memory are not free (GPU 0: 25%)" in said


def test_without_nvml_nobody_waits(monkeypatch):
    """No driver: nothing is known, so nothing is waited for."""
    fake_nvml.install(monkeypatch, 1)
    nvml = __import__("pynvml")

    def fail() -> None:
        raise nvml.NVMLError("no driver")

    monkeypatch.setattr(nvml, "nvmlInit", fail)
    assert asyncio.run(wait_for_memory(["0"], 0.9, 600.0)) is None
