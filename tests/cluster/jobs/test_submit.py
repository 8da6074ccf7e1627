"""The same function on a (faked) Slurm, in an allocation, as local processes and in-process."""

from __future__ import annotations

import json
import math
import os
import stat
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
import task_functions

from scepsy_hpc.cluster.jobs import slurm_jobs
from scepsy_hpc.cluster.jobs.submit import dry_run, submit
from scepsy_hpc.cluster.jobs.tasks import Resources, TaskOutcome
from scepsy_hpc.cluster.site import Container, Site
from scepsy_hpc.errors import InputError, RunError

SMALL = Resources(time_min=1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Lets a task's process import the functions that these tests submit."""
    here = Path(task_functions.__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent.parent}")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder in which the fake Slurm keeps what it saw; it is first on PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    tools = fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_jobs, "RESULT_POLL_S", 0.05)
    monkeypatch.setattr(slurm_jobs, "FIRST_SQUEUE_S", 0.1)
    monkeypatch.setattr(slurm_jobs, "GRACE_S", 0.2)
    return folder


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_values_come_back_in_order(tmp_path, cluster):
    """Each argument's value stands at its place, and each outcome is told once."""
    seen: list[TaskOutcome] = []
    jobs = submit(cluster, tmp_path, math.sqrt, [4.0, 9.0, 16.0], SMALL)
    outcomes = jobs.wait(on_outcome=seen.append)
    assert [outcome.value for outcome in outcomes] == [2.0, 3.0, 4.0]
    assert sorted(outcome.index for outcome in seen) == [0, 1, 2]


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_a_failing_task_loses_only_itself(tmp_path, cluster):
    """An exception of one task is its own error in one line; the others have values."""
    outcomes = submit(cluster, tmp_path, math.sqrt, [4.0, -1.0], SMALL).wait()
    assert outcomes[0].value == 2.0
    assert outcomes[1].error == "ValueError: math domain error"


def test_errors_of_ours_are_told_as_they_are(tmp_path):
    """A RunError keeps its own words, line breaks included, and shows no traceback."""
    [outcome] = submit("local", tmp_path, task_functions.fail, ["first\n  second"], SMALL).wait()
    assert outcome.error == "first\n  second"


def test_local_task_that_dies_is_noticed(tmp_path):
    """A task whose process is killed has an error that says that it left no result."""
    [outcome] = submit("local", tmp_path, task_functions.die, [None], SMALL).wait()
    assert "ended without a result" in str(outcome.error)


def test_local_ranks_stand_for_nodes(tmp_path):
    """With several nodes a local task runs once a rank; in-process there is one rank."""
    resources = Resources(num_nodes=2, time_min=1)
    [outcome] = submit("local", tmp_path, task_functions.ask_rank, [None], resources).wait()
    assert outcome.values == ((0, 2), (1, 2))
    [alone] = submit("debug", tmp_path, task_functions.ask_rank, [None], resources).wait()
    assert alone.values == ((0, 1),)


def test_local_tasks_share_out_the_gpus(tmp_path):
    """Each local task sees as many GPUs as it asked for, out of those given, and only those."""
    resources = Resources(gpus_per_node=2, time_min=1)
    arguments = [None] * 3
    jobs = submit(
        "local",
        tmp_path,
        task_functions.environ_of_task,
        arguments,
        resources,
        local_gpus=(0, 1, 4, 5),
    )
    seen = [outcome.value["CUDA_VISIBLE_DEVICES"] for outcome in jobs.wait()]
    assert set(seen[:2]) == {"0,1", "4,5"}
    assert seen[2] in ("0,1", "4,5")


def test_more_gpus_than_there_are_is_refused(tmp_path):
    """A local task that needs more GPUs than the machine gives is bad input."""
    resources = Resources(gpus_per_node=4)
    with pytest.raises(InputError, match="a task needs 4 GPUs, this machine gives 2"):
        submit("local", tmp_path, math.sqrt, [1.0], resources, local_gpus=(0, 1))


def test_cancel_ends_what_runs_and_drops_what_waits(tmp_path):
    """After cancel the running task is interrupted, the next never starts, both are errors."""
    marks = [tmp_path / "first", tmp_path / "second"]
    jobs = submit("local", tmp_path, task_functions.sleep_after_marking, marks, SMALL)
    until = time.monotonic() + 60
    while not marks[0].exists() and time.monotonic() < until:
        time.sleep(0.05)
    jobs.cancel()
    errors = [outcome.error for outcome in jobs.wait()]
    assert all(errors)
    assert "cancelled before it started" in str(errors[1])
    assert not marks[1].exists()


def test_folder_is_private(tmp_path):
    """Pickles lie in a new folder a submission that only the user can enter."""
    jobs = [submit("debug", tmp_path / "jobs", math.sqrt, [1.0], SMALL) for _ in range(2)]
    assert jobs[0].folder != jobs[1].folder
    assert stat.S_IMODE(jobs[0].folder.stat().st_mode) == 0o700


def test_slurm_array_returns_results(tmp_path, slurm):
    """An array is submitted once, runs, and is awaited without sacct ever being asked."""
    jobs = submit("slurm", tmp_path / "jobs", math.sqrt, [4.0, -1.0, 16.0], SMALL)
    assert jobs.ids == ["71_0", "71_1", "71_2"]
    outcomes = jobs.wait()
    assert [outcome.value for outcome in outcomes] == [2.0, None, 4.0]
    assert outcomes[1].error == "ValueError: math domain error"


IMAGE_RUNTIME = """#!/bin/sh
echo "$@" > {seen}
while [ "$1" != my.sif ]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize("cluster", ["slurm", "here"])
def test_a_job_runs_in_the_site_s_image(tmp_path, slurm, monkeypatch, cluster):
    """The job's Python is the image's, started by its runtime on the node; values come back."""
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    runtime, seen = tmp_path / "apptainer", tmp_path / "seen"
    runtime.write_text(IMAGE_RUNTIME.format(seen=seen))
    runtime.chmod(0o755)
    box = Container(image="my.sif", wraps="jobs", python=sys.executable, runtime=str(runtime))
    site = Site(container=box, scratch="$NODE_DISK")
    monkeypatch.setenv("NODE_DISK", "/local/7")
    [outcome] = submit(cluster, tmp_path / "jobs", math.sqrt, [4.0], SMALL, site).wait()
    assert outcome.error is None
    assert outcome.value == 2.0
    assert seen.read_text().startswith(f"exec --nv --bind /local/7 my.sif {sys.executable}")


def test_vanished_slurm_task_is_an_error(tmp_path, slurm):
    """A task that left the queue without a result fails with its state; the others are kept."""
    (slurm / "lost").write_text("71_1")
    outcomes = submit("slurm", tmp_path / "jobs", math.sqrt, [4.0, 9.0], SMALL).wait()
    assert outcomes[0].value == 2.0
    assert "job 71_1 ended without a result (NODE_FAIL)" in str(outcomes[1].error)


def test_silent_squeue_loses_nothing(tmp_path, slurm):
    """While squeue does not answer the tasks are waited for, and the note says why."""
    (slurm / "squeue_fails").touch()
    (slurm / "lost").write_text("71")
    notes: list[str] = []
    jobs = submit("slurm", tmp_path / "jobs", math.sqrt, [4.0], SMALL)
    [outcome] = jobs.wait(on_tick=notes.append)
    assert any("Unable to contact slurm controller" in note for note in notes)
    assert "NODE_FAIL" in str(outcome.error)


def test_waiting_tasks_say_why(tmp_path, slurm):
    """A pending job is waited for with Slurm's reason in the note; cancel ends it."""
    (slurm / "lost").write_text("71")
    (slurm / "held").write_text(json.dumps({"71": "PENDING"}))
    jobs = submit("slurm", tmp_path / "jobs", math.sqrt, [4.0], SMALL)
    notes: list[str] = []

    def stop_when_told(note: str) -> None:
        notes.append(note)
        if note:
            jobs.cancel()

    [outcome] = jobs.wait(on_tick=stop_when_told)
    assert "Priority" in notes
    assert (slurm / "cancelled").read_text() == "71"
    assert "CANCELLED" in str(outcome.error)


def test_refused_submission_says_what_slurm_said(tmp_path, slurm):
    """When sbatch refuses, the error is its own line and nothing waits."""
    (slurm / "refusal").write_text("sbatch: error: invalid partition specified: gpuu")
    with pytest.raises(RunError, match=r"sbatch refused the job: .*invalid partition .*gpuu"):
        submit("slurm", tmp_path / "jobs", math.sqrt, [4.0], SMALL)


def test_nested_submission_is_clean(tmp_path, slurm, monkeypatch):
    """What an enclosing job left in the environment does not reach sbatch; SLURM_CONF does."""
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    site = Site(partition="gpu")
    submit("slurm", tmp_path / "jobs", math.sqrt, [4.0], SMALL, site).wait()
    seen = json.loads((slurm / "environ").read_text())
    inherited = {k: v for k, v in seen.items() if k.startswith(("SLURM_", "SBATCH_"))}
    assert inherited == {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "mine"}
    assert os.environ["SLURM_ARRAY_TASK_ID"] == "9"


def test_dry_run_is_what_sbatch_gets(tmp_path, slurm):
    """The dry run shows the submitted text but for the folder, and submits nothing."""
    site = Site(
        partition="gpu",
        account="proj",
        gpu_names={"h100_sxm": "h100"},
        setup=("module load cuda",),
        sbatch={"exclude": "gpu07"},
    )
    resources = Resources(
        gpus_per_node=2, gpu_type="h100_sxm", cpus_per_task=8, mem_gib=32, time_min=30
    )
    text = dry_run(tmp_path / "jobs", 3, resources, site, "scepsy-profile")
    assert not (slurm / "script").exists()
    for line in (
        "--array=0-2%3",
        "--account=proj",
        "--gres=gpu:h100:2",
        "--mem=32768M",
        "--time=30",
        "--exclude=gpu07",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "\nmodule load cuda\n" in text
    jobs = submit(
        "slurm", tmp_path / "jobs", math.sqrt, [1.0] * 3, resources, site, "scepsy-profile"
    )
    jobs.wait()
    submitted = (slurm / "script").read_text()
    assert submitted.replace(str(jobs.folder), str(tmp_path / "jobs")) == text


def test_step_of_an_allocation_states_its_shape(tmp_path, slurm, monkeypatch):
    """Inside an allocation a task is an srun step that inherits nothing of the calling step."""
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    resources = Resources(gpus_per_node=1, cpus_per_task=2, gpu_type="h100_sxm", time_min=1)
    outcomes = submit("here", tmp_path / "jobs", math.sqrt, [4.0, 9.0], resources).wait()
    assert [outcome.value for outcome in outcomes] == [2.0, 3.0]
    said = (slurm / "srun").read_text().split()
    assert {"--exact", "--ntasks=1", "--nodes=1", "--cpus-per-task=2", "--gres=gpu:1"} <= set(said)
    seen = json.loads((slurm / "step_environ").read_text())
    assert seen["SLURM_JOB_ID"] == "71"
    assert not {"SLURM_CPU_BIND", "SLURM_NTASKS"} & set(seen)


def test_here_outside_an_allocation_is_refused(tmp_path, monkeypatch):
    """--cluster here without an allocation is bad input that names the alternatives."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match=r"no Slurm allocation.*--cluster local"):
        submit("here", tmp_path, math.sqrt, [4.0], SMALL)


def test_slurm_without_slurm_is_refused(tmp_path, monkeypatch):
    """--cluster slurm where there is no sbatch is bad input that names the alternatives."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch, squeue, srun not found"):
        submit("slurm", tmp_path, math.sqrt, [4.0], SMALL)


def test_function_must_be_importable(tmp_path):
    """A lambda cannot be found again by another process: our own mistake, told at once."""
    with pytest.raises(ValueError, match="importable"):
        submit("local", tmp_path, lambda x: x, [1], SMALL)
