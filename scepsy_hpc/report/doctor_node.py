"""What a compute node has, looked at by a tiny job with the site's own settings."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from scepsy_hpc import __version__
from scepsy_hpc.cluster.discovery import discover_local, nvml_session
from scepsy_hpc.cluster.jobs.submit import submit
from scepsy_hpc.cluster.jobs.tasks import Jobs, Resources, TaskOutcome
from scepsy_hpc.cluster.site import Site, expanded, own_scratch, scratch_of
from scepsy_hpc.engines.staging import SPARE_BYTES
from scepsy_hpc.engines.vllm import interpreter_of
from scepsy_hpc.engines.weights import files_of_model, models_in
from scepsy_hpc.errors import InputError, RunError, ScepsyError
from scepsy_hpc.files import record
from scepsy_hpc.report.doctor_site import clock_of, existing, room_in
from scepsy_hpc.report.findings import Check, Finding, call, findings_of, said_last

# The job itself needs a minute; importing vLLM from a cold file system may take most of it.
JOB_LIMIT_MIN = 2
IMPORT_LIMIT_S = 60.0
_JOB_NAME = "scepsy-doctor"
_WHAT = "Compute node"
_NEEDED_FOR = "--cluster slurm"


@record
class NodeQuestion:
    """What the job is to look at. ``token`` stands in the file ``question`` of its folder."""

    site: Site
    folder: str
    token: str
    version: str
    num_gpus: int


class _OutOfPatience(Exception):
    pass


def examine_node(
    site: Site, results: Path, wait_s: float, on_note: Callable[[str], None] = lambda note: None
) -> list[Finding]:
    """Submit a job that looks at its node, and return what it found; the job leaves nothing.

    A job that has not begun after ``wait_s`` is cancelled. ``on_note`` hears why it waits.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".scepsy-doctor-", dir=existing(results)))
    except OSError as error:
        return [_broken(f"{error.filename}: {error.strerror}", "run it where you may write")]
    try:
        return _from_job(site, folder, wait_s, on_note)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _from_job(
    site: Site, folder: Path, wait_s: float, on_note: Callable[[str], None]
) -> list[Finding]:
    token, num_gpus = secrets.token_hex(8), num_gpus_to_ask(site)
    (folder / "question").write_text(token)
    question = NodeQuestion(
        site=site, folder=str(folder), token=token, version=__version__, num_gpus=num_gpus
    )
    try:
        need = _need(site, num_gpus)
        jobs = submit("slurm", folder / "job", look_at_node, [question], need, site, _JOB_NAME)
    except ScepsyError as error:
        state, _, fix = str(error).partition("; ")
        return [_broken(state, fix or "correct the site file: Slurm says what it minds")]
    outcome = _awaited(jobs, wait_s, on_note)
    if isinstance(outcome, str):
        return [_broken(f"job {jobs.ids[0]}: {outcome}", "raise --wait, or leave it with --no-job")]
    if outcome.error is not None:
        return [_broken(f"job {jobs.ids[0]}: {outcome.error}", _fix_of(outcome.error))]
    seen = (folder / "answer").exists() and (folder / "answer").read_text() == token
    return [*outcome.value, _shared(folder, seen)]


def _need(site: Site, num_gpus: int) -> Resources:
    named = [kind for kind, name in site.gpu_names.items() if name != "none"]
    return Resources(
        gpus_per_node=num_gpus,
        cpus_per_task=site.cpus_per_gpu or 1,
        mem_gib=site.mem_gib_per_gpu,
        time_min=JOB_LIMIT_MIN,
        gpu_type=named[0] if named else None,
    )


def num_gpus_to_ask(site: Site) -> int:
    """One where the site's partition has any, and its site file asks for any."""
    if site.gpu_names and set(site.gpu_names.values()) == {"none"}:
        return 0
    if shutil.which("sinfo") is None:
        return 1
    rows = [line.partition("|") for line in call("sinfo", "-h", "-o", "%P|%G").stdout.splitlines()]
    mine = [
        gres
        for name, _, gres in rows
        if (name.rstrip("*") == site.partition if site.partition else name.endswith("*"))
    ]
    return int(not mine or any("gpu" in gres for gres in mine))


def _awaited(jobs: Jobs, wait_s: float, on_note: Callable[[str], None]) -> TaskOutcome | str:
    """The outcome; or why there is none, with the job cancelled."""
    until_s, last = time.monotonic() + wait_s, ""

    def tick(note: str) -> None:
        nonlocal last
        if note and note != last:
            on_note(f"job {jobs.ids[0]} waits: {note}")
        last = note
        if time.monotonic() > until_s:
            raise _OutOfPatience

    try:
        return jobs.wait(on_tick=tick)[0]
    except _OutOfPatience:
        jobs.cancel()
        return f"was not over after {wait_s:g} s ({last or 'running'}) and is cancelled"
    except BaseException:
        jobs.cancel()
        raise


def _fix_of(error: str) -> str:
    if "No module named" in error or "ModuleNotFoundError" in error:
        return f"install scepsy-hpc {__version__} for the Python of the jobs, or name it (`python`)"
    if "no such file" in error.lower():
        return "use a results folder and a Python on a file system that the nodes share (--results)"
    return "read the job's last words; check `setup`, `python` and `container` of the site file"


def _broken(detail: str, fix: str) -> Finding:
    return Finding(what=_WHAT, state="broken", detail=detail, needed_for=_NEEDED_FOR, fix=fix)


