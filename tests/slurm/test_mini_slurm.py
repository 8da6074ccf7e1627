"""The mini cluster itself: it behaves as Slurm does, fails as Slurm does, and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from . import account, processes
from .config import ClusterShape
from .mini_slurm import REPOSITORY, MiniSlurm

ARRAY_OF_SQUARES = """
import json, os, pathlib, submitit

def square(number):
    return number**2, os.getuid(), os.environ["CUDA_VISIBLE_DEVICES"]

executor = submitit.AutoExecutor(folder="logs", cluster="slurm")
executor.update_parameters(
    timeout_min=5, mem_gb=1, cpus_per_task=1, slurm_additional_parameters={"gres": "gpu:1"}
)
results = [job.result() for job in executor.map_array(square, [1, 2, 3])]
pathlib.Path("results.json").write_text(json.dumps(results))
"""

ARRAY_WITH_A_DEATH = """
import os, signal, submitit

def die_when_odd(number):
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)

executor = submitit.AutoExecutor(folder="logs", cluster="slurm")
executor.update_parameters(timeout_min=5, mem_gb=1)
print(executor.map_array(die_when_odd, [0, 1])[0].job_id.split("_")[0])
"""


def test_all_nodes_are_idle(mini_slurm: MiniSlurm) -> None:
    """The default cluster has four idle nodes, each with four GPUs of its type."""
    assert mini_slurm.nodes() == dict.fromkeys(["n1", "n2", "n3", "n4"], "idle")
    gres = mini_slurm.run_as_user(["sinfo", "-h", "-p", "gpu", "-o", "%D %G"]).stdout
    assert gres.split() == ["4", "gpu:h100:4"]


def test_two_node_job_sees_its_gpus(mini_slurm: MiniSlurm) -> None:
    """Each node of a job with --gres=gpu:2 gives it two GPUs, and it runs as the plain user."""
    folder = mini_slurm.job_dir("two-nodes")
    show = "srun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $(id -un)'"
    job = mini_slurm.sbatch(show, folder, "-N2", "--gres=gpu:2", "-o", "out")
    assert mini_slurm.wait_for_job(job) == {job: "COMPLETED"}
    lines = sorted((folder / "out").read_text().splitlines())
    assert lines == [f"n1 0,1 {account.USER_NAME}", f"n2 0,1 {account.USER_NAME}"]


def test_neighbours_get_different_gpus(mini_slurm: MiniSlurm) -> None:
    """Two jobs on one node never see the same GPU."""
    folder = mini_slurm.job_dir("neighbours")
    show = "echo $CUDA_VISIBLE_DEVICES > $SLURM_JOB_ID; until test -e go; do sleep 0.2; done"
    options = ("-w", "n3", "--gres=gpu:2")
    jobs = [mini_slurm.sbatch(show, folder, *options) for _ in range(2)]
    for job in jobs:
        mini_slurm.wait_until((folder / job).exists, 30, f"job {job} to start")
    (folder / "go").touch()
    for job in jobs:
        assert mini_slurm.wait_for_job(job) == {job: "COMPLETED"}
    assert sorted((folder / job).read_text().strip() for job in jobs) == ["0,1", "2,3"]


def test_submitit_array_returns_results(mini_slurm: MiniSlurm) -> None:
    """A submitit array of three tasks runs as the user, each on one GPU, and returns values."""
    folder = mini_slurm.job_dir("array")
    mini_slurm.run_as_user([sys.executable, "-c", ARRAY_OF_SQUARES], cwd=folder)
    values = json.loads((folder / "results.json").read_text())
    assert [value[0] for value in values] == [1, 4, 9]
    assert {value[1] for value in values} == {account.ensure_user().pw_uid}
    assert {value[2] for value in values} <= {"0", "1", "2", "3"}


def test_a_killed_task_fails_in_squeue_and_leaves_no_pickle(mini_slurm: MiniSlurm) -> None:
    """Without sacct the state from squeue is the only sign that a submitit task died."""
    folder = mini_slurm.job_dir("death")
    done = mini_slurm.run_as_user([sys.executable, "-c", ARRAY_WITH_A_DEATH], cwd=folder)
    job = done.stdout.strip()
    ended = mini_slurm.wait_for_job(job)
    assert ended == {f"{job}_0": "COMPLETED", f"{job}_1": "FAILED"}
    assert [path.name for path in folder.glob("logs/*_result.pkl")] == [f"{job}_0_0_result.pkl"]
    assert mini_slurm.run_as_user(["sacct"], check=False).returncode != 0


def test_commands_inherit_no_slurm_variable(
    mini_slurm: MiniSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SLURM_ variable of the calling shell does not reach the user's commands."""
    monkeypatch.setenv("SLURM_CPU_BIND", "none")
    lines = mini_slurm.run_as_user(["env"]).stdout.splitlines()
    assert [line for line in lines if line.startswith("SLURM_")] == [
        f"SLURM_CONF={mini_slurm.conf}"
    ]


