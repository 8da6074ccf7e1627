"""``scepsy run`` and ``serve`` from outside: check, write the folder, submit, watch, stop."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from scepsy_hpc.cluster.executors import ClusterName, Jobs, Progress, Resources, submit
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.files import read_jsonl_data, read_text, write_text
from scepsy_hpc.planning.plan import Component, Plan, load_plan, save_plan
from scepsy_hpc.serving.host import Start, host
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json
from scepsy_hpc.serving.settings import RunSettings, load_settings, save_settings
from scepsy_hpc.tracing.tasks import load_tasks

DEFAULT_RUNS_IN_FLIGHT = 8
OnStatus = Callable[[dict[str, Any] | None, str], None]


def prepare(
    plan_path: Path,
    tasks_path: Path | None,
    out: Path,
    settings: RunSettings,
    resume: bool = False,
) -> RunFolder:
    """Check everything that can be checked before a queue is waited for; write the folder.

    ``tasks_path`` None hosts without a batch. Raises InputError; nothing is written then.
    """
    plan = load_plan(plan_path)
    _check_runnable(plan, plan_path)
    folder = RunFolder(out.absolute())
    if tasks_path is not None:
        _check_batch(plan, plan_path, tasks_path)
        _check_fresh(folder, resume)
    folder.create()
    save_plan(folder.plan, plan)
    if tasks_path is not None and tasks_path.resolve() != folder.tasks.resolve():
        write_text(folder.tasks, read_text(tasks_path))
    save_settings(folder.settings, _with_pace(settings, plan))
    return folder


def _check_runnable(plan: Plan, path: Path) -> None:
    if not plan.instances or not plan.llms:
        raise InputError(f"{path}: a run needs both `llms` and `instances`; make it `scepsy plan`")
    placed = {instance.llm for instance in plan.instances}
    for name in plan.llms:
        if name not in placed:
            raise InputError(f"{path}: llms.{name}: has no entry under instances")
    if not plan.workflows:
        raise InputError(f"{path}: workflows: missing; a run maps each alias to a deployment")


def _check_batch(plan: Plan, path: Path, tasks_path: Path) -> None:
    for workflow in plan.workflows:
        if workflow.agent is None:
            raise InputError(
                f"{path}: workflows: {workflow.name}: agent: missing; a batch needs it"
            )
        folder = workflow.agent.folder
        if folder and not Path(folder).is_dir():
            raise InputError(f"{path}: agent.folder: {folder} is no folder on this machine")
    load_tasks(tasks_path, tuple(w.name for w in plan.workflows))


def _check_fresh(folder: RunFolder, resume: bool) -> None:
    if folder.results.exists() and not resume:
        number = len(read_jsonl_data(folder.results))
        raise InputError(
            f"{folder.results}: {number} tasks are recorded there already; add --resume to go on "
            "with the others, or give another folder with -o"
        )


def _with_pace(settings: RunSettings, plan: Plan) -> RunSettings:
    """Fill in how many runs may be in flight: as asked, as planned, or a modest default."""
    if settings.max_runs_in_flight or settings.rate_rps:
        return settings
    planned = [w.max_runs_in_flight for w in plan.workflows if w.max_runs_in_flight]
    return replace(settings, max_runs_in_flight=sum(planned) or DEFAULT_RUNS_IN_FLIGHT)


def launch(
    folder: RunFolder, cluster: ClusterName, site: Site | None = None, time_min: int | None = None
) -> Jobs:
    """Submit the run. Raises InputError for what the cluster cannot do, RunError if refused."""
    plan, site = load_plan(folder.plan), site or Site()
    pretended = cluster in ("local", "debug")
    resources = _resources(plan, site, time_min, pretended)
    attempt = time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    start = Start(str(folder.root), attempt, pretended)
    _submitted(folder, "waiting", attempt)
    jobs = submit(cluster, folder.jobs, host, [start], resources, site, name="scepsy-run")
    write_json(folder.private / "jobs.json", {"cluster": cluster, "ids": list(jobs.ids)})
    return jobs


def _submitted(folder: RunFolder, state: str, attempt: str) -> None:
    status = {"state": state, "updated_s": time.time(), "attempt": f"{attempt}-0"}
    write_json(folder.status, {**status, "tasks": None, "instances": [], "url": None})


def _resources(plan: Plan, site: Site, time_min: int | None, pretended: bool) -> Resources:
    components = plan.allocation.components if plan.allocation else _components(plan)
    if len(components) > 1 and not pretended:
        kinds = "; ".join(f"{c.num_nodes} x {c.gpus_per_node} {c.gpu_type}" for c in components)
        raise InputError(
            f"plan: allocation has {len(components)} kinds of nodes ({kinds}); one job asks for "
            "one kind here. Plan with a topology of equal nodes"
        )
    one = components[0]
    cpus = (one.cpus_per_gpu or site.cpus_per_gpu or 4) * one.gpus_per_node
    return Resources(
        num_nodes=1 if pretended else one.num_nodes,
        gpus_per_node=one.gpus_per_node,
        cpus_per_task=cpus,
        mem_gib=one.mem_gib,
        time_min=time_min or one.time_min or site.time_min,
        gpu_type=one.gpu_type,
        no_kill=True,
    )


def _components(plan: Plan) -> tuple[Component, ...]:
    """The allocation that a plan written by hand implies."""
    names = {instance.node for instance in plan.instances}
    most = max(len({g for i in plan.instances if i.node == name for g in i.gpus}) for name in names)
    gpu_type = next(iter(plan.llms.values())).gpu_type
    return (Component(num_nodes=len(names), gpus_per_node=most, gpu_type=gpu_type),)


def follow(folder: RunFolder, jobs: Jobs, on_status: OnStatus) -> dict[str, Any]:
    """Wait for the job; ``on_status(status, note)`` is called at every look.

    Returns the last status. Raises RunError that says what is recorded and how to go on.
    """

    def on_progress(progress: Progress) -> None:
        on_status(read_json(folder.status), progress.note)

    outcome = jobs.wait(on_progress)[0]
    status: dict[str, Any] = read_json(folder.status) or {}
    on_status(status, "")
    if outcome.error is not None:
        raise RunError(f"{outcome.error}\n{_what_is_left(folder)}")
    return status


def _what_is_left(folder: RunFolder) -> str:
    recorded = len(read_jsonl_data(folder.results)) if folder.results.exists() else 0
    if not folder.tasks.exists():
        return f"Logs: {folder.logs}"
    total = len(read_jsonl_data(folder.tasks))
    return (
        f"{recorded} of {total} tasks are recorded in {folder.results}; nothing recorded is lost, "
        f"the others run with --resume. Logs: {folder.logs}"
    )


def read_status(root: Path) -> dict[str, Any]:
    """The last status of a run. Raises InputError when the folder is not one."""
    folder = RunFolder(root.absolute())
    status = read_json(folder.status)
    if status is None:
        raise InputError(f"{root}: holds no status.json; give the -o folder of `scepsy run`")
    return {**status, "recorded": _num_recorded(folder), "cluster": _cluster(folder)}


def _num_recorded(folder: RunFolder) -> int:
    return len(read_jsonl_data(folder.results)) if folder.results.exists() else 0


def _cluster(folder: RunFolder) -> str:
    jobs = read_json(folder.private / "jobs.json")
    return str(jobs["cluster"]) if jobs else "unknown"


def stop(root: Path) -> str:
    """Ask a run to end in order; one that still waits in the queue is cancelled.

    Returns what was done, in a sentence. Raises InputError.
    """
    folder = RunFolder(root.absolute())
    status = read_status(root)
    if status["state"] in ("ended", "interrupted", "stopped"):
        return f"{root}: has ended already ({status['state']})"
    write_json(folder.attempt(status["attempt"]).stop, {"since_s": time.time()})
    jobs = read_json(folder.private / "jobs.json")
    if status["state"] == "waiting" and jobs and jobs["cluster"] == "slurm":
        done = _scancel(jobs["ids"])
        write_json(folder.status, {**status, "state": "stopped"})
        return f"{root}: {done}"
    return f"{root}: asked to stop; what is not recorded runs again with --resume"


def _scancel(ids: list[str]) -> str:
    import subprocess

    if shutil.which("scancel") is None:
        raise InputError(f"scancel is not on PATH; cancel job {', '.join(ids)} where it is")
    done = subprocess.run(["scancel", *ids], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"scancel {' '.join(ids)} failed: {done.stderr.strip()}")
    return f"job {', '.join(ids)} was still waiting and is cancelled"


def is_serving(root: Path) -> bool:
    """Whether the folder was made by ``scepsy serve``."""
    return load_settings(RunFolder(root.absolute()).settings).serve
