"""The drill on a real Slurm of several slurmd on this machine, as an unprivileged user."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import local_faults
import psutil
import traces
from batch_case import make_case
from episode import Verdict, play
from local_faults import Fault
from stage import REPOSITORY, Hung, Stage

from tests.slurm import account
from tests.slurm.client import MiniSlurmError
from tests.slurm.config import ClusterShape
from tests.slurm.mini_slurm import MiniSlurm

# A node counts as down after 6 s and a requeued job may start after 5: faults come fast here.
SHAPE = ClusterShape(
    num_nodes=2, gpu_type="cpu_slice", node_down_after_s=6, kill_wait_s=2, requeue_delay_s=5
)
MOST_FAULTS_A_RUN = 4
FAULT_BOUND_S = 300.0
GONE = ("CANCELLED", "COMPLETED", "COMPLETING", "FAILED", "NODE_FAIL", "TIMEOUT", "PREEMPTED")


@dataclass
class SlurmStage(Stage):
    """A stage whose commands the unprivileged user gives, on a cluster of its own."""

    cluster: MiniSlurm = field(kw_only=True)

    def popen(self, line: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program as the user of the cluster."""
        folder = self.case.folder
        extra = {"PYTHONPATH": str(REPOSITORY), **self.own_environment()}
        return self.cluster.popen_as_user(
            line, cwd=folder, env=extra, start_new_session=True, **options
        )

    def jobs(self, *states: str) -> list[str]:
        """Ids of this folder's jobs that are in one of the states, oldest first."""
        ids = {job for name in ("job", "chain") for job in self._ids(name)}
        found = self.cluster.jobs()
        return sorted((i for i in ids if found.get(i) in states), key=int)

    def _ids(self, name: str) -> list[str]:
        try:
            found = json.loads((self.case.out / "private" / f"{name}.json").read_text())
        except (OSError, ValueError):
            return []
        return list(found["ids"])

    def running_job(self) -> str:
        """Id of the job that works the batch off now."""
        self.until(lambda: self.is_running() and bool(self.jobs("RUNNING")), "a job", FAULT_BOUND_S)
        return self.jobs("RUNNING")[0]

    def node_of(self, process: psutil.Process) -> str:
        """The node that a process runs on."""
        return str(process.environ()["SLURMD_NODENAME"])

    def lead_node(self) -> str:
        """The node of the process that leads."""
        return self.node_of(local_faults.choose(self, lambda: _some(self.lead()), "lead"))


def slurm_kill_engine(stage: SlurmStage) -> str:
    """SIGKILL to an engine of a Slurm job."""
    return local_faults.kill_engine(stage)


def slurmd_stopped(stage: SlurmStage) -> str:
    """The daemon of one node dies and comes back after a while; its steps run on."""
    stage.running_job()
    node, long_s = stage.rng.choice(SHAPE.node_names), stage.rng.uniform(2.0, 12.0)
    stage.cluster.kill_slurmd(node)
    time.sleep(long_s)
    stage.cluster.start_node(node)
    return f"slurmd of {node} away for {long_s:.1f} s"


def node_lost(stage: SlurmStage) -> str:
    """Everything on the lead's node gets SIGKILL; the node comes back when it was seen down."""
    stage.running_job()
    node = stage.lead_node()
    stage.cluster.kill_node(node)
    with contextlib.suppress(MiniSlurmError):
        stage.cluster.wait_for_node(node, "down", 40.0)
    stage.cluster.start_node(node)
    return f"node {node}, which led, lost"


def lead_frozen(stage: SlurmStage) -> str:
    """The process that leads stops for good."""
    stage.running_job()
    lead = local_faults.choose(stage, lambda: _some(stage.lead()), "lead")
    traces.signal_all([lead], signal.SIGSTOP)

    def another_leads() -> bool:
        found = stage.lead() if stage.is_running() else None
        return found is not None and found.pid != lead.pid

    stage.until(another_leads, "another lead", FAULT_BOUND_S)
    return f"lead {lead.pid} stopped for good"