def test_job_with_no_kill_outlives_a_node(hasty_slurm: MiniSlurm) -> None:
    """With --no-kill a job goes on with the nodes left, and the lost node comes back to service."""
    folder = hasty_slurm.job_dir("no-kill")
    wait = "srun --no-kill bash -c 'touch $SLURMD_NODENAME; until test -e go; do sleep 0.2; done'"
    job = hasty_slurm.sbatch(f"{wait}; touch end", folder, "-N2", "--no-kill", "--gres=gpu:4")
    for node in ("n1", "n2"):
        hasty_slurm.wait_until((folder / node).exists, 30, f"the step to start on {node}")
    hasty_slurm.kill_node("n2")
    hasty_slurm.wait_for_node("n2", "down", 60)
    assert hasty_slurm.jobs(job) == {job: "RUNNING"}
    (folder / "go").touch()
    assert hasty_slurm.wait_for_job(job) == {job: "COMPLETED"}
    assert (folder / "end").exists()
    hasty_slurm.start_node("n2")
    hasty_slurm.wait_for_node("n2", "idle", 60)


def test_a_preempted_job_is_requeued(hasty_slurm: MiniSlurm) -> None:
    """A job of partition preempt takes the nodes; the other starts again, with its count told."""
    folder = hasty_slurm.job_dir("preempted")
    first = hasty_slurm.sbatch(
        'touch started; test -n "$SLURM_RESTART_COUNT" || sleep 600; echo $SLURM_RESTART_COUNT',
        folder,
        *("-N2", "--gres=gpu:4", "-o", "out", "--open-mode=append"),
    )
    hasty_slurm.wait_until((folder / "started").exists, 30, "the first job to start")
    second = hasty_slurm.sbatch("true", folder, "-N2", "--gres=gpu:4", "-p", "preempt")
    assert hasty_slurm.wait_for_job(second) == {second: "COMPLETED"}
    assert hasty_slurm.wait_for_job(first) == {first: "COMPLETED"}
    assert (folder / "out").read_text().splitlines()[-1] == "1"


def test_user_limits_its_processes_in_the_delegated_cgroup(hasty_slurm: MiniSlurm) -> None:
    """A job can make a CPU cgroup with a quota in the delegated one and move itself there."""
    folder = hasty_slurm.job_dir("cgroup")
    group = hasty_slurm.delegate_cpu_cgroup()
    script = """
mkdir $GROUP/slice && echo 35000 > $GROUP/slice/cpu.cfs_quota_us
echo $$ > $GROUP/slice/cgroup.procs && grep -c /slice$ /proc/self/cgroup
"""
    job = hasty_slurm.sbatch(script, folder, f"--export=ALL,GROUP={group}", "-o", "out")
    assert hasty_slurm.wait_for_job(job) == {job: "COMPLETED"}
    assert (folder / "out").read_text().strip() == "1"


def test_stop_leaves_no_process(cluster_dir: Path) -> None:
    """stop() ends the daemons and what the jobs started, even a process in a session of its own."""
    with MiniSlurm(cluster_dir, ClusterShape(num_nodes=2, gpu_type="cpu_slice")) as cluster:
        folder = cluster.job_dir("detached")
        group = cluster.delegate_cpu_cgroup()
        cluster.sbatch("setsid sleep 1000 & echo $! > pid; trap '' TERM; sleep 1000", folder)
        pid = folder / "pid"
        cluster.wait_until(lambda: pid.exists() and pid.read_text() != "", 30, "the job to start")
        seen = processes.of_cluster(cluster.conf)
    assert len(seen) > 6  # munged, slurmctld, two slurmd, the step daemon, the job and its child
    assert processes.of_cluster(cluster.conf) == []
    assert not psutil.pid_exists(int(pid.read_text()))
    assert not group.exists()


def test_command_line_starts_and_stops(cluster_dir: Path) -> None:
    """A cluster started by one command is used, shown and stopped by others."""

    def mini_slurm(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "tests.slurm.mini_slurm", command, "--dir", str(cluster_dir)]
        return subprocess.run([*line, *arguments], cwd=REPOSITORY, capture_output=True, text=True)

    assert mini_slurm("status").returncode == 1
    started = mini_slurm("start", "--num-nodes", "1", "--gpu-type", "a100")
    try:
        assert started.returncode == 0, started.stderr
        assert mini_slurm("run", "--", "sinfo", "-h", "-p", "gpu", "-o", "%D %G %t").stdout == (
            "1 gpu:a100:4 idle\n"
        )
        assert "started" not in mini_slurm("start").stdout
        assert "slurmctld.log" in mini_slurm("status").stdout
    finally:
        stopped = mini_slurm("stop")
    assert stopped.stdout == "stopped\n"
    assert processes.of_cluster(cluster_dir / "slurm.conf") == []


def test_user_passes_through_a_closed_directory(cluster_dir: Path) -> None:
    """The user reaches what lies behind a closed directory and a link, and cannot list either."""
    owner = account.ensure_user()
    cluster_dir.chmod(0o755)
    closed = cluster_dir / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("read me")
    closed.chmod(0o700)
    link = cluster_dir / "link"
    link.symlink_to("closed/inner")

    def read(*command: str) -> int:
        as_user = [
            "setpriv",
            f"--reuid={owner.pw_uid}",
            f"--regid={owner.pw_gid}",
            "--clear-groups",
        ]
        return subprocess.run([*as_user, *command], capture_output=True).returncode

    assert read("cat", str(link / "file")) != 0
    assert account.let_pass(owner, [link / "file"]) == [closed]
    assert read("cat", str(link / "file")) == 0
    assert read("ls", str(closed)) != 0
