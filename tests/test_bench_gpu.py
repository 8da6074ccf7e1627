"""The measurements on a GPU, as far as they go without one: pure parts, rehearsals, fakes."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_mps
import fake_vllm
import pytest

from scepsy_hpc.bundles.engine_model import fit_engine_model
from scepsy_hpc.bundles.library import save_bundle
from scepsy_hpc.bundles.published_sizes import ARCHITECTURES
from scepsy_hpc.errors import RunError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import BundleHeader, load_bundle
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.profiling.hardware import Hardware

SCRIPTS = Path(__file__).parents[1] / "bench" / "gpu"
SMALL = "Qwen/Qwen3-0.6B"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of bench/gpu."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for path in SCRIPTS.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


REHEARSALS = {
    "mps_shares": (
        [*("--splits", "50/50", "--models", SMALL), *("--concurrency", "1", "4")],
        ["points.json", "interference.json", "memory.json"],
    ),
    "memory_limits": (["--trials", "together"], ["memory_limits.json"]),
    "profile_models": (
        [*("--models", SMALL, "--shapes", "64:8", "32:4"), *("--concurrency", "1", "4")],
        ["spec.yaml", "Qwen3-0.6B.json"],
    ),
    "faults": (["--seconds", "0.5", "--concurrency", "2"], ["faults.json"]),
    "plan_vs_baselines": (
        ["--tasks", "4", "--runs-in-flight", "2", "--rounds", "1", "--judge-calls", "2"],
        ["planned.yaml", "plan_vs_baselines.json"],
    ),
    "offline_fit": (
        ["--profiles", str(shipped_path("profiles")), "--model", SMALL],
        ["fits.json", "held_out_shares.json"],
    ),
}


def rehearse(name: str, out: Path, arguments: list[str]) -> dict[str, Any]:
    """Run a script without a GPU; every JSON file of its archive by name."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), str(out), "--dry-run", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(out / f"{name}.tar.gz") as tar:
        names = {Path(member.name).relative_to(name): member for member in tar if member.isfile()}
        return {
            str(path): json.loads(stream.read()) if path.suffix == ".json" else None
            for path, member in names.items()
            if (stream := tar.extractfile(member))
        }


@pytest.mark.parametrize("name", REHEARSALS)
def test_measurement_runs_through_and_leaves_one_archive(tmp_path, name):
    """Each script goes all its steps on simulated engines; facts and figures are in the archive."""
    arguments, wanted = REHEARSALS[name]
    found = rehearse(name, tmp_path, arguments)
    assert {"facts.json", "log.txt", *wanted} <= set(found)
    assert found["facts.json"]["rehearsal"] is True
    assert found["facts.json"]["measurement"] == name
    CHECKS[name](found)


def check_shares(found: dict[str, Any]) -> None:
    rows = [(r["neighbours"], r["in_flight"], r["share"]) for r in found["points.json"]]
    assert rows == [("idle", 1, 50), ("idle", 4, 50), ("busy", 1, 50), ("busy", 4, 50)]
    [row] = found["interference.json"]
    assert set(row["slowdown"]) == {"1", "4"}
    assert any(name.endswith("mps-shares/points.csv") for name in found)


def check_memory(found: dict[str, Any]) -> None:
    engines = found["memory_limits.json"]["together"]["engines"]
    assert [engine["error"] for engine in engines] == [None, None]


def check_profile(found: dict[str, Any]) -> None:
    shapes = {(inputs, outputs) for inputs, outputs, _ in found["Qwen3-0.6B.json"]}
    assert shapes == {(64, 8), (32, 4)}


def check_faults(found: dict[str, Any]) -> None:
    seen = found["faults.json"]["group"]
    assert seen["restart"]["works"] is True
    assert seen["after"]["neighbour_alive"] is True
    assert seen["calls_after"][0] > 0


def check_plan(found: dict[str, Any]) -> None:
    rounds = found["plan_vs_baselines.json"]["rounds"]
    assert set(rounds) == {"planned", "halves", "one after the other"}
    assert all(one["num_tasks"] == 4 for ones in rounds.values() for one in ones)
    assert rounds["one after the other"][0]["between_phases_s"] > 0


def check_fit(found: dict[str, Any]) -> None:
    assert {row["tp_degree"] for row in found["fits.json"]} == {1, 2, 4, 8}
    assert all(row["by_shape"] and row["by_load"] for row in found["fits.json"])


CHECKS = {
    "mps_shares": check_shares,
    "memory_limits": check_memory,
    "profile_models": check_profile,
    "faults": check_faults,
    "plan_vs_baselines": check_plan,
    "offline_fit": check_fit,
}


