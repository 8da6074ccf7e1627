"""`scepsy doctor --site` on a real Slurm, as an unprivileged user."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .mini_slurm import REPOSITORY, MiniSlurm

SITE = """\
schema: scepsy/site/v1
partition: {partition}
gpu_names: {{h100_sxm: h100}}
scratch: {scratch}
"""


def doctor(
    cluster: MiniSlurm, folder: Path, *words: str, partition: str = "gpu"
) -> tuple[int, dict[str, Any]]:
    """Exit code and findings by name."""
    (folder / "site.yaml").write_text(SITE.format(partition=partition, scratch=folder))
    line = [sys.executable, "-m", "scepsy_hpc", "doctor", "--site", "site.yaml", "--json", *words]
    this = {"PYTHONPATH": str(REPOSITORY)}  # whichever checkout is installed
    done = cluster.run_as_user(line, cwd=folder, timeout_s=240, check=False, env=this)
    assert done.stdout, done.stderr
    return done.returncode, {found["what"]: found for found in json.loads(done.stdout)}


def test_a_node_is_looked_at_by_a_job(mini_slurm: MiniSlurm) -> None:
    """The job gets one GPU of the site's name, and what it found stands beside the login node's."""
    folder = mini_slurm.job_dir("doctor")
    before = set(mini_slurm.jobs())
    code, findings = doctor(mini_slurm, folder)
    assert findings["Slurm partitions"]["state"] == "ok"
    assert "gpu:h100" in findings["Slurm partitions"]["detail"]
    assert findings["Account and QOS"]["state"] == "missing"  # no accounting here
    assert findings["Compute node: shared folder"]["state"] == "ok"
    assert findings["Compute node: scratch"]["state"] == "ok"
    assert os.uname().nodename in findings["Compute node: host"]["detail"]
    # The GPUs of this cluster are made up: Slurm gives them, NVML knows of none.
    assert findings["Compute node: GPUs"]["state"] == "broken"
    assert findings["Compute node: GPUs"]["detail"].startswith("given 0")
    assert code == 1
    for found in findings.values():
        assert bool(found["fix"]) == (found["state"] != "ok"), found
    [job] = set(mini_slurm.jobs()) - before
    assert mini_slurm.wait_for_job(job) == {job: "COMPLETED"}
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_no_job_is_submitted_when_told(mini_slurm: MiniSlurm) -> None:
    """`--no-job` looks at the login node alone."""
    folder = mini_slurm.job_dir("doctor-no-job")
    before = set(mini_slurm.jobs())
    _, findings = doctor(mini_slurm, folder, "--no-job")
    assert not [what for what in findings if what.startswith("Compute node")]
    assert set(mini_slurm.jobs()) == before


def test_a_partition_that_is_none_is_said_twice(mini_slurm: MiniSlurm) -> None:
    """By sinfo, with the ones there are, and by sbatch's own refusal."""
    folder = mini_slurm.job_dir("doctor-partition")
    code, findings = doctor(mini_slurm, folder, partition="gpus")
    assert code == 1
    assert "'gpus' is not among: gpu, preempt" in findings["Slurm partitions"]["detail"]
    assert findings["Compute node"]["state"] == "broken"
    assert "invalid partition" in findings["Compute node"]["detail"]
