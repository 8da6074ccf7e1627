"""A laboratory for real vLLM without GPUs: a Slurm of two nodes, CPU slices, tiny models, a panel.

A node has two virtual GPUs, each a fixed part of a core held by a cgroup quota; tensor parallelism
of 2 takes both of a node. What is left of the machine is the dispatcher's and the agents'.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from slurm.config import ClusterShape
from slurm.mini_slurm import REPOSITORY, MiniSlurm

HERE = Path(__file__).parent
VLLM_VENV = Path(os.environ.get("SCEPSY_TEST_VLLM_VENV", REPOSITORY / ".venv-vllm"))
STEP_LIMIT_S = 1800.0
ON_SLURM = ("--cluster", "slurm", "--site", "site.yaml")
FLOW = "panel/workflow.yaml"
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
        # This checkout, whatever is installed.
        env = {"PYTHONPATH": str(REPOSITORY)}
        done = self.cluster.run_as_user(line, self.folder, STEP_LIMIT_S, check=False, env=env)
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


@contextmanager
def open_lab(
    num_tasks: int, requests_per_point: int = 12, keep: Callable[[], bool] = lambda: False
) -> Iterator[Lab]:
    """A lab with so many tasks to run; its folder stays where a step failed, or to ``keep`` it."""
    assert VLLM_VENV.is_dir(), f"{VLLM_VENV} is missing; run tests/vllm/install.sh"
    directory = Path(tempfile.mkdtemp(prefix="scepsy-vllm-"))
    shape = ClusterShape(num_nodes=2, gpus_per_node=2, gpu_type="cpu_slice", kill_wait_s=30)
    with MiniSlurm(directory, shape, readable=(VLLM_VENV,)) as cluster:
        made = Lab(cluster, cluster.job_dir("lab"))
        _write_inputs(made, num_tasks, requests_per_point)
        yield made
    if not keep():
        shutil.rmtree(directory)


def _write_inputs(lab: Lab, num_tasks: int, requests_per_point: int) -> None:
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
        "profile.yaml": _profile_spec(models, requests_per_point),
    }
    for name, content in files.items():
        (lab.folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    with (lab.folder / "tasks.jsonl").open("w") as stream:
        for number in range(num_tasks):
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


def _profile_spec(models: Path, requests_per_point: int) -> dict[str, Any]:
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
        "loads": {
            "concurrency": [1, 2, 4, 8],
            "requests_per_point": requests_per_point,
            "warmup_requests": 2,
        },
        "time_min": 20,
    }


def make_plan(
    lab: Lab,
    num_traced: int = 8,
    runs_in_flight: int = 2,
    target: Sequence[str] = ("--rate", "1", "--within", "0%"),
) -> None:
    """The pipeline up to the plan for ``target``: topology, trace, profile, plan."""
    lab.scepsy("topology", "--slurm", "gpu", "-o", "topology.yaml")
    few = ("-n", str(num_traced), "--runs-in-flight", str(runs_in_flight))
    traced = ("tasks.jsonl", "-o", "spans.jsonl", *few, "--plan", "trace-plan.yaml")
    lab.scepsy("trace", FLOW, *traced, *ON_SLURM)
    lab.scepsy("profile", "profile.yaml", "-o", "profiles", *ON_SLURM)
    known = ("--spans", "spans.jsonl", "--profiles", "profiles", "--topology", "topology.yaml")
    lab.scepsy("plan", "--workflow", FLOW, *known, *target, "-o", "plan.yaml")


def run_batch(lab: Lab, out: str, *pace: str) -> None:
    """All tasks on the plan, as ``pace`` says (options of `scepsy run`)."""
    lab.scepsy("run", "plan.yaml", "tasks.jsonl", "-o", out, *ON_SLURM, *pace)