def _shared(folder: Path, seen: bool) -> Finding:
    what, where = f"{_WHAT}: shared folder", str(folder.parent)
    if seen:
        return Finding(what=what, state="ok", detail=where, needed_for=_NEEDED_FOR)
    detail = f"what the node wrote into {where} is not seen here"
    fix = "use a results folder on a file system that all nodes share (--results)"
    return Finding(what=what, state="broken", detail=detail, needed_for=_NEEDED_FOR, fix=fix)


def look_at_node(question: NodeQuestion) -> tuple[Finding, ...]:
    """What the job executes, on its node."""
    folder = Path(question.folder)
    if (folder / "question").read_text() != question.token:
        raise RunError(f"{folder} is another folder here; use one that all nodes share")
    (folder / "answer").write_text(question.token)
    return tuple(findings_of(_node_checks(question), question.site))


def _node_checks(question: NodeQuestion) -> Iterator[Check]:
    site = question.site
    yield Check(f"{_WHAT}: host", _NEEDED_FOR, partial(_host, question))
    if question.num_gpus:
        needs = "real engines"
        fix = "check `gpu_request`, `gpu_names` and `partition` of the site file"
        yield Check(f"{_WHAT}: GPUs", needs, _gpus, fix)
        yield Check(f"{_WHAT}: driver", needs, _driver)
        yield Check(f"{_WHAT}: MPS", "GPU shares below 100", _mps)
    yield Check(f"{_WHAT}: scratch", "caches, staged weights", _scratch)
    yield Check(f"{_WHAT}: temporary files", "engines", _temporary)
    if site.weights is not None:
        yield Check(f"{_WHAT}: weights", "engines", _weights)
    yield Check(f"{_WHAT}: vLLM", "profile, run and serve with engine vllm", _vllm)
    yield Check(f"{_WHAT}: Slurm commands", "nothing", _slurm)
    clock = partial(clock_of, Path(question.folder))
    yield Check(f"{_WHAT}: clock", "figures of several nodes", clock)


def _host(question: NodeQuestion, site: Site) -> str:
    found = (
        f"{socket.gethostname()}, {len(os.sched_getaffinity(0))} cores, scepsy-hpc {__version__}"
    )
    if question.version != __version__:
        raise RunError(f"{found}, but {question.version} submitted; install the same on both sides")
    return found


def _gpus(site: Site) -> str:
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or "none named by Slurm"
    try:
        node = discover_local().nodes[0]
    except InputError as error:
        raise RunError(f"given {given}: {str(error).partition('; ')[0]}") from None
    groups = ", ".join(f"{len(d.gpus)} by {d.link}" for d in node.domains)
    return f"{node.gpu_type} ({node.gpu_memory_gib:g} GiB), joined: {groups}; given: {given}"


def _driver(site: Site) -> str:
    refusal = "NVML does not answer ({}); ask the site for a working driver on its GPU nodes"
    try:
        with nvml_session(refusal) as nvml:
            return str(nvml.nvmlSystemGetDriverVersion())
    except InputError as error:
        raise RunError(str(error)) from None


def _mps(site: Site) -> str:
    found = shutil.which("nvidia-cuda-mps-control")
    if found is None:
        raise InputError(
            "nvidia-cuda-mps-control is not on PATH; it comes with the driver: load its module in "
            "`setup`, else plan with gpu_shares_pct: [100]"
        )
    return found


def _scratch(site: Site) -> str:
    """Writable, private, and with room for the largest model where weights are staged."""
    folder = own_scratch(scratch_of(site))
    with tempfile.NamedTemporaryFile(dir=folder):
        found = room_in(str(folder), "scratch", site)
    if site.weights is None or not site.weights.stage:
        return found
    models = models_in(Path(expanded(site.weights.folder, "weights.folder")))
    largest = max((sum(files_of_model(f).values()) for f in models.values()), default=0)
    free = shutil.disk_usage(folder).free
    if largest + SPARE_BYTES > free:
        raise RunError(
            f"{found}, and the largest model takes {largest / 2**30:.0f} GiB; name a larger "
            "`scratch`, or set weights.stage: false"
        )
    return found


def _temporary(site: Site) -> str:
    return room_in(tempfile.gettempdir(), "TMPDIR", site)


def _weights(site: Site) -> str:
    assert site.weights is not None
    root = Path(expanded(site.weights.folder, "weights.folder"))
    if not root.is_dir():
        raise RunError(f"{root} is not seen by the node; put weights on a shared file system")
    return f"{root}: {len(models_in(root))} models"


def _vllm(site: Site) -> str:
    line = [*interpreter_of(site, str(scratch_of(site))), "-c"]
    begun_s = time.monotonic()
    code = "import vllm; print(vllm.__version__)"
    done = call(*line, code, limit_s=IMPORT_LIMIT_S)
    took_s = time.monotonic() - begun_s
    if done.returncode == 0:
        return f"{done.stdout.strip().splitlines()[-1]}, imported in {took_s:.0f} s"
    what = f"{' '.join(line[:-1])}: {said_last(done)}"
    if took_s >= IMPORT_LIMIT_S:
        raise RunError(
            f"{what}; put the environment on a faster or node-local disk, or into one image file"
        )
    raise InputError(
        f"{what}; install it there (`pip install 'scepsy-hpc[vllm]'`), load it in `setup`, or name "
        "an image (`container`)"
    )


def _slurm(site: Site) -> str:
    names = ("sbatch", "scontrol", "squeue")
    there = [name for name in names if shutil.which(name)]
    lacking = [name for name in names if name not in there]
    return f"{', '.join(there) or 'none'} there" + (
        f"; {', '.join(lacking)} not there, and not needed" if lacking else ""
    )
