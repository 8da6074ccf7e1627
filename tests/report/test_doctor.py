"""What `scepsy doctor` says of a machine that lacks everything, and of a fake Slurm."""

from __future__ import annotations

import os

import pytest

from scepsy_hpc.report.doctor import Finding, examine


def findings(**wanted: object) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(**wanted)}


def sinfo(folder, text, code=0):
    """A program ``sinfo`` that says ``text``, first on an otherwise empty PATH."""
    program = folder / "sinfo"
    program.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    program.chmod(0o755)


def test_what_is_not_there_is_missing_with_its_fix(tmp_path, monkeypatch):
    """Nothing on PATH: commands are missing, each with what to do; Python itself is there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings()
    assert found["Python"].state == "ok"
    for what, fix in (("MPS", "NVIDIA driver"), ("Slurm commands", "login node")):
        assert found[what].state == "missing"
        assert fix in found[what].fix
    assert found["Slurm partitions"].state == "missing"


@pytest.mark.parametrize(
    ("said", "code", "state", "detail", "fix"),
    [
        ("gpu gpu:h100:4", 0, "ok", "gpu (gpu:h100:4)", ""),
        ("cpu (null)", 0, "broken", "'gpu' is not among: cpu", "correct `partition`"),
        ("slurm_load: down", 1, "broken", "slurm_load: down", "SLURM_CONF"),
    ],
)
def test_partitions(tmp_path, monkeypatch, said, code, state, detail, fix):
    """The site's partition must be among those that Slurm lists; a silent controller is broken."""
    sinfo(tmp_path, said, code)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    site = tmp_path / "site.yaml"
    site.write_text("schema: scepsy/site/v1\npartition: gpu\n")
    found = findings(site_path=site)["Slurm partitions"]
    assert (found.state, found.detail) == (state, detail)
    assert fix in found.fix
