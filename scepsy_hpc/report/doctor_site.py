"""What a site file promises, looked at from where jobs are submitted."""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from scepsy_hpc import __version__
from scepsy_hpc.cluster.site import Site, expanded, job_python
from scepsy_hpc.engines.weights import check_model_folder, files_of_model, models_in
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.report.findings import Check, call, said_last

MIN_FREE_GIB = 5.0
# Of a quota; past it a run may not be able to write its results.
MOST_QUOTA_PART = 0.95
MOST_CLOCK_SKEW_S = 2.0
_GIB = 2**30


def site_checks(site: Site, results: Path) -> Iterator[Check]:
    """What to look at on a login node for this site; ``results`` is where results will lie."""
    yield Check("Account and QOS", "--cluster slurm", _account)
    yield Check("Python of the jobs", "--cluster slurm", _job_python)
    yield Check("Driver", "real engines on this machine", _driver)
    if site.container is not None:
        yield Check("Container", "engines in the site's image", _container)
    yield Check("Weights", "profile, run and serve with engine vllm", _weights)
    folders = {"results": str(results), "home": str(Path.home())}
    if site.weights is not None:
        folders["weights"] = site.weights.folder
    for name, folder in folders.items():
        yield Check(f"Room for {name}", "all that writes there", partial(room_in, folder, name))
    yield Check("Quota", "all that writes results", partial(_quota, results))
    yield Check("Clock", "figures of several nodes", partial(clock_of, results))


def _account(site: Site) -> str:
    if shutil.which("sacctmgr") is None:
        raise InputError("sacctmgr is not on PATH; ask the site which account and QOS are yours")
    user = getpass.getuser()
    fields = "format=Account,Partition,QOS"
    done = call("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", fields)
    if done.returncode != 0:
        raise InputError(
            f"sacctmgr does not answer ({said_last(done)}); without accounting leave `account` "
            "and `qos` out of the site file"
        )
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    accounts = sorted({account for account, _, _ in rows})
    if site.account and site.account not in accounts:
        raise RunError(
            f"account {site.account!r} is not among those of {user}: "
            f"{', '.join(accounts) or 'none'}; correct `account` in the site file"
        )
    mine = [row for row in rows if not site.account or row[0] == site.account]
    qos = sorted({name for _, _, names in mine for name in names.split(",") if name})
    if site.qos and site.qos not in qos:
        raise RunError(
            f"QOS {site.qos!r} is not among those of {site.account or user}: "
            f"{', '.join(qos) or 'none'}; correct `qos` in the site file"
        )
    return f"accounts {', '.join(accounts) or 'none'}; QOS {', '.join(qos) or 'none'}"


def _job_python(site: Site) -> str:
    """A Python of another version of this package would not read what is sent to it."""
    named = job_python(site)
    if site.container is not None and site.container.wraps == "jobs":
        return f"{site.container.python} in {site.container.image}; the job looks at it"
    if named is None:
        return "the one that submits"
    code = "import scepsy_hpc; print(scepsy_hpc.__version__)"
    python = expanded(named, "python")
    done = call(python, "-c", code)
    if done.returncode != 0:
        text = f"{python}: {said_last(done)}; install scepsy-hpc {__version__} there"
        # Set-up lines may load the modules that this Python needs.
        raise InputError(text) if site.setup else RunError(text)
    if done.stdout.strip() != __version__:
        raise RunError(
            f"{python} has scepsy-hpc {done.stdout.strip()}, here is {__version__}; install the "
            "same on both sides"
        )
    return f"{python}, scepsy-hpc {__version__}"


