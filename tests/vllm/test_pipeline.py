"""The whole pipeline on real parts: vLLM on CPU slices, submitted to a real Slurm of two nodes.

Models with random weights are made on the spot. A node has two virtual GPUs, each a fixed part of
a core held by a cgroup quota; tensor parallelism of 2 takes both of a node. What is left of the
machine is the dispatcher's and the agents'. The table of predicted against measured figures is
printed whatever it says: only its being there is checked, not how good it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm.config import ClusterShape
from slurm.mini_slurm import REPOSITORY, MiniSlurm

from scepsy_hpc.formats.plan import load_plan
from scepsy_hpc.formats.spans import load_spans

HERE = Path(__file__).parent
VLLM_VENV = Path(os.environ.get("SCEPSY_TEST_VLLM_VENV", REPOSITORY / ".venv-vllm"))
NUM_TASKS = 32
STEP_LIMIT_S = 1200.0
ENGINE_ARGS = {
    "load_format": "dummy",
    "dtype": "float32",  # without AVX-512 bfloat16 is emulated, at a third of the speed
    "max_model_len": 1024,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 134217728,
}


@dataclass(frozen=True, slots=True)
class Lab:
    """A running cluster, the user's folder, and what the steps left there."""

    cluster: MiniSlurm
    folder: Path

    def scepsy(self, *words: str) -> str:
        """One command of the user on the login node; its output is shown and returned."""
        line = [sys.executable, "-m", "scepsy_hpc", *words]
        print(f"\n$ scepsy {' '.join(words)}", flush=True)
        done = self.cluster.run_as_user(line, self.folder, STEP_LIMIT_S, check=False)
        print(done.stdout + done.stderr, flush=True)
        if done.returncode != 0:
            self._show_logs()
        assert done.returncode == 0, f"scepsy {words[0]} ended with {done.returncode}"
        return done.stdout

    def _show_logs(self) -> None:
        for log in sorted(self.folder.rglob("*.log"))[-6:]:
            print(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}", flush=True)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Lines of a JSONL file of the folder."""
        lines = (self.folder / name).read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The pipeline, run once: topology, trace, profile, plan, two runs, report."""
    assert VLLM_VENV.is_dir(), f"{VLLM_VENV} is missing; run tests/vllm/install.sh"
    directory = Path(tempfile.mkdtemp(prefix="scepsy-vllm-"))
    shape = ClusterShape(num_nodes=2, gpus_per_node=2, gpu_type="cpu_slice", kill_wait_s=30)
    with MiniSlurm(directory, shape, readable=(VLLM_VENV,)) as cluster:
        made = Lab(cluster, cluster.job_dir("lab"))
        _write_inputs(made)
        _run_pipeline(made)
        yield made
    if not request.session.testsfailed:
        shutil.rmtree(directory)


def _write_inputs(lab: Lab) -> None:
    """Models, workflow, tasks, site, and the small plan to trace on, owned by the user."""
    cgroup = lab.cluster.delegate_cpu_cgroup()
    python = VLLM_VENV / "bin" / "python"
    models = lab.folder / "models"
    subprocess.run([python, HERE / "tiny_models.py", models], check=True)
    shutil.copytree(HERE / "panel", lab.folder / "panel", dirs_exist_ok=True)
    files = {
        "panel/workflow.yaml": _workflow(models),
        "site.yaml": {
            "schema": "scepsy/site/v1",
            "gpu_names": {"cpu_slice": "cpu_slice"},
            "cpus_per_gpu": 2,
            "time_min": 60,
            "setup": [
                f"export SCEPSY_CPU_SLICE_CGROUP={cgroup}",
                f"export SCEPSY_VLLM_PYTHON={python}",
                "export HF_HUB_OFFLINE=1",
            ],
        },
        "trace-plan.yaml": _trace_plan(models, lab.folder / "panel"),
        "profile.yaml": _profile_spec(models),
    }
    for name, content in files.items():
        (lab.folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    with (lab.folder / "tasks.jsonl").open("w") as stream:
        for number in range(NUM_TASKS):
            stream.write(json.dumps(_task(number)) + "\n")
    owner = lab.folder.stat()
    for path in (lab.folder, *lab.folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def _task(number: int) -> dict[str, Any]:
    return {
        "task_id": f"panel-{number:02d}",
        "topic": ("sails", "clocks", "bees", "tides")[number % 4],
        "num_drafts": 1 + number % 3,
        "draft_tokens": 12 + 4 * (number % 4),
    }


def _workflow(models: Path) -> dict[str, Any]:
    return {
        "schema": "scepsy/workflow/v1",
        "name": "panel",
        "llms": {
            "generator": {"model": str(models / "tiny-generator"), "tp_degrees": [1, 2]},
            "judge": {"model": str(models / "tiny-judge"), "tp_degrees": [1]},
        },
        "agent": {"python": "panel_agent:run"},
    }


def _deployment(models: Path, name: str) -> dict[str, Any]:
    return {
        "model": str(models / name),
        "engine": "vllm",
        "engine_args": ENGINE_ARGS,
        "gpu_type": "cpu_slice",
        "tp_degree": 1,
        "gpu_share_pct": 100,
        "num_replicas": 1,
    }


def _trace_plan(models: Path, agent: Path) -> dict[str, Any]:
    aliases = {"generator": "tiny-generator", "judge": "tiny-judge"}
    return {
        "schema": "scepsy/plan/v1",
        "workflows": [
            {
                "name": "panel",
                "agent": {"python": "panel_agent:run", "folder": str(agent)},
                "llms": {alias: alias for alias in aliases},
            }
        ],
        "llms": {alias: _deployment(models, name) for alias, name in aliases.items()},
        "instances": [
            {"id": alias, "llm": alias, "node": "a", "gpus": [gpu], "gpu_share_pct": 100}
            for gpu, alias in enumerate(aliases)
        ],
    }


def _profile_spec(models: Path) -> dict[str, Any]:
    one = {"engine": "vllm", "engine_args": ENGINE_ARGS, "precision": "fp32"}
    return {
        "schema": "scepsy/profile-spec/v1",
        "topology": "topology.yaml",
        "models": [
            {
                "model": str(models / "tiny-generator"),
                "llm": "generator",
                "tp_degrees": [1, 2],
                **one,
            },
            {"model": str(models / "tiny-judge"), "llm": "judge", **one},
        ],
        "workload": {"name": "panel", "spans": "spans.jsonl"},
        "loads": {"concurrency": [1, 2, 4, 8], "requests_per_point": 12, "warmup_requests": 2},
        "time_min": 20,
    }


def _run_pipeline(lab: Lab) -> None:
    slurm = ("--cluster", "slurm", "--site", "site.yaml")
    flow = "panel/workflow.yaml"
    lab.scepsy("topology", "--slurm", "gpu", "-o", "topology.yaml")
    lab.scepsy(
        "trace",
        flow,
        "tasks.jsonl",
        "-o",
        "spans.jsonl",
        "-n",
        "8",
        *slurm,
        "--runs-in-flight",
        "2",
        "--plan",
        "trace-plan.yaml",
    )
    lab.scepsy("profile", "profile.yaml", "-o", "profiles", *slurm)
    lab.scepsy(
        "plan",
        "--workflow",
        flow,
        "--spans",
        "spans.jsonl",
        "--profiles",
        "profiles",
        "--topology",
        "topology.yaml",
        "--max-throughput",
        "-o",
        "plan.yaml",
    )
    for out in ("results-1", "results-2"):
        lab.scepsy("run", "plan.yaml", "tasks.jsonl", "-o", out, *slurm, "--runs-in-flight", "4")
    lab.scepsy("report", "results-1", "--again", "results-2")


def test_real_engines_were_profiled(lab: Lab) -> None:
    """Both models were measured, one of them at TP 1 and 2, and the bundles say measured."""
    headers = [
        yaml.safe_load(p.read_text()) for p in (lab.folder / "profiles").rglob("bundle.yaml")
    ]
    assert {Path(h["model"]).name for h in headers} == {"tiny-generator", "tiny-judge"}
    assert {(h["engine"], h["how"], h["gpu_type"]) for h in headers} == {
        ("vllm", "measured", "cpu_slice")
    }
    points = [p.read_text() for p in (lab.folder / "profiles").rglob("points.csv")]
    degrees = {line.split(",")[0] for text in points for line in text.splitlines()[1:]}
    assert degrees == {"1", "2"}


def test_the_plan_fills_both_nodes(lab: Lab) -> None:
    """The plan hosts each LLM, on slices that exist, with a certificate without a gap."""
    plan = load_plan(lab.folder / "plan.yaml")
    assert set(plan.llms) == {"generator", "judge"}
    assert {i.llm for i in plan.instances} == {"generator", "judge"}
    assert {i.node for i in plan.instances} == {"n1", "n2"}
    assert plan.certificate is not None
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("out", ["results-1", "results-2"])
def test_every_task_once(lab: Lab, out: str) -> None:
    """At least 30 tasks end well, each recorded once, with text from a real engine."""
    results = lab.read(f"{out}/results.jsonl")
    assert NUM_TASKS >= 30
    assert sorted(r["task_id"] for r in results) == [f"panel-{i:02d}" for i in range(NUM_TASKS)]
    assert {r["status"] for r in results} == {"ok"}
    assert all(r["result"]["text"] for r in results)


def test_calls_reached_every_instance(lab: Lab) -> None:
    """The dispatcher used every instance of the plan, on both nodes."""
    plan = load_plan(lab.folder / "plan.yaml")
    hosts = {s.host for s in load_spans(lab.folder / "results-1/spans.jsonl") if s.kind == "llm"}
    assert hosts == {i.id for i in plan.instances}


def test_predicted_stands_beside_measured(lab: Lab) -> None:
    """Each figure has its prediction, measurement, error and noise floor, in table and report."""
    out = lab.scepsy("report", "results-1", "--again", "results-2", "--json")
    rows = {row["metric"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == {"throughput", "mean latency", "p95 latency", "makespan"}
    for row in rows.values():
        assert row["measured"] > 0
        assert row["simulation"] > 0
        assert row["simulation_error"] == pytest.approx(row["simulation"] / row["measured"] - 1)
        assert row["noise"] >= 0
    assert "SIMULATED" not in (lab.folder / "results-1/report.html").read_text()
