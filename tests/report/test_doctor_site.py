"""What a site file promises, looked at on a login node of made-up programs."""

from __future__ import annotations

import os
import sys
import time

import pytest
from fake_tools import only_tools
from model_folders import make_model

from scepsy_hpc import __version__
from scepsy_hpc.cluster.site import Container, Site, WeightsFolder
from scepsy_hpc.report import doctor_site
from scepsy_hpc.report.doctor_site import existing, site_checks
from scepsy_hpc.report.findings import findings_of


def found(site, results):
    return {finding.what: finding for finding in findings_of(site_checks(site, results), site)}


def said(finding):
    return finding.state, f"{finding.detail}; {finding.fix}"


ROWS = "proj-a||normal,long\nproj-b|gpu|short"


@pytest.mark.parametrize(
    ("keys", "sacctmgr", "state", "words"),
    [
        ({"account": "proj-a", "qos": "long"}, ROWS, "ok", "accounts proj-a, proj-b; QOS long"),
        ({}, ROWS, "ok", "QOS long, normal, short"),
        ({"account": "other"}, ROWS, "broken", "'other' is not among those of"),
        (
            {"account": "proj-b", "qos": "long"},
            ROWS,
            "broken",
            "'long' is not among those of proj-b",
        ),
        ({"account": "a"}, ("no slurmdbd", 1), "missing", "leave `account` and `qos` out"),
    ],
)
def test_account_and_qos(tmp_path, monkeypatch, keys, sacctmgr, state, words):
    """They must be among the user's own; where nobody knows them, that is said."""
    only_tools(tmp_path, monkeypatch, sacctmgr=sacctmgr)
    finding = found(Site(**keys), tmp_path)["Account and QOS"]
    assert finding.state == state
    assert words in said(finding)[1]


def test_without_any_tool_all_that_is_wrong_has_a_fix(tmp_path, monkeypatch):
    """A bare machine: no traceback, and each line that is not fine says what to do."""
    only_tools(tmp_path, monkeypatch)
    site = Site(
        weights=WeightsFolder(folder=str(tmp_path / "gone")),
        container=Container(image=str(tmp_path / "gone.sif")),
        python="/no/python",
    )
    findings = found(site, tmp_path / "not" / "yet")
    assert {f.state for f in findings.values()} == {"ok", "missing", "broken"}
    for finding in findings.values():
        assert bool(finding.fix) == (finding.state != "ok"), finding
    assert findings["Weights"].state == "broken"
    assert findings["Room for results"].detail.endswith(str(tmp_path))


@pytest.mark.parametrize(
    ("quota", "state", "words"),
    [
        ("/dev/a 1048576 4194304 5242880 10 0 0", "ok", "/dev/a: 1.0 of 5.0 GiB"),
        ("/dev/a 5242880* 4194304 5242880 6days 10 0 0", "broken", "`scepsy clean` helps"),
        ("/dev/a 100 0 0 10 0 0", "ok", "/dev/a: no limit"),
        ("Disk quotas for user me: none", "missing", "no quota is told"),
    ],
)
def test_quota(tmp_path, monkeypatch, quota, state, words):
    """A quota that is nearly used up is found before a run fills it."""
    only_tools(tmp_path, monkeypatch, quota=(quota, 1))
    assert found(Site(), tmp_path)["Quota"].state == state
    assert words in said(found(Site(), tmp_path)["Quota"])[1]


def test_weights_are_looked_through(tmp_path, monkeypatch):
    """Whole models are listed with their size; the first damaged one is named."""
    only_tools(tmp_path, monkeypatch)
    site = Site(weights=WeightsFolder(folder=str(tmp_path / "m"), stage=True))
    make_model(tmp_path / "m" / "org" / "one")
    second = make_model(tmp_path / "m" / "models--org--two" / "snapshots" / "abc")
    state, words = said(found(site, tmp_path)["Weights"])
    assert state == "ok"
    assert "2 whole models" in words
    assert "staged" in words
    assert "org/one" in words
    assert "org/two" in words
    (second / "tokenizer.json").unlink()
    state, words = said(found(site, tmp_path)["Weights"])
    assert state == "broken"
    assert "no tokenizer" in words


def test_the_python_of_the_jobs_has_this_package(tmp_path, monkeypatch):
    """Another version on the nodes would not read what is sent to it."""
    only_tools(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert found(Site(python=sys.executable), tmp_path)["Python of the jobs"].state == "ok"
    (tmp_path / "old").mkdir()
    old = only_tools(tmp_path / "old", monkeypatch, python="0.0.1")
    finding = found(Site(python=f"{old}/python"), tmp_path)["Python of the jobs"]
    assert finding.state == "broken"
    assert f"has scepsy-hpc 0.0.1, here is {__version__}" in finding.detail


def test_a_wrong_clock_is_noticed(tmp_path, monkeypatch):
    """The clock of this machine is held against the file server's."""
    only_tools(tmp_path, monkeypatch)
    assert found(Site(), tmp_path)["Clock"].state == "ok"
    real = time.time
    monkeypatch.setattr(doctor_site.time, "time", lambda: real() + 60.0)
    finding = found(Site(), tmp_path)["Clock"]
    assert finding.state == "broken"
    assert "NTP" in finding.fix


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """Little room where results go is said with the place."""
    only_tools(tmp_path, monkeypatch)
    monkeypatch.setattr(doctor_site, "MIN_FREE_GIB", 1e12)
    finding = found(Site(), tmp_path)["Room for results"]
    assert finding.state == "broken"
    assert str(tmp_path) in finding.detail


def test_driver_and_container(tmp_path, monkeypatch):
    """The driver's version and the runtime, where they are there."""
    only_tools(tmp_path, monkeypatch, nvidia_smi="570.1\n570.1", apptainer="")
    site = Site(container=Container(image="docker://vllm"))
    findings = found(site, tmp_path)
    assert said(findings["Driver"]) == ("ok", "570.1; ")
    assert findings["Container"].state == "ok"
    assert "docker://vllm for engines" in findings["Container"].detail
    lost = Site(container=Container(image=str(tmp_path / "x.sif")))
    assert found(lost, tmp_path)["Container"].state == "broken"


def test_the_nearest_folder_that_is_there(tmp_path):
    """A results folder that will be made lies where its parent does."""
    assert existing(tmp_path / "a" / "b") == tmp_path
