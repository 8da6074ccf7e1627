"""A compute node, looked at by a job of a made-up Slurm."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import fake_slurm
import fake_vllm
import pytest
from model_folders import make_model

from scepsy_hpc import __version__
from scepsy_hpc.cluster.jobs import slurm_jobs
from scepsy_hpc.cluster.site import Site, WeightsFolder
from scepsy_hpc.report import doctor_node
from scepsy_hpc.report.doctor_node import NodeQuestion, examine_node, look_at_node, num_gpus_to_ask

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder in which the fake Slurm keeps what it saw; it is first on PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    tools = fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_jobs, "RESULT_POLL_S", 0.05)
    monkeypatch.setattr(slurm_jobs, "FIRST_SQUEUE_S", 0.1)
    monkeypatch.setattr(slurm_jobs, "GRACE_S", 0.2)
    sinfo(tools, "gpu*|gpu:h100:4")
    root = str(Path(doctor_node.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, "good")))
    return folder


def sinfo(tools, text):
    (tools / "sinfo").write_text(f"#!/bin/sh\necho '{text}'\n")
    (tools / "sinfo").chmod(0o755)


def named(findings):
    return {finding.what.removeprefix("Compute node: "): finding for finding in findings}


def test_a_job_looks_at_its_node(slurm, tmp_path):
    """It is asked for as the site says, finds what the node has, and leaves nothing behind."""
    results = tmp_path / "results"
    results.mkdir()
    site = Site(scratch=str(tmp_path), gpu_names={"h100_sxm": "h100"}, cpus_per_gpu=3)
    findings = named(examine_node(site, results, wait_s=60.0))
    script = (slurm / "script").read_text()
    for option in (
        "--gres=gpu:h100:1",
        "--cpus-per-task=3",
        "--time=2",
        "--job-name=scepsy-doctor",
    ):
        assert option in script
    assert __version__ in findings["host"].detail
    assert findings["shared folder"].state == "ok"
    assert findings["scratch"].state == "ok"
    assert findings["vLLM"].detail.startswith("0.32.0, imported in")
    assert findings["GPUs"].state == "broken"  # NVML is not here
    assert "gpu_names" in findings["GPUs"].fix
    assert findings["Slurm commands"].state == "ok"
    for finding in findings.values():
        assert bool(finding.fix) == (finding.state != "ok"), finding
    assert list(results.iterdir()) == []


def test_slurm_s_refusal_is_a_finding(slurm, tmp_path):
    """What sbatch minds is said in its words."""
    (slurm / "refusal").write_text("sbatch: error: invalid account")
    [finding] = examine_node(Site(), tmp_path, wait_s=60.0)
    assert finding.state == "broken"
    assert "invalid account" in finding.detail
    assert finding.fix


def test_a_job_that_waits_too_long_is_cancelled(slurm, tmp_path):
    """Its reason is told as it waits, and stands in the finding; no job is left in the queue."""
    (slurm / "held").write_text(json.dumps({"71": "PENDING"}))
    (slurm / "lost").write_text("71")
    notes: list[str] = []
    [finding] = examine_node(Site(), tmp_path, wait_s=1.0, on_note=notes.append)
    assert finding.state == "broken"
    assert "is cancelled" in finding.detail
    assert "--no-job" in finding.fix
    assert notes == ["job 71 waits: Priority"]
    assert (slurm / "cancelled").read_text() == "71"


def test_a_python_without_the_package_is_named(slurm, tmp_path, monkeypatch):
    """The node's Python cannot run this package: the fix says what to install."""
    monkeypatch.setenv("PYTHONPATH", "")
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    empty.chmod(0o755)
    [finding] = examine_node(Site(python=str(empty)), tmp_path, wait_s=60.0)
    assert finding.state == "broken"
    assert f"install scepsy-hpc {__version__}" in finding.fix


@pytest.mark.parametrize(
    ("says", "site", "number"),
    [
        ("gpu*|gpu:h100:4", Site(), 1),
        ("cpu*|(null)\ngpu|gpu:2", Site(), 0),
        ("cpu*|(null)\ngpu|gpu:2", Site(partition="gpu"), 1),
        ("gpu*|gpu:2", Site(gpu_names={"cpu_slice": "none"}), 0),
    ],
)
def test_a_gpu_is_asked_for_where_there_are_some(slurm, says, site, number):
    """A job that asks for what its partition lacks would never start."""
    sinfo(slurm / "bin", says)
    assert num_gpus_to_ask(site) == number


def question(tmp_path, site, **changed):
    (tmp_path / "question").write_text("t")
    given = {"token": "t", "version": __version__, "num_gpus": 0} | changed
    return NodeQuestion(site=site, folder=str(tmp_path), **given)


def test_scratch_must_hold_the_largest_model(tmp_path, monkeypatch):
    """Where weights are staged, too small a disk is found before a run needs it."""
    make_model(tmp_path / "m" / "org" / "one")
    weights = WeightsFolder(folder=str(tmp_path / "m"), stage=True)
    site = Site(scratch=str(tmp_path), weights=weights)
    assert named(look_at_node(question(tmp_path, site)))["scratch"].state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 1, doctor_node.SPARE_BYTES))
    monkeypatch.setattr("scepsy_hpc.report.doctor_site.MIN_FREE_GIB", 0.0)
    finding = named(look_at_node(question(tmp_path, site)))["scratch"]
    assert finding.state == "broken"
    assert "larger `scratch`" in finding.fix


def test_variables_of_the_node_are_the_node_s(tmp_path, monkeypatch):
    """A scratch folder in a variable that the node does not set is named."""
    site = Site(scratch="$NODE_DISK/x", weights=WeightsFolder(folder=str(tmp_path / "gone")))
    monkeypatch.delenv("NODE_DISK", raising=False)
    findings = named(look_at_node(question(tmp_path, site)))
    assert "$NODE_DISK is not set" in findings["scratch"].detail
    assert findings["weights"].state == "broken"
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert named(look_at_node(question(tmp_path, site)))["scratch"].state == "ok"


def test_another_version_on_the_node_is_named(tmp_path):
    """What submits and what runs must be the same."""
    finding = named(look_at_node(question(tmp_path, Site(), version="0.0.1")))["host"]
    assert finding.state == "broken"
    assert "0.0.1 submitted" in finding.detail
