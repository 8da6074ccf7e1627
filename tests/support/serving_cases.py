"""A small workflow on simulated engines, for the tests that host plans; and a look at what ran."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from scepsy_hpc.formats.plan import Deployment, Instance, Plan, PlanWorkflow, save_plan
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.start import number_in_chain

MODELS = {"small": "Qwen/Qwen3-0.6B", "large": "Qwen/Qwen3-8B"}
TIME_SCALE = 0.02
# A task's `gate` is a file: the agent waits between its two calls until it exists. One that
# `leaves` something starts a process that outlives it, its session and its parent.
AGENT = '''
import json, os, pathlib, subprocess, sys, time, urllib.request


def ask(model, num_tokens):
    """One chat completion; the number of tokens that came back."""
    messages = [{"role": "user", "content": "Say something short."}]
    body = {"model": model, "messages": messages, "max_tokens": num_tokens, "ignore_eos": True}
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
        },
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def run(task):
    if task.get("fails") or not pathlib.Path(task.get("needs", "/")).exists():
        raise ValueError("this task is wrong")
    if task.get("leaves"):
        orphan = "import subprocess as s, sys; s.Popen(sys.argv[1:], start_new_session=True)"
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)", task["leaves"]]
        subprocess.run([sys.executable, "-c", orphan, *sleeper], check=True)
    tokens = ask("small", 2)
    while "gate" in task and not pathlib.Path(task["gate"]).exists():
        time.sleep(0.05)
    return {"tokens": tokens + ask("large", 3), "attempt": os.environ["SCEPSY_ATTEMPT"]}
'''


def make_case(folder, instances, tasks, gpu_type="h100_sxm", runs_in_flight=4, **engine_args):
    """Write plan, agent and tasks into ``folder``; returns the paths of plan and tasks.

    ``instances``: id to (LLM, logical node, GPUs). ``tasks``: a list, or how many plain ones.
    """
    (folder / "tiny_agent.py").write_text(AGENT)
    used = {llm for llm, _, _ in instances.values()}
    llms = {name: _deployment(name, gpu_type, instances, engine_args) for name in used}
    workflow = PlanWorkflow(
        name="tiny",
        llms={name: name for name in used},
        max_runs_in_flight=runs_in_flight,
        agent=Agent(python="tiny_agent:run", folder=str(folder)),
    )
    placed = tuple(
        Instance(id=name, llm=llm, node=node, gpus=gpus, gpu_share_pct=100)
        for name, (llm, node, gpus) in instances.items()
    )
    plan, lines = folder / "plan.yaml", folder / "tasks.jsonl"
    save_plan(plan, Plan(workflows=(workflow,), llms=llms, instances=placed))
    found = tasks if isinstance(tasks, list) else [{"task_id": f"t{i}"} for i in range(tasks)]
    lines.write_text("".join(json.dumps(task) + "\n" for task in found))
    return plan, lines


def _deployment(name, gpu_type, instances, engine_args):
    bundle = f"h100_sxm/{MODELS[name].replace('/', '__')}/vllm-0.24.0/token-grid"
    return Deployment(
        model=MODELS[name],
        engine="simulated",
        gpu_type=gpu_type,
        tp_degree=1,
        gpu_share_pct=100,
        num_replicas=sum(llm == name for llm, _, _ in instances.values()),
        engine_args={"timing_bundle": bundle, "time_scale": TIME_SCALE, **engine_args},
    )


# What Slurm's step would run on each node, here as processes of one machine.
_RANK = """
import sys
from scepsy_hpc.serving.host import host
from scepsy_hpc.serving.start import Start
host(Start(sys.argv[1], sys.argv[2], pretended=False))
"""


@contextlib.contextmanager
def ranks_of(folder, gpus_by_rank, attempt="a"):
    """One process for each rank, with the GPUs it is given; all of them end with the block."""
    num_ranks, started = len(gpus_by_rank), []
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1"}
    job |= {"SLURM_NTASKS": str(num_ranks), "SLURM_LOCALID": "0"}
    job |= {"SLURM_JOB_NUM_NODES": str(num_ranks), "SLURM_JOB_NODELIST": "n"}
    try:
        for rank, gpus in enumerate(gpus_by_rank):
            mine = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}
            environment = {**os.environ, **job, **mine, "CUDA_VISIBLE_DEVICES": gpus}
            with (folder.logs / f"rank{rank}.txt").open("wb") as log:
                line = [sys.executable, "-c", _RANK, str(folder.root), attempt]
                started.append(
                    subprocess.Popen(
                        line, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
        yield started
    finally:
        for running in started:
            family = [psutil.Process(running.pid)] if running.poll() is None else []
            family += [child for one in family for child in one.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            running.wait()


def family_of(running):
    """A process and all below it."""
    parent = psutil.Process(running.pid)
    return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def ended_with(running):
    """A command left running; it and what it started get SIGKILL when the test fails meanwhile."""
    with running:
        try:
            yield running
        except BaseException:
            started = psutil.Process(running.pid).children(recursive=True)
            for process in (running, *started):
                process.kill()
            raise


def results(out):
    """Lines of results.jsonl so far; whole ones only."""
    path = Path(out) / "results.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if "\n" in line]


def assert_each_once(out, tasks_path, status="ok"):
    """Every task stands exactly once in results.jsonl, with that status."""
    wanted = [json.loads(line)["task_id"] for line in Path(tasks_path).read_text().splitlines()]
    found = results(out)
    assert sorted(line["task_id"] for line in found) == sorted(wanted)
    assert {line["status"] for line in found} == {status}, found


def status_of(out):
    """status.json as it is now, or an empty status."""
    found = _json_of(Path(out) / "status.json")
    return found or {"state": None, "instances": [], "tasks": None}


def number_of_job(out):
    """Number in the chain of the job that wrote the status."""
    return number_in_chain(status_of(out).get("attempt") or "")


def engine_reports(out):
    """What the nodes say of each engine in the attempt that the status names."""
    folder = RunFolder(Path(out)).attempt(status_of(out)["attempt"]).root / "engines"
    return {path.stem: _json_of(path) for path in folder.glob("*.json")}


def _json_of(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def run_ids_of(out, task_id):
    """Runs of a task that the spans know, in order of their start."""
    spans = [s for s in load_spans(Path(out) / "spans.jsonl") if s.kind == "run"]
    return [
        s.run_id
        for s in sorted(spans, key=lambda s: s.start_s)
        if s.run_id.startswith(task_id + ".")
    ]


def wait_until(holds, what, timeout_s=90.0):
    """Returns when ``holds()`` is true; fails with ``what`` after a time that only a hang takes."""
    until_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def wait_for_results(running, out, number, timeout_s=90.0):
    """Returns when that many tasks are recorded; fails when the command ends before."""

    def enough():
        found = len(results(out)) >= number
        assert found or running.poll() is None, running.communicate()
        return found

    wait_until(enough, f"{number} results", timeout_s)


def processes_of(folder):
    """Live processes that name ``folder`` in their command line, or whose log is in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            names = [*process.cmdline(), os.readlink(f"/proc/{process.pid}/fd/1")]
        except (psutil.Error, OSError):
            continue
        if any(str(folder) in name for name in names):
            found.append(process)
    return found


def kill_engine(report):
    """SIGKILL to an engine and its guard, as the kernel does when memory runs out."""
    os.killpg(report["pid"], signal.SIGKILL)
