"""Part 1: what NVML, `scepsy topology --local`, `scepsy doctor` and an MPS daemon say here."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import gpu_bench
from gpu_bench import Bench, said_by

from scepsy_hpc.cluster.mps import MpsDaemon, uuids_of
from scepsy_hpc.errors import InputError, RunError


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Run each command, keep what it said; start and stop an MPS daemon."""
    scepsy = (sys.executable, "-m", "scepsy_hpc")
    topology = str(bench.folder / "topology.yaml")
    commands = {
        "topology.txt": (*scepsy, "topology", "--local", "-o", topology),
        "doctor.txt": (*scepsy, "doctor"),
        "nvidia-smi.txt": ("nvidia-smi", "-q"),
        "nvidia-smi-topo.txt": ("nvidia-smi", "topo", "-m"),
        "pip.txt": (sys.executable, "-m", "pip", "list", "--format=freeze"),
    }
    for name, command in commands.items():
        (bench.folder / name).write_text(said_by(*command) + "\n")
        bench.say(f"{name} written")
    found = {"mps": mps_daemon(), "mps_version": said_by("nvidia-cuda-mps-control", "-v")}
    bench.save("machine.json", found)
    bench.say(f"MPS: {found['mps']}")


def mps_daemon() -> dict[str, Any]:
    """Whether a private daemon starts here, how long it takes, and what it answers."""
    since_s = time.monotonic()
    try:
        daemon = MpsDaemon.start(uuids_of(["0"]))
    except (InputError, RunError) as error:
        return {"works": False, "error": str(error)}
    started_s = time.monotonic()
    try:
        answers = {ask: daemon.ask(ask) for ask in ("get_server_list", "ps")}
    finally:
        asked_s = time.monotonic()
        daemon.stop()
    return {
        "works": True,
        "start_s": started_s - since_s,
        "stop_s": time.monotonic() - asked_s,
        "answers": answers,
    }


if __name__ == "__main__":
    sys.exit(gpu_bench.run("machine", __doc__, measure))