def _driver(site: Site) -> str:
    if shutil.which("nvidia-smi") is None:
        raise InputError("nvidia-smi is not on PATH; a login node often has none: the job looks")
    done = call("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if done.returncode != 0:
        raise RunError(f"nvidia-smi: {said_last(done)}; ask the site for a working driver")
    return ", ".join(sorted(set(done.stdout.split()))) or "no GPU"


def _container(site: Site) -> str:
    box = site.container
    assert box is not None
    runtime = shutil.which(box.runtime)
    if runtime is None:
        raise InputError(
            f"{box.runtime} is not on PATH; where only nodes have it the job looks, else load its "
            "module in `setup`, or name it as container.runtime"
        )
    if "://" not in box.image and not Path(expanded(box.image, "container.image")).exists():
        raise RunError(f"{box.image}: no such file; correct `container.image`")
    return f"{runtime}, {box.image} for {box.wraps}"


def _weights(site: Site) -> str:
    if site.weights is None:
        raise InputError(
            "the site file names no folder; add `weights: {folder: ...}`, else each node looks in "
            "its Hugging Face cache and the network"
        )
    root = Path(expanded(site.weights.folder, "weights.folder"))
    if not root.is_dir():
        raise RunError(f"{root}: is no folder; correct `weights.folder`")
    models = models_in(root)
    if not models:
        raise RunError(f"{root}: holds no model; put each into {root}/ORG/NAME")
    for folder in models.values():
        try:
            check_model_folder(folder)
        except InputError as error:
            raise RunError(str(error)) from None
    total_gib = sum(sum(files_of_model(folder).values()) for folder in models.values()) / _GIB
    staged = ", staged to each node's scratch" if site.weights.stage else ""
    return f"{len(models)} whole models, {total_gib:.1f} GiB{staged}: {', '.join(models)}"


def room_in(folder: str, name: str, site: Site) -> str:
    """Free space where ``name`` lies. Raises RunError where that is little."""
    path = existing(Path(expanded(folder, name)))
    free_gib = shutil.disk_usage(path).free / _GIB
    found = f"{free_gib:.0f} GiB free in {path}"
    if free_gib < MIN_FREE_GIB:
        raise RunError(f"{found}; make room there, or use a larger disk for {name}")
    return found


def existing(path: Path) -> Path:
    """The folder itself or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _quota(results: Path, site: Site) -> str:
    path = existing(results)
    on_lustre = _file_system(path) == "lustre" and shutil.which("lfs")
    if on_lustre:
        done = call("lfs", "quota", "-q", "-u", getpass.getuser(), str(path))
    elif shutil.which("quota"):
        done = call("quota", "-w", "-v")
    else:
        raise InputError("neither quota nor lfs is on PATH; ask the site how much you may store")
    rows = [line.split() for line in done.stdout.splitlines()]
    figures = [found for row in rows if (found := _used_and_limit(row)) is not None]
    if not figures:
        raise InputError(f"no quota is told ({said_last(done)}); ask the site if there is one")
    shown = ", ".join(
        f"{name}: {used / 2**20:.1f} of {limit / 2**20:.1f} GiB" if limit else f"{name}: no limit"
        for name, used, limit in figures
    )
    full = [name for name, used, limit in figures if limit and used > MOST_QUOTA_PART * limit]
    if full:
        raise RunError(f"{shown}; remove what is not needed on {full[0]}: `scepsy clean` helps")
    return shown


def _used_and_limit(row: list[str]) -> tuple[str, int, int] | None:
    """File system, KiB used (a star marks too much) and the hard limit, else the soft one."""
    if len(row) < 4 or not row[1].rstrip("*").isdigit():
        return None
    soft, hard = (int(word.rstrip("*")) if word.rstrip("*").isdigit() else 0 for word in row[2:4])
    return row[0], int(row[1].rstrip("*")), hard or soft


def _file_system(path: Path) -> str:
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    above = (str(folder) for folder in (path, *path.parents))
    return next((mounts[folder] for folder in above if folder in mounts), "")


def clock_of(results: Path, site: Site) -> str:
    """This machine's clock against the file server's. Raises RunError where they differ."""
    with tempfile.NamedTemporaryFile(prefix=".scepsy-doctor-", dir=existing(results)) as stream:
        stream.write(b"x")
        stream.flush()
        os.fsync(stream.fileno())
        ahead_s = time.time() - os.stat(stream.name).st_mtime
    found = f"{ahead_s:+.1f} s against the file server"
    if abs(ahead_s) > MOST_CLOCK_SKEW_S:
        raise RunError(f"{found}; ask the site to set the clocks (NTP)")
    return found
