"""What engines will miss on the nodes is said before a queue is waited for."""

from __future__ import annotations

import fake_vllm
import pytest
from model_folders import make_model

from scepsy_hpc.cluster.site import Container, Site, WeightsFolder
from scepsy_hpc.engines.before_queue import WantedEngine, require
from scepsy_hpc.errors import InputError


@pytest.fixture
def without_vllm(tmp_path, monkeypatch):
    """The Python for vLLM is there and has none."""
    python = tmp_path / "python-without"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(python))
    return python


@pytest.fixture
def with_vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, "good")))


def wanted(model="org/m", engine="vllm", **engine_args):
    return [WantedEngine("plan: llms.a", engine, model, engine_args)]


def models(tmp_path):
    if not (tmp_path / "models").exists():
        make_model(tmp_path / "models" / "org" / "m")
    return WeightsFolder(folder=str(tmp_path / "models"))


def test_simulated_engines_need_nothing(without_vllm, tmp_path):
    """A plan of simulated engines is never refused for what it does not use."""
    site = Site(weights=WeightsFolder(folder=str(tmp_path / "gone")))
    assert require(wanted(engine="simulated"), site, on_slurm=True) == []


def test_a_missing_vllm_is_refused(without_vllm, tmp_path):
    """Nothing on the way to the node could bring it: no job is queued to find that out."""
    with pytest.raises(InputError, match=r"engine vllm: not installed .*nothing was submitted"):
        require(wanted(), Site(weights=models(tmp_path)), on_slurm=True)


@pytest.mark.parametrize("how", ["setup", "python", "venv"])
def test_what_the_set_up_may_bring_is_a_warning(without_vllm, tmp_path, how):
    """Set-up lines, another Python or a venv may have it there: said, not refused."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(without_vllm)
    ways = {"setup": ("module load vllm",), "python": str(without_vllm), "venv": str(tmp_path)}
    site = Site(weights=models(tmp_path), **{how: ways[how]})
    [warning] = require(wanted(), site, on_slurm=True)
    assert "not installed" in warning
    assert "scepsy doctor --site" in warning
    if how == "setup":  # here, in this environment, nothing else is coming
        with pytest.raises(InputError, match="not installed"):
            require(wanted(), site, on_slurm=False)


def test_an_image_that_is_not_there_is_refused(without_vllm, tmp_path):
    """An image file must exist; one on a registry, or of the node's own, cannot be looked at."""
    site = Site(weights=models(tmp_path), container=Container(image=str(tmp_path / "vllm.sif")))
    with pytest.raises(InputError, match=r"container\.image: .*vllm\.sif: no such file"):
        require(wanted(), site, on_slurm=True)
    (tmp_path / "vllm.sif").touch()
    assert require(wanted(), site, on_slurm=True) == []
    far = Site(weights=models(tmp_path), container=Container(image="docker://vllm/vllm-openai"))
    assert require(wanted(), far, on_slurm=True) == []
    unseen = Site(weights=models(tmp_path), container=Container(image="$NOT_SET_HERE/vllm.sif"))
    [warning] = require(wanted(), unseen, on_slurm=True)
    assert "$NOT_SET_HERE is not set on this machine" in warning


def test_incomplete_weights_are_refused(with_vllm, tmp_path):
    """Weights that lack a file would only fail on the node, hours later."""
    site = Site(weights=models(tmp_path))
    assert require(wanted(), site, on_slurm=True) == []
    (tmp_path / "models" / "org" / "m" / "config.json").unlink()
    with pytest.raises(InputError, match=r"plan: llms\.a: .*config\.json: missing"):
        require(wanted(), site, on_slurm=True)


def test_weights_that_nobody_named_are_a_warning(with_vllm, tmp_path, monkeypatch):
    """A model that is not on this machine may be fetched by the node: said, not refused."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    [warning] = require(wanted(), Site(), on_slurm=True)
    assert "weights of org/m are not on this machine" in warning
    assert "weights: {folder: ...}" in warning
