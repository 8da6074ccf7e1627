"""The array: submit every task of a spec, wait, write bundles of what succeeded."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc import __version__
from scepsy_hpc.bundles.library import save_bundle
from scepsy_hpc.cluster.jobs.submit import ClusterName, dry_run, submit
from scepsy_hpc.cluster.jobs.tasks import Jobs, Resources, TaskOutcome
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.engines.before_queue import WantedEngine, lacks_of, require
from scepsy_hpc.engines.vllm import takes_gpus
from scepsy_hpc.errors import RunError
from scepsy_hpc.files import json_line, read_jsonl
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.profiling.bundling import bundled
from scepsy_hpc.profiling.spec import SweepTask, load_spec
from scepsy_hpc.profiling.sweep import SweepJob, SweepResult, run_sweep

JOB_NAME = "scepsy-profile"
# Below the output folder: logs of engines and tasks, and results until their bundles are complete.
WORK_FOLDER = ".profiling"
RESULTS_FOLDER = "results"


@dataclass(frozen=True, slots=True)
class ProfileProgress:
    """Where the profiling stands; ``num_points_wanted`` counts loads that may be left out."""

    num_tasks: int
    num_ended: int
    num_failed: int
    num_points: int
    num_points_wanted: int
    note: str = ""


OnProfileProgress = Callable[[ProfileProgress], None]


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What was measured and what was lost. ``gpu_hours`` is the most the array can take.

    ``num_reused`` tasks were measured by an earlier try that was interrupted or failed in part.
    """

    bundles: tuple[Bundle, ...]
    failures: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...]
    num_points: int
    gpu_hours: float
    sbatch_texts: tuple[str, ...] = ()
    num_reused: int = 0

    def raise_if_failed(self) -> None:
        """Raises RunError naming each failed task and why; the bundles are written by then."""
        if not self.failures:
            return
        told = "\n".join(
            f"  {task_id}: {reason.removeprefix(f'{task_id}: ')}"
            for task_id, reason in self.failures
        )
        raise RunError(
            f"profile: {len(self.failures)} task(s) failed and their points are missing; "
            f"{len(self.bundles)} bundle(s) with {self.num_points} points were written:\n{told}"
        )


def profile_all(
    spec_path: Path | str,
    out_root: Path | str,
    cluster: ClusterName = "slurm",
    site: Site | None = None,
    only_show: bool = False,
    on_progress: OnProfileProgress | None = None,
) -> ProfileResult:
    """Measure what a spec asks for and write its bundles below ``out_root``.

    ``only_show`` (the dry run) submits and writes nothing. As many tasks run at once as the site
    says on Slurm, and elsewhere as there are GPUs, or one. A failed task loses only its own
    points: call ``raise_if_failed`` on the result. Tried again, the same spec measures only what
    is missing.
    Raises InputError for a bad spec, and RunError when nothing could be submitted.
    """
    spec = load_spec(spec_path)
    site = site or Site()
    folder = Path(out_root).expanduser().absolute() / WORK_FOLDER
    earlier = _earlier_results(spec.tasks, folder)
    open_tasks = [task for task in spec.tasks if task.task_id not in earlier]
    groups = _groups(open_tasks, site, spec.time_min or site.time_min)
    gpu_hours = sum(len(tasks) * need.gpus_per_node * need.time_min / 60 for need, tasks in groups)
    if only_show:
        texts = tuple(dry_run(folder, len(tasks), need, site, JOB_NAME) for need, tasks in groups)
        return ProfileResult((), (), spec.skipped, 0, gpu_hours, texts, len(earlier))
    _look_before(open_tasks, site, cluster)
    outcomes = _run(groups, folder, cluster, site, on_progress)
    failures = tuple((task.task_id, o.error) for task, o in outcomes if o.error is not None)
    results = earlier | {task.task_id: o.value for task, o in outcomes if o.error is None}
    measured = [(task, results[task.task_id]) for task in spec.tasks if task.task_id in results]
    bundles = tuple(
        save_bundle(out_root, header, points, spec.workload.name)
        for header, points in bundled(spec, measured)
    )
    if not failures:
        shutil.rmtree(folder / RESULTS_FOLDER, ignore_errors=True)
    num_points = sum(len(bundle.points) for bundle in bundles)
    return ProfileResult(
        bundles, failures, spec.skipped, num_points, gpu_hours, num_reused=len(earlier)
    )


def _look_before(tasks: Sequence[SweepTask], site: Site, cluster: ClusterName) -> None:
    """Say what the nodes may lack. Raises InputError where no task could be measured at all."""
    models = {(m.model, m.engine): m for m in (task.model for task in tasks)}.values()
    engines = [WantedEngine(m.model, m.engine, m.model, m.engine_args) for m in models]
    on_slurm = cluster == "slurm"
    if engines and all(any(k.certain for k in lacks_of([e], site, on_slurm)) for e in engines):
        require(engines, site, on_slurm)
    for lack in lacks_of(engines, site, on_slurm):
        print(f"warning: {lack.text}", file=sys.stderr)