def test_models_have_the_published_sizes(bench, tmp_path):
    """The hand-written configs have exactly the parameters that the model cards give."""
    models = bench("models")
    folder = models.write_models(tmp_path)
    for name in models.SIZES:
        config = json.loads((folder / name / "config.json").read_text())
        assert models.num_parameters(config) == ARCHITECTURES[name].params


def test_tokenizer_knows_every_id(bench):
    """Every id of the vocabulary has a text, bytes come first, special tokens are where Qwen has
    them: else decoding a random token would fail or be empty.
    """
    made = bench("models").tokenizer()
    vocab = made["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(151_936))
    assert (vocab["A"], vocab["Ġ"], vocab["<|im_end|>"]) == (65, 32, 151_645)
    assert {t["id"]: t["content"] for t in made["added_tokens"]}[151_644] == "<|im_start|>"


def test_splits_are_read(bench):
    """A split is shares, with MPS unless it ends in s; one engine alone needs none."""
    split = bench("mps_shares").Split
    assert split.parse("30/30/40") == split("30/30/40", (30, 30, 40), True)
    assert split.parse("50/50s") == split("50/50s", (50, 50), False)
    assert split.parse("100") == split("100", (100,), False)
    with pytest.raises(argparse.ArgumentTypeError, match="60/60: shares must be"):
        split.parse("60/60")


def test_interference_compares_equal_loads(bench):
    """The slow-down is the latency beside busy neighbours over idle ones, load by load."""

    def row(neighbours: str, in_flight: int, latency_s: float, share: int = 25) -> dict[str, Any]:
        return {
            "split": "25/75",
            "model": SMALL,
            "share": share,
            "neighbours": neighbours,
            "in_flight": in_flight,
            "latency_mean_s": latency_s,
        }

    rows = [row("idle", 1, 2.0), row("busy", 1, 3.0), row("idle", 8, 4.0), row("busy", 8, 4.0)]
    rows += [row("busy", 1, 9.0, share=75)]
    found = bench("mps_shares").interference(rows)
    assert [(r["share"], r["slowdown"]) for r in found] == [(25, {1: 1.5, 8: 1.0})]


def test_phases_are_added_without_the_starts_between(bench):
    """One engine after the other: makespans add up, a run lasts through both phases, and the time
    to start the second engine counts for neither.
    """
    first = [
        {"task_id": "a", "status": "ok", "started_s": 0.0, "finished_s": 2.0},
        {"task_id": "b", "status": "ok", "started_s": 2.0, "finished_s": 4.0},
    ]
    second = [
        {"task_id": "b", "status": "ok", "started_s": 104.0, "finished_s": 107.0},
        {"task_id": "a", "status": "ok", "started_s": 107.0, "finished_s": 110.0},
    ]
    combine = bench("plan_vs_baselines").combine
    found = combine([first, second])
    assert (found["makespan_s"], found["between_phases_s"]) == (10.0, 100.0)
    assert found["throughput_rps"] == pytest.approx(0.2)
    assert found["latency_mean_s"] == pytest.approx((10.0 + 5.0) / 2)
    assert combine([first])["latency_mean_s"] == pytest.approx(2.0)
    with pytest.raises(RunError, match="1 tasks failed; the first: boom"):
        combine([[{"task_id": "a", "status": "failed", "error": "boom"}]])


HEADER = BundleHeader(
    model=SMALL,
    engine="vllm",
    engine_version="0.26.0",
    engine_args={"load_format": "dummy", "max_model_len": 8192},
    precision="bf16",
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    how="measured",
    source="made for a test",
    licence="Apache-2.0",
    date="2026-01-01",
    points_sha256="0" * 64,
)


def whole_and_half() -> list[Point]:
    """Points of a modelled bundle on the whole GPU, and on half of it exactly as derived."""
    path = shipped_path("profiles") / "h100_sxm/Qwen__Qwen3-0.6B/vllm-0.24.0/token-grid"
    whole = [p for p in load_bundle(path).points if p.tp_degree == 1]
    half_model = fit_engine_model(whole).at_share(50)
    half = []
    for p in whole:
        now = half_model.closed_loop(p.concurrency or 1, p.input_tokens_mean, p.output_tokens_mean)
        changes = {"throughput_rps": now.throughput_rps, "latency_mean_s": now.latency_s}
        half.append(replace(p, gpu_share_pct=50, ttft_mean_s=None, tpot_mean_s=None, **changes))
    return [*whole, *half]


def test_held_out_share_is_judged_by_the_whole_gpu(bench, tmp_path):
    """A share that is exactly what the whole GPU predicts has no error; the slow-down is told."""
    bundle = save_bundle(tmp_path, HEADER, whole_and_half(), "grid")
    [row] = bench("offline_fit").held_out_shares([bundle])
    assert row["share"] == 50
    assert all(group["median_abs"] < 1e-6 for group in row["by_shape"].values())
    assert 1.1 < row["measured_slowdown"]["latency"] < 1.8
    assert row["assumed_slowdown"] == (1.7, 1.15)


def test_published_bundles_say_weights_were_random(bench, tmp_path):
    """Random weights do not change speed: nobody who plans with the bundle should serve them."""
    made = bench("gpu_bench").save_published(tmp_path, HEADER, whole_and_half(), "grid")
    assert made.header.engine_args == {"max_model_len": 8192}
    assert made.header.source.endswith("weights were random (load_format dummy)")


def test_machine_says_whether_mps_works(bench, tmp_path, monkeypatch):
    """Where a daemon starts it answers and is gone again; else the reason is the finding."""
    mps_daemon = bench("machine").mps_daemon
    fake_mps.install(tmp_path, monkeypatch)
    found = mps_daemon()
    assert found["works"] is True
    assert found["answers"]["get_server_list"].strip().isdigit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "is not on PATH" in mps_daemon()["error"]


def test_trial_keeps_how_an_engine_failed(bench, tmp_path, monkeypatch):
    """An engine that is refused is the result of a trial, with its last words; MPS is stopped."""
    memory_limits, gpu_bench = bench("memory_limits"), bench("gpu_bench")
    fake_mps.install(tmp_path, monkeypatch)
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, "dies")))
    monkeypatch.setattr(gpu_bench.Bench, "hardware", lambda self, task: Hardware(("0",), "580.1"))
    monkeypatch.setattr(memory_limits, "gpu_memory", lambda bench: None)
    here = gpu_bench.Bench("memory_limits", tmp_path, dry_run=False)
    node = Node(
        name="a",
        gpu_type="h100_sxm",
        gpu_memory_gib=80.0,
        domains=(Domain(gpus=(0,), link="nvlink"),),
    )
    here.topology = Topology((node,))
    found = asyncio.run(memory_limits.attempt(here, "halves", memory_limits.TRIALS["halves"]))
    assert ["died with exit code 3" in e["error"] for e in found["engines"]] == [True, True]
    logs = tmp_path / "memory_limits" / "logs" / "mps-halves"
    assert (logs / "control.log").exists()


