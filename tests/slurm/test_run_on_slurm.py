"""Plans hosted and worked off by Slurm jobs of two nodes, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
import serving_cases as cases

from .mini_slurm import REPOSITORY, MiniSlurm

SCEPSY = (sys.executable, "-m", "scepsy_hpc")
# The large node of the plan has two GPUs, the small one has one.
INSTANCES = {
    "l0": ("large", "a", (0,)),
    "s0": ("small", "a", (1,)),
    "l1": ("large", "b", (0,)),
}
LONG_S = 240.0


def scepsy(cluster: MiniSlurm, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """One command of the user to its end, whatever its exit code."""
    line = [*SCEPSY, *(str(word) for word in words)]
    return cluster.run_as_user(line, cwd=folder, timeout_s=LONG_S, check=False)


def begin(
    cluster: MiniSlurm, folder: Path, *words: object
) -> AbstractContextManager[subprocess.Popen[str]]:
    """One command of the user, left running."""
    line = [*SCEPSY, *(str(word) for word in words)]
    pipe = subprocess.PIPE
    return cases.ended_with(
        cluster.popen_as_user(line, folder, stdout=pipe, stderr=pipe, start_new_session=True)
    )


def gated(folder: Path, num_free: int, num_gated: int) -> list[dict[str, Any]]:
    """Tasks of which the last wait for the file `gate`."""
    free = [{"task_id": f"t{i:02}"} for i in range(num_free)]
    return free + [{"task_id": f"g{i:02}", "gate": f"{folder}/gate"} for i in range(num_gated)]


def test_two_nodes_work_a_batch_off(mini_slurm: MiniSlurm) -> None:
    """Thirty tasks end once each, on engines of both nodes, on the GPUs that Slurm granted."""
    folder = mini_slurm.job_dir("run-batch")
    occupant = mini_slurm.sbatch("sleep 600", folder, "-w", "n1", "--gres=gpu:1")
    mini_slurm.wait_for_state(occupant, {"RUNNING"})
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 26, 4))
    site = folder / "site.yaml"
    site.write_text("schema: scepsy/site/v1\nsbatch: {nodelist: 'n[1-2]'}\n")
    out = folder / "out"
    words = ("run", plan, tasks, "-o", out, "--cluster", "slurm", "--site", site)
    with begin(mini_slurm, folder, *words) as running:
        cases.wait_for_results(running, out, 26, LONG_S)
        reports = cases.engine_reports(out)
        nodes = {name: where_it_runs(report) for name, report in reports.items()}
        (folder / "gate").touch()
        output, errors = running.communicate(timeout=LONG_S)
    assert running.returncode == 0, errors
    cases.assert_each_once(out, tasks)
    assert nodes["l0"][0] == nodes["s0"][0] != nodes["l1"][0]
    assert {node for node, _ in nodes.values()} == {"n1", "n2"}
    for name, report in reports.items():
        node, granted = nodes[name]
        assert set(report["gpus"]) <= granted
        assert granted == ({"1", "2"} if node == "n1" else {"0", "1"})
    assert all(entry["num_calls"] > 0 for entry in cases.status_of(out)["instances"])
    assert "tasks recorded: 30" in output
    mini_slurm.run_as_user(["scancel", occupant])
    mini_slurm.wait_for_job(occupant)


def where_it_runs(report: dict[str, Any]) -> tuple[str, set[str]]:
    """Node and visible GPUs, from the environment that Slurm gave the engine's process."""
    environment = psutil.Process(report["pid"]).environ()
    return environment["SLURMD_NODENAME"], set(environment["CUDA_VISIBLE_DEVICES"].split(","))


