"""``scepsy run`` and ``serve`` from outside: check, write the folder, submit, watch, stop."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from scepsy_hpc.cluster.jobs.submit import ClusterName, submit
from scepsy_hpc.cluster.jobs.tasks import Jobs, Resources
from scepsy_hpc.cluster.owned import check_folder
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.engines.before_queue import WantedEngine, require
from scepsy_hpc.errors import InputError, RunError, ScepsyError, UnfinishedError
from scepsy_hpc.files import extended, read_text, write_text
from scepsy_hpc.formats.plan import Component, Plan, load_plan, save_plan
from scepsy_hpc.formats.segments import read_merged
from scepsy_hpc.formats.status import RunStatus, WatchedRun
from scepsy_hpc.formats.tasks import load_tasks
from scepsy_hpc.serving.chain import (
    OVER,
    Chain,
    begin_chain,
    cancel,
    followers,
    is_queued,
    job_name,
)
from scepsy_hpc.serving.deaths import death_of, rank_log
from scepsy_hpc.serving.host import host
from scepsy_hpc.serving.job import (
    FINAL_STATES,
    Job,
    check_idle,
    is_alive,
    is_pending,
    remember_job,
)
from scepsy_hpc.serving.ledger import num_recorded
from scepsy_hpc.serving.made_by import check_made_by, note_made_by
from scepsy_hpc.serving.outlook import outlook
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json
from scepsy_hpc.serving.same_batch import check_same_batch, save_origin, told_of_version
from scepsy_hpc.serving.settings import RunSettings, load_settings, save_settings
from scepsy_hpc.serving.start import Start, new_attempt, number_in_chain
from scepsy_hpc.serving.tally import is_complete, tally

DEFAULT_RUNS_IN_FLIGHT = 8
CHANGED_OK = "--changed-ok"
# On one's own machine nobody waits for the end of the allocation.
LOCAL_TIME_MIN = 30 * 24 * 60
CHAIN_POLL_S = 3.0
# A job whose first node is gone has no batch script left that could end it.
LINGER_S = 20.0
OnStatus = Callable[[RunStatus | None, str], None]


def prepare(
    plan_path: Path,
    tasks_path: Path | None,
    out: Path,
    settings: RunSettings,
    resume: bool = False,
    changed_ok: bool = False,
) -> RunFolder:
    """Check everything that can be checked before a queue is waited for; write the folder.

    ``tasks_path`` None hosts without a batch. ``changed_ok``: a folder is resumed with other tasks,
    plan or agents than it began with. Raises InputError; nothing is written then.
    """
    folder = RunFolder(out.absolute())
    check_folder(folder.root)
    plan = _plan_of(plan_path, folder, resume)
    _check_runnable(plan, plan_path)
    check_idle(folder)
    check_made_by(folder)
    if tasks_path is not None:
        _check_batch(plan, plan_path, tasks_path)
        _check_fresh(folder, resume)
        if resume and not changed_ok:
            check_same_batch(folder, plan, tasks_path, CHANGED_OK)
    folder.create()
    save_plan(folder.plan, plan)
    if tasks_path is not None:
        save_origin(folder, plan)
        if tasks_path.resolve() != folder.tasks.resolve():
            write_text(folder.tasks, read_text(tasks_path))
    save_settings(folder.settings, _with_pace(settings, plan))
    if before := note_made_by(folder):
        print(f"note: {out} was last used by scepsy-hpc {before}; going on", file=sys.stderr)
    return folder


def _plan_of(path: Path, folder: RunFolder, resume: bool) -> Plan:
    try:
        return load_plan(path)
    except InputError as error:
        raise (told_of_version(folder, error) if resume else error) from None


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
    merged = read_merged(folder.results)
    if (folder.results.exists() or merged.lengths) and not resume:
        raise InputError(
            f"{folder.results}: {len(merged.records)} tasks are recorded there already; add "
            "--resume to go on with the others, or give another folder with -o"
        )


def _with_pace(settings: RunSettings, plan: Plan) -> RunSettings:
    """Fill in how many runs may be in flight: as asked, as planned, or a modest default."""
    if settings.max_runs_in_flight or settings.rate_rps:
        return settings
    planned = [w.max_runs_in_flight for w in plan.workflows if w.max_runs_in_flight]
    return replace(settings, max_runs_in_flight=sum(planned) or DEFAULT_RUNS_IN_FLIGHT)


def launch(
    folder: RunFolder,
    cluster: ClusterName,
    site: Site | None = None,
    time_min: int | None = None,
    ahead: int = 1,
) -> Jobs:
    """Submit the run; a batch on Slurm with ``ahead`` jobs that go on where its time ends.

    Raises InputError for what the cluster cannot do, RunError if refused.
    """
    plan, site = load_plan(folder.plan), site or Site()
    _look_before(plan, site, cluster)
    pretended = cluster in ("local", "debug")
    resources = _resources(plan, site, time_min, pretended)
    attempt = new_attempt()
    start = Start(str(folder.root), attempt, pretended, site)
    cancel(followers(folder))
    for old in (folder.job, folder.chain):
        old.unlink(missing_ok=True)
    limit_s = 60.0 * resources.time_min if time_min or cluster == "slurm" else None
    save_settings(folder.settings, replace(load_settings(folder.settings), time_limit_s=limit_s))
    waiting = RunStatus(attempt=f"{attempt}-0")
    write_json(folder.status, waiting.plain())
    try:
        name = job_name(folder)
        jobs = submit(cluster, folder.jobs, host, [start], resources, site, name=name)
        if cluster == "slurm" and folder.tasks.exists():
            first = Chain(
                site=site,
                resources=resources,
                attempt=attempt,
                ahead=ahead,
                ids=tuple(jobs.ids),
            )
            note = begin_chain(folder, host, first)
            if note is not None:
                print(f"note: {note}", file=sys.stderr)
    except ScepsyError as error:
        failed = replace(waiting, state="failed", error=str(error))
        write_json(folder.status, failed.plain())
        raise
    remember_job(folder, cluster, jobs.ids)
    return jobs


def _look_before(plan: Plan, site: Site, cluster: ClusterName) -> None:
    """Say what engines may miss on the nodes. Raises InputError for what is certain."""
    engines = [
        WantedEngine(f"plan: llms.{name}", llm.engine, llm.model, llm.engine_args)
        for name, llm in plan.llms.items()
    ]
    for warning in require(engines, site, on_slurm=cluster == "slurm"):
        print(f"warning: {warning}", file=sys.stderr)


def _equal_nodes(components: Sequence[Component]) -> Component:
    """Nodes that all have what the largest needs: one job asks for equal nodes."""
    most = max(components, key=lambda c: c.gpus_per_node)
    number = sum(c.num_nodes for c in components)
    idle = sum(c.num_nodes * (most.gpus_per_node - c.gpus_per_node) for c in components)
    if idle:
        print(
            f"note: the job asks for {most.gpus_per_node} GPUs on each of {number} nodes, since "
            f"one job has equal nodes: {idle} of them stay idle",
            file=sys.stderr,
        )
    return replace(most, num_nodes=number)


def _resources(plan: Plan, site: Site, time_min: int | None, pretended: bool) -> Resources:
    components = plan.allocation.components if plan.allocation else _components(plan)
    if len({c.gpu_type for c in components}) > 1 and not pretended:
        kinds = "; ".join(f"{c.num_nodes} x {c.gpus_per_node} {c.gpu_type}" for c in components)
        raise InputError(
            f"plan: allocation has {len(components)} kinds of nodes ({kinds}); one job asks for "
            "one kind here. Plan with a topology of equal nodes"
        )
    one = components[0] if pretended else _equal_nodes(components)
    cpus = (one.cpus_per_gpu or site.cpus_per_gpu or 4) * one.gpus_per_node
    return Resources(
        num_nodes=1 if pretended else one.num_nodes,
        gpus_per_node=one.gpus_per_node,
        cpus_per_task=cpus,
        mem_gib=one.mem_gib,
        time_min=time_min or (LOCAL_TIME_MIN if pretended else one.time_min or site.time_min),
        gpu_type=one.gpu_type,
        no_kill=True,
    )


def _components(plan: Plan) -> tuple[Component, ...]:
    """The allocation that a plan written by hand implies."""
    names = {instance.node for instance in plan.instances}
    most = max(len({g for i in plan.instances if i.node == name for g in i.gpus}) for name in names)
    gpu_type = next(iter(plan.llms.values())).gpu_type
    return (Component(num_nodes=len(names), gpus_per_node=most, gpu_type=gpu_type),)


def follow(folder: RunFolder, jobs: Jobs, on_status: OnStatus) -> None:
    """Wait for the job and those that go on after it; ``on_status(status, note)`` at every look.

    Where the rank that led last ended well or everything is recorded, what became of other nodes is
    an alert in the last status. Raises UnfinishedError that says what is recorded and how to go on,
    RunError without a batch.
    """
    try:
        _follow_job(folder, jobs, on_status)
    except RunError:
        if not _goes_on(folder):
            raise
    while _goes_on(folder):
        on_status(read_json(folder.status, RunStatus), "")
        time.sleep(CHAIN_POLL_S)


def _goes_on(folder: RunFolder) -> bool:
    """Whether a batch has tasks left and a job that will work them off."""
    status = read_json(folder.status, RunStatus)
    if status is None or status.state in OVER or not folder.chain.exists():
        return False
    return is_queued(folder) and not is_complete(folder)


def _follow_job(folder: RunFolder, jobs: Jobs, on_status: OnStatus) -> None:
    ended_s: float | None = None

    def on_tick(note: str) -> None:
        nonlocal ended_s
        status = read_json(folder.status, RunStatus)
        on_status(status, note)
        if status and status.lead and status.state in FINAL_STATES:
            ended_s = ended_s or time.monotonic()
            if time.monotonic() - ended_s > LINGER_S:
                ended_s = math.inf
                jobs.cancel()

    outcome = jobs.wait(on_tick=on_tick)[0]
    status = read_json(folder.status, RunStatus)
    reason = outcome.errors[status.lead if status else 0]
    if reason is not None:
        found = tally(folder)
        what = f"{reason}\n{_what_is_left(folder)}"
        if found.left:
            raise UnfinishedError(what)
        if not found.total:
            raise RunError(what)
    others = [f"rank {r}: {error}" for r, error in enumerate(outcome.errors) if error]
    if others and status:
        status = replace(status, alerts=(*status.alerts, *others))
        write_json(folder.status, status.plain())
    on_status(status, "")


def _what_is_left(folder: RunFolder) -> str:
    if not folder.tasks.exists():
        return f"Logs: {folder.logs}"
    found = tally(folder)
    return (
        f"{found.total - found.left} of {found.total} tasks are recorded in {folder.results}; "
        f"nothing recorded is lost, the others run with --resume. Logs: {folder.logs}"
    )


def end_in_order(folder: RunFolder, jobs: Jobs, patience_s: float = 20.0) -> None:
    """Stop a run on this machine or in this allocation and wait for its end; then cancel it."""
    ask_to_stop(folder.root)
    until_s = time.monotonic() + patience_s
    try:
        while time.monotonic() < until_s and is_alive(folder):
            time.sleep(0.2)
    finally:
        jobs.cancel()


def read_status(root: Path) -> WatchedRun:
    """The last status of a run. Raises InputError when the folder is not one."""
    folder = RunFolder(root.absolute())
    status = read_json(folder.status, RunStatus)
    if status is None:
        raise _no_status(folder)
    alive = False if status.state in FINAL_STATES else is_alive(folder)
    if alive is False and status.state not in FINAL_STATES:
        gone = "its job is gone without a word: killed, or its machine failed"
        death = death_of(gone, rank_log(folder, status.lead))
        alerts = (*status.alerts, gone)
        status = replace(status, state="lost", alerts=alerts, last_lead=death)
    job = read_json(folder.job, Job)
    return extended(
        WatchedRun,
        status,
        recorded=num_recorded(folder.results),
        alive=alive,
        cluster=job.cluster if job else "unknown",
        outlook=outlook(folder, status, job),
    )


def _no_status(folder: RunFolder) -> InputError:
    if not folder.status.exists():
        return InputError(
            f"{folder.root}: holds no status.json; give the -o folder of `scepsy run`"
        )
    return InputError(
        f"{folder.status}: is damaged, as by a crash or a full disk; "
        f"{num_recorded(folder.results)} tasks are recorded in {folder.results}, the others run "
        "with --resume"
    )


def ask_to_stop(root: Path) -> str:
    """Ask a run to end in order; one that still waits in the queue is cancelled.

    Returns what was done, in a sentence. Raises InputError.
    """
    folder = RunFolder(root.absolute())
    status, job = read_status(root), read_json(folder.job, Job)
    cancel(followers(folder, number_in_chain(status.attempt)))
    if status.alive is False:
        return f"{root}: has ended already ({status.state})"
    write_json(folder.attempt(status.attempt).asked, {"since_s": time.time()})
    if status.state == "waiting" and job and job.cluster == "slurm" and is_pending(job):
        done = _scancel(job.ids)
        stopped = RunStatus(attempt=status.attempt, state="stopped")
        write_json(folder.status, stopped.plain())
        return f"{root}: {done}"
    return f"{root}: asked to stop; what is not recorded runs again with --resume"


def _scancel(ids: Sequence[str]) -> str:
    if shutil.which("scancel") is None:
        raise InputError(f"scancel is not on PATH; cancel job {', '.join(ids)} where it is")
    done = subprocess.run(["scancel", *ids], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"scancel {' '.join(ids)} failed: {done.stderr.strip()}")
    return f"job {', '.join(ids)} was still waiting and is cancelled"
