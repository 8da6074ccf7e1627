"""Dask workers: processes of this machine, Slurm jobs as the site asks, and wrong words refused."""

from __future__ import annotations

import pytest

from scepsy_hpc.cluster.dask import dask_workers, slurm_settings
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError


def test_slurm_jobs_follow_the_site() -> None:
    """Dask's Slurm jobs take partition, account and time from the site's record."""
    site = Site(partition="cpu", account="lab", time_min=90, sbatch={"comment": "x"}, qos="low")
    found = slurm_settings(site)
    assert (found["queue"], found["account"], found["walltime"]) == ("cpu", "lab", "01:30:00")
    assert found["job_extra_directives"] == ["--comment=x", "--qos=low"]
    from dask_jobqueue.slurm import SLURMJob

    script = SLURMJob("tcp://127.0.0.1:1", name="w", **found).job_script()
    assert "#SBATCH -p cpu" in script
    assert "#SBATCH --comment=x" in script


def test_unknown_workers_are_refused() -> None:
    """`--dask` names its choices."""
    with pytest.raises(InputError, match="none, local, slurm or"), dask_workers("cloud"):
        pass


def test_no_workers_no_client() -> None:
    """`--dask none`, the default, starts nothing."""
    with dask_workers("none") as client:
        assert client is None


def test_workers_of_this_machine_work_and_end() -> None:
    """`--dask local` starts as many processes as asked for, and leaves none behind."""
    with dask_workers("local", num_workers=1) as client:
        assert len(client.scheduler_info()["workers"]) == 1
        assert client.submit(sum, [1, 2]).result() == 3
    assert client.status == "closed"


def test_a_job_has_memory_and_cores_whatever_the_site_says() -> None:
    """A site that says nothing gives two cores and 2 GiB for each; fractions are rounded up."""
    plain = slurm_settings(Site())
    assert (plain["cores"], plain["memory"], plain["processes"]) == (2, "4GiB", 1)
    assert "python" not in plain
    told = slurm_settings(Site(cpus_per_gpu=6, mem_gib_per_gpu=10.5, python="/opt/python"))
    assert (told["cores"], told["memory"], told["python"]) == (6, "11GiB", "/opt/python")