def test_serve_answers_clients_until_stopped(mini_slurm: MiniSlurm) -> None:
    """The endpoint that `status` shows answers the OpenAI client with the key, and only with it."""
    openai = pytest.importorskip("openai")
    folder = mini_slurm.job_dir("serve")
    plan, _ = cases.make_case(folder, INSTANCES, 1)
    out = folder / "out"
    with begin(mini_slurm, folder, "serve", plan, "-o", out, "--cluster", "slurm") as serving:
        cases.wait_until(lambda: cases.status_of(out)["state"] == "serving", "the endpoint", LONG_S)
        shown = json.loads(scepsy(mini_slurm, folder, "status", out, "--json").stdout)
        assert [entry["state"] for entry in shown["instances"]] == ["ready"] * 3
        key = (out / "private" / "api_key").read_text().strip()
        url = shown["url"].replace("RUN_ID", "by-hand")
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            answer = client.chat.completions.create(
                model="large", messages=[{"role": "user", "content": "Hello"}], max_tokens=5
            )
            assert answer.usage.completion_tokens == 5
        with (
            openai.OpenAI(base_url=url, api_key="guessed", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        assert "asked to stop" in scepsy(mini_slurm, folder, "stop", out).stdout
        _, errors = serving.communicate(timeout=LONG_S)
    assert serving.returncode == 0, errors
    assert cases.status_of(out)["state"] == "stopped"
    assert cases.processes_of(out) == []


def test_here_uses_the_allocation_it_runs_in(mini_slurm: MiniSlurm) -> None:
    """Inside a script of two nodes the batch runs in a step of that job, on both nodes."""
    folder = mini_slurm.job_dir("run-here")
    plan, tasks = cases.make_case(folder, INSTANCES, 12)
    out = folder / "out"
    line = f"{' '.join(SCEPSY)} run {plan} {tasks} -o {out} --cluster here"
    job = mini_slurm.sbatch(line, folder, "-N2", "--gres=gpu:2", "-c8", "-o", "log")
    assert mini_slurm.wait_for_job(job, LONG_S) == {job: "COMPLETED"}, (folder / "log").read_text()
    cases.assert_each_once(out, tasks)
    placement = json.loads(next(out.glob("private/attempts/*/placement.json")).read_text())
    assert {entry["rank"] for entry in placement} == {0, 1}


def test_stop_in_mid_batch_then_resume(mini_slurm: MiniSlurm) -> None:
    """After `stop` what had ended is recorded, the rest is said to be left, and resume runs it."""
    folder = mini_slurm.job_dir("run-stop")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 8, 4))
    out = folder / "out"
    words = ("run", plan, tasks, "-o", out, "--cluster", "slurm")
    with begin(mini_slurm, folder, *words) as running:
        cases.wait_for_results(running, out, 8, LONG_S)
        refused = scepsy(mini_slurm, folder, *words, "--resume")
        stopped = scepsy(mini_slurm, folder, "stop", out)
        _, errors = running.communicate(timeout=LONG_S)
    assert refused.returncode == 2
    assert "a run uses this folder now" in refused.stderr
    assert stopped.returncode == 0
    assert running.returncode == 4
    assert "4 tasks are not recorded" in errors
    (folder / "gate").touch()
    again = scepsy(mini_slurm, folder, *words, "--resume")
    assert again.returncode == 0, again.stderr
    cases.assert_each_once(out, tasks)
    assert [len(cases.run_ids_of(out, name)) for name in ("t00", "g00")] == [1, 2]


def test_a_cancelled_job_leaves_no_engine_and_resumes(mini_slurm: MiniSlurm) -> None:
    """scancel in mid-batch: the engines die with the job, the command says so, resume finishes."""
    folder = mini_slurm.job_dir("run-cancel")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 8, 4))
    out = folder / "out"
    words = ("run", plan, tasks, "-o", out, "--cluster", "slurm", "--chain", "0")
    with begin(mini_slurm, folder, *words) as running:
        cases.wait_for_results(running, out, 8, LONG_S)
        engines = [psutil.Process(r["pid"]) for r in cases.engine_reports(out).values()]
        job = json.loads((out / "private" / "job.json").read_text())["ids"][0]
        mini_slurm.run_as_user(["scancel", job])
        _, errors = running.communicate(timeout=LONG_S)
    assert running.returncode == 4
    assert "CANCELLED" in errors
    assert "8 of 12 tasks are recorded" in errors
    psutil.wait_procs(engines, timeout=30)
    assert not any(engine.is_running() for engine in engines)
    (folder / "gate").touch()
    again = scepsy(mini_slurm, folder, *words, "--resume")
    assert again.returncode == 0, again.stderr
    cases.assert_each_once(out, tasks)