def _result_path(task: SweepTask, folder: Path) -> Path:
    """Where the result of exactly this task lies until its bundles are complete."""
    digest = hashlib.sha256(f"{__version__} {json_line(task)}".encode()).hexdigest()
    return folder / RESULTS_FOLDER / f"{digest[:32]}.json"


def _earlier_results(tasks: Sequence[SweepTask], folder: Path) -> dict[str, SweepResult]:
    found = {}
    for task in tasks:
        path = _result_path(task, folder)
        if path.exists():
            [found[task.task_id]] = read_jsonl(path, SweepResult)
    return found


def _groups(
    tasks: Sequence[SweepTask], site: Site, time_min: int
) -> list[tuple[Resources, list[SweepTask]]]:
    """Tasks that may stand in one array, since they ask Slurm for the same."""

    def need(task: SweepTask) -> Resources:
        return Resources(
            gpus_per_node=task.tp_degree,
            cpus_per_task=(site.cpus_per_gpu or 1) * task.tp_degree,
            mem_gib=site.mem_gib_per_gpu * task.tp_degree if site.mem_gib_per_gpu else None,
            time_min=time_min,
            gpu_type=task.gpu_type,
        )

    ordered = sorted(tasks, key=lambda task: (task.gpu_type, task.tp_degree))
    return [(need, list(tasks)) for need, tasks in itertools.groupby(ordered, key=need)]


def _run(
    groups: Sequence[tuple[Resources, list[SweepTask]]],
    folder: Path,
    cluster: ClusterName,
    site: Site,
    on_progress: OnProfileProgress | None,
) -> list[tuple[SweepTask, TaskOutcome]]:
    watch = _Watch([task for _, tasks in groups for task in tasks], on_progress)
    outcomes: list[tuple[SweepTask, TaskOutcome]] = []
    submitted: list[Jobs] = []

    def start(need: Resources, tasks: Sequence[SweepTask]) -> Jobs:
        own = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{len(submitted)}"
        jobs = [SweepJob(task, own, _result_path(task, folder), site) for task in tasks]
        watch.follow(jobs)
        gpus = _local_gpus(tasks) if cluster == "local" else ()
        submitted.append(submit(cluster, own, run_sweep, jobs, need, site, JOB_NAME, gpus))
        return submitted[-1]

    with _cancelled_on_error(submitted):
        # Slurm gets all arrays at once and sorts them out; processes would only be in each
        # other's way.
        eager = [start(need, tasks) for need, tasks in groups] if cluster == "slurm" else None
        for i, (need, tasks) in enumerate(groups):
            jobs = eager[i] if eager else start(need, tasks)
            ended = jobs.wait(watch.outcome, watch.tick)
            outcomes += zip(tasks, ended, strict=True)
    return outcomes


def _local_gpus(tasks: Sequence[SweepTask]) -> tuple[int, ...]:
    """Real GPUs of this machine that local tasks share out; none for engines without."""
    if not any(takes_gpus(task.model.engine, task.gpu_type) for task in tasks):
        return ()
    from scepsy_hpc.cluster.discovery import discover_local

    return discover_local().nodes[0].free


@contextmanager
def _cancelled_on_error(submitted: Sequence[Jobs]) -> Iterator[None]:
    """An interrupted profiling leaves no jobs behind."""
    try:
        yield
    except BaseException:
        for jobs in submitted:
            jobs.cancel()
        raise


class _Watch:
    """Adds up progress over arrays, with the points that running tasks have so far."""

    def __init__(self, tasks: Sequence[SweepTask], on_progress: OnProfileProgress | None) -> None:
        self._wanted = sum(_num_loads(task) for task in tasks)
        self._num_tasks = len(tasks)
        self._on_progress = on_progress
        self._jobs: list[SweepJob] = []
        self._num_ended = 0
        self._num_failed = 0
        self._last: ProfileProgress | None = None
        self._looked_s = float("-inf")

    def follow(self, jobs: Sequence[SweepJob]) -> None:
        self._jobs += jobs

    def outcome(self, outcome: TaskOutcome) -> None:
        self._num_ended += 1
        self._num_failed += outcome.error is not None
        self._looked_s = float("-inf")

    def tick(self, note: str) -> None:
        if self._on_progress is None or time.monotonic() - self._looked_s < 1.0:
            return
        self._looked_s = time.monotonic()
        num_points = sum(_num_lines(job.points_path) for job in self._jobs)
        counts = (self._num_tasks, self._num_ended, self._num_failed, num_points, self._wanted)
        now = ProfileProgress(*counts, note)
        if now != self._last:
            self._on_progress(now)
        self._last = now


def _num_loads(task: SweepTask) -> int:
    """Points that a task has at most."""
    num_shapes = len(task.lengths) if task.one_by_one else 1
    return num_shapes * (len(task.loads.concurrency) + len(task.loads.arrival_rate_rps))


def _num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0
