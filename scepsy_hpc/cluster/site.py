"""``site.yaml``: what one Slurm site wants to hear. Nothing about a site stands in the code."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from dataclasses import field
from pathlib import Path
from typing import Literal

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Count, Positive, read_yaml, record

SITE_SCHEMA = "scepsy/site/v1"

SbatchValue = str | int | float | bool
# Options with a key of their own, or that follow from the work; a second voice would win silently.
_OWNED = {
    "account": "account",
    "array": "array_parallelism",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_gpu",
    "error": "",
    "gpus-per-node": "gpu_request",
    "gres": "gpu_request",
    "job-name": "",
    "mem": "mem_gib_per_gpu",
    "nodes": "",
    "ntasks-per-node": "",
    "open-mode": "",
    "output": "",
    "partition": "partition",
    "qos": "qos",
    "signal": "",
    "time": "time_min",
}


@record
class Container:
    """An Apptainer image, and what runs inside: each engine, or the whole job.

    ``image`` is a file that the nodes see, or a ``docker://`` address. ``binds`` are ``SRC[:DST]``;
    scratch and weights are bound without being named. ``python`` is the image's own.
    """

    image: str
    wraps: Literal["engines", "jobs"] = "engines"
    python: str = "python3"
    binds: tuple[str, ...] = ()
    options: tuple[str, ...] = ("--nv",)
    runtime: str = "apptainer"


@record
class WeightsFolder:
    """The folder that holds a model a subfolder; ``stage`` copies what is used to each node."""

    folder: str
    stage: bool = False


@record
class Site:
    """How jobs are asked for here; every key is optional.

    ``gpu_names`` maps a GPU type of the topology to the site's name in ``--gres=gpu:NAME:N``; an
    empty name asks for GPUs without a type, and ``none`` asks for no GPU at all (CPU engines).
    ``venv`` is a short form of ``python``. ``scratch`` is node-local; its variables are the node's.
    """

    name: str = "site"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_request: Literal["gres", "gpus_per_node"] = "gres"
    gpu_names: dict[str, str] = field(default_factory=dict)
    cpus_per_gpu: Count | None = None
    mem_gib_per_gpu: Positive | None = None
    time_min: Count = 60
    array_parallelism: Count | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    venv: str | None = None
    container: Container | None = None
    scratch: str | None = None
    weights: WeightsFolder | None = None
    sbatch: dict[str, SbatchValue] = field(default_factory=dict)
    srun: tuple[str, ...] = ()


def load_site(path: Path | str | None) -> Site:
    """Read and check ``site.yaml``; None gives Slurm's own defaults. Raises InputError."""
    if path is None:
        return Site()
    site = read_yaml(path, Site, SITE_SCHEMA)
    for key in site.sbatch:
        option = key.lstrip("-").replace("_", "-")
        if option in _OWNED:
            better = _OWNED[option]
            hint = f"use the key `{better}`" if better else "it follows from the work"
            raise InputError(f"{path}: sbatch.{key}: cannot be set here; {hint}")
    _check_python(site, path)
    return site


def _check_python(site: Site, path: Path | str) -> None:
    """One Python for the jobs, said once. Raises InputError."""
    given = [key for key in ("python", "venv") if getattr(site, key)]
    box = site.container
    if len(given) > 1:
        raise InputError(f"{path}: venv: {site.venv} stands beside `python`; keep one of the two")
    if box is None:
        return
    if box.wraps == "jobs" and given:
        raise InputError(
            f"{path}: {given[0]}: the job's Python is the image's; name it as container.python"
        )
    for bind in box.binds:
        if not bind.startswith(("/", "$", "~")):
            raise InputError(
                f"{path}: container.binds: {bind!r} is no absolute path; write /SRC or /SRC:/DST"
            )


def job_python(site: Site) -> str | None:
    """The Python that the site names for jobs on its nodes; None: the one that submits."""
    return str(Path(site.venv) / "bin" / "python") if site.venv else site.python


def expanded(text: str, key: str) -> str:
    """A path of the site with this machine's variables and home put in.

    Raises InputError for a variable that is not set here.
    """
    found = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)", found)
    if unset:
        raise InputError(f"site: {key}: {text}: ${unset[1]} is not set on this machine")
    return found


def scratch_of(site: Site) -> Path:
    """The node-local disk of this machine: the site's, else the one for temporary files."""
    return Path(expanded(site.scratch, "scratch") if site.scratch else tempfile.gettempdir())


def own_scratch(folder: Path) -> Path:
    """This user's folder on a node-local disk, private (0700). Raises InputError."""
    root = folder / f"scepsy-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{root}: cannot be made: {error.strerror}; set `scratch` in the site file, or TMPDIR, "
            "to a folder of your own"
        ) from None
    found = root.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{root}: belongs to another user; set TMPDIR to a folder of your own")
    root.chmod(0o700)
    return root


def engine_container(site: Site, *more_binds: str) -> list[str]:
    """What stands before an engine's command on a node; empty unless engines run in an image."""
    if site.container is None or site.container.wraps != "engines":
        return []
    line = [expanded(word, "container") for word in _container_words(site, site.container)]
    new = [bind for bind in dict.fromkeys(more_binds) if bind not in line]
    extra = [word for bind in new for word in ("--bind", bind)]
    return [*line[:-1], *extra, line[-1]]


def job_container(site: Site) -> list[str]:
    """What stands before a job's Python; empty unless jobs run in an image.

    A shell of the node puts in the variables: those of the machine that submits may differ.
    """
    if site.container is None or site.container.wraps != "jobs":
        return []
    words = " ".join(_shell_word(word) for word in _container_words(site, site.container))
    return ["sh", "-c", f'exec {words} "$@"', "job"]


def _container_words(site: Site, box: Container) -> list[str]:
    places = [site.scratch, site.weights.folder if site.weights else None]
    binds = dict.fromkeys((*box.binds, *(place for place in places if place)))
    line = [box.runtime, "exec", *box.options]
    return [*line, *(word for bind in binds for word in ("--bind", bind)), box.image]


def _shell_word(text: str) -> str:
    """Quoted for a shell, but for its variables and a home in front."""
    if re.fullmatch(r"[\w@%+=:,./~-]+", text):
        return text
    return '"' + re.sub(r'(["\\`])', r"\\\1", text) + '"'


def gpu_options(site: Site, gpu_type: str | None, gpus_per_node: int) -> dict[str, str]:
    """The one Slurm option, if any, that asks for GPUs: name (with underscores) to value."""
    name = site.gpu_names.get(gpu_type or "", "")
    if gpus_per_node == 0 or name == "none":
        return {}
    if site.gpu_request == "gres":
        return {"gres": ":".join(part for part in ("gpu", name, str(gpus_per_node)) if part)}
    return {"gpus_per_node": ":".join(part for part in (name, str(gpus_per_node)) if part)}
