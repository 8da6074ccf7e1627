"""How long the kernel has held back what runs on CPU slices."""

from __future__ import annotations

from scepsy_hpc.cluster.cpu_slices import SliceGroup


def throttled_s(group: SliceGroup) -> float:
    """How long its runnable threads have been held back so far, summed over CPUs."""
    fields = (line.split() for line in (group.path / "cpu.stat").read_text().splitlines())
    found = {key: int(value) for key, value in fields}
    if "throttled_usec" in found:  # version 2
        return found["throttled_usec"] / 1e6
    return found["throttled_time"] / 1e9
