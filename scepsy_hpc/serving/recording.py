"""Hosts one small plan for the time of a recording: ``scepsy trace`` without endpoints at hand."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scepsy_hpc.cluster.jobs.submit import ClusterName
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.files import write_jsonl
from scepsy_hpc.formats.plan import Plan, save_plan
from scepsy_hpc.formats.results import load_results
from scepsy_hpc.formats.spans import Span, load_spans
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving.run import OnStatus
from scepsy_hpc.serving.settings import RunSettings


def record_hosted(
    plan: Plan,
    tasks: Sequence[Task],
    cluster: ClusterName,
    site: Site,
    runs_in_flight: int,
    timeout_s: float | None,
    on_status: OnStatus,
    parent: Path | None = None,
) -> tuple[list[Span], dict[str, str]]:
    """Work ``tasks`` off on ``plan``; returns the spans and the error of each task that failed.

    The run's folder is a temporary one below ``parent`` (default: the working directory, which
    Slurm's nodes share); it stays where something failed, for its logs. Raises RunError.
    """
    made = Path(tempfile.mkdtemp(prefix=".scepsy-trace-", dir=parent or Path.cwd()))
    save_plan(made / "wanted.yaml", replace(plan, predicted=None, certificate=None, explanation=()))
    write_jsonl(made / "wanted.jsonl", (task.data for task in tasks))
    settings = RunSettings(max_runs_in_flight=runs_in_flight, task_timeout_s=timeout_s)
    folder = runs.prepare(made / "wanted.yaml", made / "wanted.jsonl", made / "run", settings)
    jobs = runs.launch(folder, cluster, site)
    try:
        runs.follow(folder, jobs, on_status)
    except KeyboardInterrupt:
        runs.end_in_order(folder, jobs)
        raise
    results = load_results(folder.results)
    failures = {r.task_id: str(r.error) for r in results if r.status != "ok"}
    recorded, lost = {r.task_id for r in results}, "engines or nodes failed, or it was cut short"
    failures |= {task.task_id: lost for task in tasks if task.task_id not in recorded}
    spans = load_spans(folder.spans)
    if not failures:
        shutil.rmtree(made, ignore_errors=True)
    return spans, failures