def test_a_preempted_job_goes_on_by_itself(hasty_slurm: MiniSlurm) -> None:
    """A requeued job takes up the batch where it was; the command that waits does not notice."""
    folder = hasty_slurm.job_dir("run-preempted")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 6, 3), gpu_type="cpu_slice")
    out = folder / "out"
    with begin(hasty_slurm, folder, "run", plan, tasks, "-o", out, "--cluster", "slurm") as running:
        cases.wait_for_results(running, out, 6, LONG_S)
        other = hasty_slurm.sbatch("true", folder, "-N2", "--gres=gpu:4", "-p", "preempt")
        assert hasty_slurm.wait_for_job(other) == {other: "COMPLETED"}
        (folder / "gate").touch()
        _, errors = running.communicate(timeout=LONG_S)
    assert running.returncode == 0, errors
    cases.assert_each_once(out, tasks)
    assert cases.status_of(out)["attempt"].endswith("-1")


def test_a_node_that_dies_takes_no_task_with_it(hasty_slurm: MiniSlurm) -> None:
    """The batch goes on with the replica of the other node, and an alert names the lost one."""
    folder = hasty_slurm.job_dir("run-node-dies")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 6, 6), gpu_type="cpu_slice")
    out = folder / "out"
    with begin(hasty_slurm, folder, "run", plan, tasks, "-o", out, "--cluster", "slurm") as running:
        cases.wait_for_results(running, out, 6, LONG_S)
        placement = json.loads(next(out.glob("private/attempts/*/placement.json")).read_text())
        ranks = {entry["instance"]["id"]: entry["rank"] for entry in placement}
        engine = psutil.Process(cases.engine_reports(out)["l1"]["pid"])
        node = engine.environ()["SLURMD_NODENAME"]
        hasty_slurm.kill_node(node)
        (folder / "gate").touch()
        _, errors = running.communicate(timeout=LONG_S)
    hasty_slurm.start_node(node)
    hasty_slurm.wait_for_node(node, "idle", 60)
    assert ranks == {"l0": 0, "s0": 0, "l1": 1}
    assert running.returncode == 0, errors
    cases.assert_each_once(out, tasks)
    assert "alert: " in errors


WITH_SETTINGS = """
import sys
from pathlib import Path
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving.settings import RunSettings
plan, tasks, out = map(Path, sys.argv[1:])
settings = RunSettings(max_runs_in_flight=4, node_lost_s=15.0)
folder = runs.prepare(plan, tasks, out, settings)
runs.follow(folder, runs.launch(folder, "slurm"), lambda status, note: None)
"""


def test_another_node_goes_on_when_the_one_that_leads_dies(hasty_slurm: MiniSlurm) -> None:
    """With it die the batch script, srun and the agents; rank 1 takes over and ends the batch."""
    folder = hasty_slurm.job_dir("run-lead-dies")
    both = {**INSTANCES, "s1": ("small", "b", (1,))}
    plan, tasks = cases.make_case(folder, both, gated(folder, 6, 6), gpu_type="cpu_slice")
    out = folder / "out"
    line = [sys.executable, "-c", WITH_SETTINGS, str(plan), str(tasks), str(out)]
    pipe = subprocess.PIPE
    started = hasty_slurm.popen_as_user(
        line, folder, stdout=pipe, stderr=pipe, start_new_session=True
    )
    with cases.ended_with(started) as running:
        cases.wait_for_results(running, out, 6, LONG_S)
        engine = psutil.Process(cases.engine_reports(out)["l0"]["pid"])
        node = engine.environ()["SLURMD_NODENAME"]
        hasty_slurm.kill_node(node)
        cases.wait_until(lambda: cases.status_of(out).get("lead") == 1, "rank 1 to lead", LONG_S)
        (folder / "gate").touch()
        _, errors = running.communicate(timeout=LONG_S)
    hasty_slurm.start_node(node)
    hasty_slurm.wait_for_node(node, "idle", 60)
    assert running.returncode == 0, errors
    cases.assert_each_once(out, tasks)
    status = cases.status_of(out)
    assert (status["state"], status["lead"]) == ("ended", 1)
    assert status["last_lead"]["how"].startswith("rank 0 on ")


