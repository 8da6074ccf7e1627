"""Hosted engines on parts of a GPU: attached to the MPS daemon of their node, or time-sliced."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import fake_mps
import fake_vllm
import psutil
import pytest

from scepsy_hpc.formats.plan import Deployment, Instance
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.report.notes import share_notes
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.engine_view import EngineView
from scepsy_hpc.serving.node_agent import Hosting, NodeAgent
from scepsy_hpc.serving.routing import Routes
from scepsy_hpc.serving.run_folder import RunFolder, write_json

SHARES = {"judge-0": (50, "0"), "judge-1": (50, "0"), "writer-0": (100, "1")}


def host(folder: Path) -> tuple[EngineView, dict[str, dict[str, str]]]:
    """Two halves of GPU 0 and the whole of GPU 1, hosted until ready and stopped again.

    Returns what rank 0 saw when all were ready, and the environment of each engine.
    """
    run = RunFolder(folder / "results")
    run.create()
    attempt = run.attempt("a-0")
    placed = [
        PlacedInstance(
            instance=Instance(
                id=name, llm=name.split("-")[0], node="n", gpus=(0,), gpu_share_pct=share
            ),
            rank=0,
            host="host",
            gpus=(gpu,),
        )
        for name, (share, gpu) in SHARES.items()
    ]
    deployments = {
        llm: Deployment(
            model=f"org/{llm}",
            engine="vllm",
            gpu_type="h100_sxm",
            tp_degree=1,
            gpu_share_pct=share,
            num_replicas=1,
        )
        for llm, share in (("judge", 50), ("writer", 100))
    }
    hosting = Hosting(run, attempt, deployments, "127.0.0.1", 120.0)
    view = EngineView(attempt, placed, 100.0)

    async def main() -> dict[str, dict[str, str]]:
        stopping = asyncio.Event()
        agent = asyncio.ensure_future(NodeAgent(hosting, placed).run(stopping))
        while {r.state for r in view.reports.values()} != {"ready"} and not agent.done():
            await asyncio.sleep(0.1)
            view.look()
        found = {n: psutil.Process(r.pid).environ() for n, r in view.reports.items()}
        status = RunStatus(attempt="a-0", instances=view.states(Routes({})))
        write_json(run.status, status.plain())
        stopping.set()
        await agent
        return found

    return view, asyncio.run(main())


@pytest.fixture
def good_vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, "good")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def seen_by(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_parts_of_a_gpu_are_attached_to_one_daemon(tmp_path, monkeypatch, good_vllm):
    """Engines on parts share the node's daemon, which serves only their GPU; a whole GPU needs
    none; the daemon ends after the engines and leaves its logs.
    """
    seen = fake_mps.install(tmp_path, monkeypatch)
    view, environs = host(tmp_path)
    assert seen_by(seen)["environ"]["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
    pipes = {name: e.get("CUDA_MPS_PIPE_DIRECTORY") for name, e in environs.items()}
    assert pipes["judge-0"] == pipes["judge-1"] is not None
    assert pipes["writer-0"] is None
    assert environs["judge-1"]["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
    assert environs["writer-0"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert view.alerts() == ()
    assert not psutil.pid_exists(seen_by(seen)["pid"])
    assert (tmp_path / "results" / "logs" / "mps-host" / "control.log").exists()


def test_parts_without_mps_are_flagged_everywhere(tmp_path, monkeypatch, good_vllm):
    """Where no daemon works, status, alerts and the report call those engines time-sliced."""
    fake_mps.install(tmp_path, monkeypatch, "dies")
    view, _ = host(tmp_path)
    sliced = {one.id for one in view.reports.values() if one.time_sliced}
    assert sliced == {"judge-0", "judge-1"}
    alert = "judge-0 on host: time-sliced, not held to its 50% of the GPU: the MPS daemon ended"
    assert any(line.startswith(alert) for line in view.alerts())
    notes = share_notes(RunFolder(tmp_path / "results"))
    assert [note.split(" was time-sliced")[0] for note in notes] == ["judge-0", "judge-1"]