def preemption(stage: SlurmStage) -> str:
    """Another job takes both nodes for a moment."""
    job, cluster = stage.running_job(), stage.cluster
    line = ["-N2", "--gres=gpu:4", "-p", "preempt"]
    other = cluster.sbatch("true", stage.case.folder, *line)
    cluster.wait_for_job(other, 120.0)
    return f"job {job} preempted by {other}"


def time_limit(stage: SlurmStage) -> str:
    """A minute is over: the next job of the chain, or --resume, goes on."""
    job = stage.running_job()
    stage.until(lambda: job not in stage.jobs("RUNNING"), "the time limit", FAULT_BOUND_S)
    return f"job {job} at its time limit"


def scancel(stage: SlurmStage) -> str:
    """The running job is cancelled, or all jobs of the user."""
    job, every = stage.running_job(), stage.rng.random() < 0.5
    stage.cluster.run_as_user(["scancel", *(["-u", account.USER_NAME] if every else [job])])
    stage.until(lambda: job not in stage.jobs("RUNNING"), "the job to end", FAULT_BOUND_S)
    return f"job {job} cancelled{' with all others' if every else ''}"


SLURM: dict[str, Callable[[Any], str]] = {
    one.__name__: one
    for one in (
        *(slurm_kill_engine, slurmd_stopped, node_lost, lead_frozen),
        *(preemption, time_limit, scancel),
    )
}
WORDS = {"time_limit": ("--time", "1min")}


def all_runs(
    options: argparse.Namespace, folder: Path, report: Callable[[Verdict], None]
) -> list[Verdict]:
    """Runs of every kind, some clusters side by side; each has one run at a time."""
    kinds = [kind for kind in SLURM if not options.only or kind in options.only]
    wanted: list[tuple[str, int, int]] = []
    for kind in kinds:
        left, number = options.faults, 0
        while left > 0:
            wanted.append((kind, number, min(left, MOST_FAULTS_A_RUN)))
            left, number = left - MOST_FAULTS_A_RUN, number + 1
    # The long ones first, so that the clusters end together.
    wanted.sort(key=lambda one: one[0] not in ("time_limit", "node_lost", "lead_frozen"))
    with ThreadPoolExecutor(max(1, min(options.side_by_side, len(wanted)))) as pool:
        asked = [pool.submit(_one_run, options, *one, report) for one in wanted]
        return [one.result() for one in asked]


def _one_run(
    options: argparse.Namespace,
    kind: str,
    number: int,
    num_faults: int,
    report: Callable[[Verdict], None],
) -> Verdict:
    directory = Path(tempfile.mkdtemp(prefix="drill-slurm-"))
    seed = f"{options.seed}/{kind}/{number}"
    with MiniSlurm(directory, SHAPE) as cluster:
        verdict = _run_on(cluster, kind, num_faults, seed, options.tasks)
    report(verdict)
    if verdict.is_clean:
        shutil.rmtree(directory)
    else:
        print(f"    what it left is in {directory}", flush=True)
    return verdict


def _run_on(cluster: MiniSlurm, kind: str, num_faults: int, seed: str, num_tasks: int) -> Verdict:
    rng, owner = random.Random(seed), account.ensure_user()
    folder = cluster.job_dir("drill")
    case = make_case(folder, rng, num_tasks, num_faults + 1, gpu_type="cpu_slice")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    words = ("--cluster", "slurm", *WORDS.get(kind, ()))
    # A silent node counts as lost after 120 s, and engines must start again after that.
    stage = SlurmStage(case, rng, words, cluster=cluster, bound_s=FAULT_BOUND_S)
    faults: dict[str, Fault] = dict(SLURM)
    verdict = Verdict(kind, seed, num_tasks)
    try:
        return play(kind, [kind] * num_faults, faults, stage, verdict)
    except (MiniSlurmError, psutil.Error, Hung) as error:
        stage.stop_all()
        verdict.problems.append(f"the drill itself failed: {error}")
        verdict.log = stage.log
        return verdict


def _some(process: psutil.Process | None) -> list[psutil.Process]:
    return [] if process is None else [process]