def test_the_time_limit_ends_a_run_in_order(mini_slurm: MiniSlurm) -> None:
    """Slurm's signal before the end of the time: no task is recorded as failed, resume finishes."""
    folder = mini_slurm.job_dir("run-time")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 6, 4))
    out = folder / "out"
    words = ("run", plan, tasks, "-o", out, "--cluster", "slurm")
    ended = scepsy(mini_slurm, folder, *words, "--time", "1min", "--chain", "0")
    assert ended.returncode == 4
    assert "tasks are not recorded" in ended.stderr
    assert cases.status_of(out)["state"] == "interrupted"
    assert {line["status"] for line in cases.results(out)} <= {"ok"}
    (folder / "gate").touch()
    again = scepsy(mini_slurm, folder, *words, "--resume")
    assert again.returncode == 0, again.stderr
    cases.assert_each_once(out, tasks)


def test_the_next_job_goes_on_with_nobody_there(mini_slurm: MiniSlurm) -> None:
    """The submitter is killed and the time ends in mid-batch: a queued job works the rest off.

    The job that was queued behind that one is taken out of the queue again.
    """
    folder = mini_slurm.job_dir("run-chain")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 6, 4))
    out = folder / "out"
    words = ("run", plan, tasks, "-o", out, "--cluster", "slurm", "--time", "1min")
    with begin(mini_slurm, folder, *words) as running:
        cases.wait_for_results(running, out, 6, LONG_S)
        running.kill()
    number = cases.number_of_job
    cases.wait_until(lambda: number(out) == 1, "the second job", LONG_S)
    (folder / "gate").touch()
    cases.wait_until(lambda: len(cases.results(out)) == 10, "all results", LONG_S)
    cases.assert_each_once(out, tasks)
    chain = json.loads((out / "private" / "chain.json").read_text())["ids"]
    assert len(chain) == 3
    for job in chain:
        mini_slurm.wait_for_job(job, LONG_S)
    assert cases.status_of(out)["state"] == "ended"
    assert number(out) == 1


def test_a_job_of_the_chain_ends_at_once_where_nothing_is_left(mini_slurm: MiniSlurm) -> None:
    """The batch is complete before its next job starts, and nobody could take that out: no engine.

    Two jobs of one folder never run at a time.
    """
    folder = mini_slurm.job_dir("run-chain-done")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 6, 0))
    out = folder / "out"
    done = scepsy(mini_slurm, folder, "run", plan, tasks, "-o", out, "--cluster", "slurm")
    assert done.returncode == 0, done.stderr
    from scepsy_hpc.serving.chain import job_name
    from scepsy_hpc.serving.run_folder import RunFolder

    names = mini_slurm.run_as_user(["squeue", "-h", "-o", "%j"]).stdout
    assert job_name(RunFolder(out)) not in names.split()
    attempts = sorted(path.name for path in (out / "private" / "attempts").iterdir())
    assert [name.rpartition("-")[2] for name in attempts] == ["0"]
    cases.assert_each_once(out, tasks)


def test_the_job_script_survives_a_preemption(hasty_slurm: MiniSlurm) -> None:
    """jobs/run.sbatch, as it is: requeued in mid-batch it goes on, and ends with the report."""
    folder = hasty_slurm.job_dir("run-script")
    plan, tasks = cases.make_case(folder, INSTANCES, gated(folder, 6, 3), gpu_type="cpu_slice")
    out = folder / "out"
    variables = f"--export=ALL,PLAN={plan},TASKS={tasks},RESULTS={out}"
    script = str(REPOSITORY / "jobs" / "run.sbatch")
    line = ["sbatch", "--parsable", variables, script]
    job = hasty_slurm.run_as_user(line, cwd=folder).stdout.strip()
    cases.wait_until(lambda: len(cases.results(out)) >= 6, "6 results", LONG_S)
    other = hasty_slurm.sbatch("true", folder, "-N2", "--gres=gpu:4", "-p", "preempt")
    assert hasty_slurm.wait_for_job(other) == {other: "COMPLETED"}
    (folder / "gate").touch()
    log = folder / f"scepsy-run-{job}.log"
    assert hasty_slurm.wait_for_job(job, LONG_S) == {job: "COMPLETED"}, log.read_text()
    cases.assert_each_once(out, tasks)
    assert [len(cases.run_ids_of(out, name)) for name in ("t00", "g00")] == [1, 2]
    assert (out / "report.html").stat().st_size > 0