def test_limit_by_uuid_names_the_gpu(bench, tmp_path, monkeypatch):
    """The trial's own variables join those of MPS, with the GPU's UUID in place."""
    memory_limits = bench("memory_limits")
    fake_mps.install(tmp_path, monkeypatch)
    sharing = memory_limits.Sharing.start(("1",))
    trial = memory_limits.TRIALS["pinned-by-uuid"]
    found = memory_limits.environment_of(trial, sharing, ("1",))
    sharing.stop()
    assert found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "GPU-bbbb=16G"
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"


def test_reason_is_the_error_that_ended_it(bench):
    """Of a long log the last error counts, not the one that only points back to it."""
    lines = [
        "INFO loading",
        "ValueError: Free memory on device cuda:0 (29.9/79.2 GiB) is less than desired",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    reason_in = bench("memory_limits").reason_in
    assert reason_in(lines) == lines[1]
    assert reason_in(["nothing here"]) is None


def test_agent_makes_the_calls_of_its_stages(bench, monkeypatch):
    """Only the stages asked for are called; prompts have the wanted length and differ."""
    agent = bench("two_stage_agent")
    bodies = []

    class Answer:
        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *error: object) -> None: ...

        def read(self) -> bytes:
            return json.dumps({"usage": {"completion_tokens": 3}}).encode()

    def urlopen(request: Any, timeout: float) -> Answer:
        bodies.append(json.loads(request.data))
        return Answer()

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for key in ("SCEPSY_RUN_ID", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setitem(os.environ, key, "http://127.0.0.1")
    task = {"judge_calls": 2, "judge_shape": [64, 1], "writer_shape": [128, 5]}
    assert agent.run({**task, "stages": ["judge", "writer"]}) == {"judge": 6, "writer": 3}
    assert agent.run({**task, "stages": ["writer"]}) == {"writer": 3}
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert [len(prompt) for prompt in prompts] == [64, 64, 128, 128]
    assert prompts[0] != prompts[1]
    assert bodies[2]["min_tokens"] == bodies[2]["max_tokens"] == 5
