"""Dask workers: on this machine, in Slurm jobs, or those of a running cluster."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError


@contextlib.contextmanager
def dask_workers(where: str, site: Site | None = None, num_workers: int = 2) -> Iterator[Any]:
    """A Dask client: ``none`` (None), ``local`` processes, ``slurm`` jobs, or ``tcp://HOST:PORT``.

    Workers and cluster end with the context. Raises InputError for anything else.
    """
    if where == "none":
        yield None
        return
    if where not in ("local", "slurm") and "://" not in where:
        raise InputError(f"--dask: must be none, local, slurm or tcp://HOST:PORT, is {where!r}")
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if where == "local":
            from distributed import LocalCluster

            target: Any = stack.enter_context(
                LocalCluster(n_workers=num_workers, threads_per_worker=1, dashboard_address=None)
            )
        elif where == "slurm":
            target = stack.enter_context(_slurm_cluster(site or Site(), num_workers))
        else:
            target = where
        yield stack.enter_context(Client(target))


def slurm_settings(site: Site) -> dict[str, Any]:
    """What ``dask_jobqueue.SLURMCluster`` is asked for: one process a job, no GPU."""
    extra = [f"--{key.replace('_', '-')}={value}" for key, value in site.sbatch.items()]
    extra += [f"--qos={site.qos}"] if site.qos else []
    extra += [f"--constraint={site.constraint}"] if site.constraint else []
    cores = site.cpus_per_gpu or 2
    return {
        "queue": site.partition,
        "account": site.account,
        "cores": cores,
        "processes": 1,
        "memory": f"{math.ceil(site.mem_gib_per_gpu or 2.0 * cores)}GiB",
        "walltime": f"{site.time_min // 60:02d}:{site.time_min % 60:02d}:00",
        "job_extra_directives": extra,
        "job_script_prologue": list(site.setup),
        **({"python": site.python} if site.python else {}),
    }


def _slurm_cluster(site: Site, num_workers: int) -> Any:
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(**slurm_settings(site))
    cluster.scale(jobs=num_workers)
    return cluster
