"""site.yaml: what one Slurm site wants to hear."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scepsy_hpc.cluster.site import (
    Container,
    Site,
    WeightsFolder,
    engine_container,
    expanded,
    gpu_options,
    job_container,
    job_python,
    load_site,
    own_scratch,
    scratch_of,
)
from scepsy_hpc.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "jobs" / "sites" / "example.yaml"


def test_example_is_valid():
    """The shipped example loads and says what its comments say."""
    site = load_site(EXAMPLE)
    assert site.partition == "gpu"
    assert gpu_options(site, "h100_sxm", 4) == {"gres": "gpu:h100:4"}


@pytest.mark.parametrize(
    ("site", "gpu_type", "options"),
    [
        (Site(), "h100_sxm", {"gres": "gpu:2"}),
        (Site(gpu_request="gpus_per_node"), None, {"gpus_per_node": "2"}),
        (
            Site(gpu_request="gpus_per_node", gpu_names={"a100": "a100_80"}),
            "a100",
            {"gpus_per_node": "a100_80:2"},
        ),
        (Site(gpu_names={"cpu_slice": "none"}), "cpu_slice", {}),
    ],
)
def test_gpus_are_asked_for_in_the_site_s_way(site, gpu_type, options):
    """GPUs are asked for by gres or gpus-per-node, with the site's own name or without one."""
    assert gpu_options(site, gpu_type, 2) == options


def test_no_site_file_means_slurm_s_defaults():
    """Without a site file nothing is chosen for the user."""
    assert load_site(None) == Site()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("partion: gpu", r"site\.yaml: partion: unknown key; known keys: .*partition"),
        ("time_min: 04:00:00", r"site\.yaml: time_min"),
        ("sbatch: {time: 60}", r"sbatch\.time: cannot be set here; use the key `time_min`"),
        ("gpu_request: gpus", r"gpu_request"),
        ("container: {imag: a}", r"container\.imag: unknown key; known keys: image"),
        ("weights: {folder: /w, staged: true}", r"weights\.staged: unknown key; .*stage"),
        ("{venv: /a, python: /b}", r"venv: /a stands beside `python`"),
        (
            "{venv: /a, container: {image: i, wraps: jobs}}",
            r"venv: the job's Python is the image's; name it as container\.python",
        ),
        ("container: {image: i, binds: [data]}", r"binds: 'data' is no absolute path"),
    ],
)
def test_bad_site_is_one_line(tmp_path, line, said):
    """A wrong key, unit or a second way to say the same is one line with the fix."""
    path = tmp_path / "site.yaml"
    inner = line.removeprefix("{").removesuffix("}") if line.startswith("{") else ""
    lines = inner.replace(", ", "\n", 1) if inner else line
    path.write_text(f"schema: scepsy/site/v1\n{lines}\n")
    with pytest.raises(InputError, match=said) as caught:
        load_site(path)
    assert "\n" not in str(caught.value)


def test_a_venv_is_its_python():
    """`venv` is a short form; without either the jobs take the Python that submits."""
    assert job_python(Site(venv="/envs/a")) == "/envs/a/bin/python"
    assert job_python(Site(python="/usr/bin/python3")) == "/usr/bin/python3"
    assert job_python(Site()) is None


BOXED = Site(
    scratch="$NODE_DISK",
    weights=WeightsFolder(folder="/models"),
    container=Container(image="/images/vllm.sif", binds=("/data:/data:ro",)),
)


def test_engines_run_in_the_image(monkeypatch):
    """An engine's command goes into the image, with binds, scratch and weights of this node."""
    monkeypatch.setenv("NODE_DISK", "/local/7")
    assert engine_container(BOXED, "/models/m") == [
        *("apptainer", "exec", "--nv"),
        *("--bind", "/data:/data:ro", "--bind", "/local/7", "--bind", "/models"),
        *("--bind", "/models/m", "/images/vllm.sif"),
    ]
    assert job_container(BOXED) == []
    assert engine_container(Site()) == []
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(InputError, match=r"\$NODE_DISK is not set on this machine"):
        engine_container(BOXED)


def test_jobs_run_in_the_image(tmp_path):
    """A job's variables are put in by the node's own shell; words with blanks stay whole."""
    seen = tmp_path / "seen"
    runtime = tmp_path / "my apptainer"
    runtime.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\n')
    runtime.chmod(0o755)
    box = Container(
        image="/my images/a.sif", wraps="jobs", binds=("$NODE_DISK:/x",), runtime=str(runtime)
    )
    site = Site(container=box)
    assert engine_container(site) == []  # it is inside already
    line = [*job_container(site), "python3", "-u", "a folder"]
    subprocess.run(line, env={"NODE_DISK": "/local/a b", "PATH": os.defpath}, check=True)
    assert seen.read_text().splitlines() == [
        *("exec", "--nv", "--bind", "/local/a b:/x", "/my images/a.sif"),
        *("python3", "-u", "a folder"),
    ]


def test_scratch_is_the_user_s_own(tmp_path, monkeypatch):
    """Below the site's scratch lies a private folder; one that is another's is refused."""
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    folder = own_scratch(scratch_of(Site(scratch="${NODE_DISK}")))
    assert folder == tmp_path / f"scepsy-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="belongs to another user"):
        own_scratch(tmp_path)
    assert expanded("~/x", "scratch") == str(Path.home() / "x")
