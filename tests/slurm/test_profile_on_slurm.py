"""Array profiling on a real Slurm, as an unprivileged user; the engines are simulated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from .mini_slurm import REPOSITORY, MiniSlurm

PROFILE = """
import json, sys
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.profiling.array import profile_all

seen = []
result = profile_all(
    "spec.yaml", "out", sys.argv[1], Site(gpu_names={"h100_sxm": "h100"}, time_min=10),
    on_progress=seen.append,
)
points = [(p.tp_degree, p.link, p.concurrency) for b in result.bundles for p in b.points]
last = seen[-1]
print(json.dumps({
    "failures": result.failures, "points": points, "how": [b.header.how for b in result.bundles],
    "counts": [last.num_tasks, last.num_ended, last.num_failed, last.num_points],
}))
"""

TOPOLOGY = """\
schema: scepsy/topology/v1
nodes:
  - {name: n1, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1, 2, 3]]}
"""


def write_inputs(folder: Path, *models: dict[str, Any]) -> None:
    spec = {
        "schema": "scepsy/profile-spec/v1",
        "topology": "topology.yaml",
        "models": [
            {"model": "meta-llama/Meta-Llama-3.1-8B", "engine": "simulated", **model}
            for model in models
        ],
        "workload": {"name": "short", "input_tokens": 64, "output_tokens": 8},
        "loads": {"concurrency": [1, 4], "requests_per_point": 8, "warmup_requests": 1},
    }
    (folder / "topology.yaml").write_text(TOPOLOGY)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))


def profile(slurm: MiniSlurm, folder: Path, cluster: str = "slurm") -> dict[str, Any]:
    done = slurm.run_as_user([sys.executable, "-c", PROFILE, cluster], cwd=folder, timeout_s=400)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def shipped_bundle() -> str:
    """The timing that the simulated engines follow, as its name below the shipped profiles."""
    from scepsy_hpc.files import shipped_path

    root = shipped_path("profiles")
    [found] = (root / "h100_sxm" / "meta-llama__Meta-Llama-3.1-8B").rglob("bundle.yaml")
    return str(found.parent.relative_to(root))


EXPECTED_POINTS = [[1, None, 1], [1, None, 4], [2, "nvlink", 1], [2, "nvlink", 4]]


def test_array_profiles_each_tp_degree(mini_slurm: MiniSlurm) -> None:
    """One job an array member, each on exactly its GPUs; the bundle has the points of all."""
    folder = mini_slurm.job_dir("profile")
    arguments = {"timing_bundle": shipped_bundle()}
    write_inputs(folder, {"engine_args": arguments, "tp_degrees": [1, 2]})
    before = set(mini_slurm.jobs())
    answer = profile(mini_slurm, folder)
    assert answer["failures"] == []
    assert answer["points"] == EXPECTED_POINTS
    assert answer["how"] == ["modelled"]
    assert answer["counts"] == [2, 2, 0, 4]
    jobs = set(mini_slurm.jobs()) - before
    scripts = sorted(folder.glob("out/.profiling/**/*_submission.sh"))
    assert len(jobs) == len(scripts) == 2
    texts = "\n".join(script.read_text() for script in scripts)
    assert "--gres=gpu:h100:1" in texts
    assert "--gres=gpu:h100:2" in texts


def test_failing_member_loses_only_its_points(mini_slurm: MiniSlurm) -> None:
    """Without vLLM a member of the array fails with that reason; the others' bundle is written."""
    folder = mini_slurm.job_dir("profile-with-a-failure")
    simulated = {"engine_args": {"timing_bundle": shipped_bundle()}}
    write_inputs(folder, simulated, {"engine": "vllm"})
    answer = profile(mini_slurm, folder)
    assert [task for task, _ in answer["failures"]] == ["1-Meta-Llama-3.1-8B-h100_sxm-tp1-share100"]
    assert "NVML" in answer["failures"][0][1]
    assert answer["points"] == EXPECTED_POINTS[:2]


def test_profiling_inside_an_allocation(mini_slurm: MiniSlurm) -> None:
    """The same inside a job of two nodes: tasks are its steps, side by side on its GPUs."""
    folder = mini_slurm.job_dir("profile-here")
    arguments = {"timing_bundle": shipped_bundle()}
    model = {"engine_args": arguments, "tp_degrees": [1, 2], "gpu_shares_pct": [50, 100]}
    write_inputs(folder, model)
    (folder / "profile.py").write_text(PROFILE)
    script = f"{sys.executable} profile.py here > answer"
    job = mini_slurm.sbatch(script, folder, "-N2", "--gres=gpu:2", "-c2", "--time=10")
    states = mini_slurm.wait_for_job(job, timeout_s=400)
    log = folder / f"slurm-{job}.out"
    assert states == {job: "COMPLETED"}, log.read_text()
    answer = json.loads((folder / "answer").read_text().splitlines()[-1])
    assert answer["failures"] == []
    assert answer["points"] == EXPECTED_POINTS[:2] + EXPECTED_POINTS


def test_job_file_works_as_it_is(mini_slurm: MiniSlurm) -> None:
    """jobs/profile.sbatch, submitted unchanged, profiles on the GPUs of its node."""
    folder = mini_slurm.job_dir("profile-job-file")
    write_inputs(folder, {"engine_args": {"timing_bundle": shipped_bundle()}, "tp_degrees": [2]})
    job_file = REPOSITORY / "jobs" / "profile.sbatch"
    answer = mini_slurm.run_as_user(["sbatch", "--parsable", str(job_file)], cwd=folder)
    job = answer.stdout.strip()
    states = mini_slurm.wait_for_job(job, timeout_s=400)
    log = (folder / f"scepsy-profile-{job}.log").read_text()
    assert states == {job: "COMPLETED"}, log
    assert list((folder / "profiles").rglob("bundle.yaml")), log
