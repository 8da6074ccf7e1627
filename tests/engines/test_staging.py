"""Weights on node-local disk: one whole copy a node."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from model_folders import make_model

from scepsy_hpc.cluster.site import Site, WeightsFolder
from scepsy_hpc.engines import staging
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.errors import InputError, RunError

Usage = namedtuple("Usage", "total used free")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(site, engine="vllm"):
    return EngineConfig(
        instance_id="i0",
        engine=engine,
        model="org/m",
        served_names=("m",),
        gpu_type="h100_sxm",
        gpu_memory_gib=80.0,
        gpus=("0",),
        port=1,
        log_path=Path("log"),
        site=site,
    )


def test_a_copy_is_whole_and_made_once(tmp_path):
    """The copy has every file; a second engine gets the same without a byte copied again."""
    source = make_model(tmp_path / "m")
    place = staging.stage(source, tmp_path / "scratch")
    assert contents(place) == contents(source)
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert staging.stage(source, tmp_path / "scratch") == place
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


def test_engines_that_start_together_share_one_copy(tmp_path):
    """Eight threads want the same weights: one folder is left, and each was given it."""
    source = make_model(tmp_path / "m", num_files=4)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(staging.stage(source, tmp_path / "scratch")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    visible = [p for p in (tmp_path / "scratch").iterdir() if not p.name.startswith(".")]
    assert visible == found[:1]


def test_without_locks_the_first_rename_wins(tmp_path, monkeypatch):
    """On a disk that refuses flock (ENOLCK) a copy is still whole, and no half one is left."""

    def refuse(stream, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", refuse)
    source = make_model(tmp_path / "m")
    place = staging.stage(source, tmp_path / "scratch")
    assert contents(place) == contents(source)


def test_what_was_cut_short_is_never_served_from(tmp_path):
    """A copy whose files do not have their sizes is made anew."""
    source = make_model(tmp_path / "m")
    place = staging.stage(source, tmp_path / "scratch")
    os.truncate(place / "config.json", 1)
    assert contents(staging.stage(source, tmp_path / "scratch")) == contents(source)


def test_other_weights_in_the_same_folder_are_another_copy(tmp_path):
    """A file replaced by one of the same size is noticed: nothing stale is served."""
    source = make_model(tmp_path / "m")
    first = staging.stage(source, tmp_path / "scratch")
    changed = source / "tokenizer.json"
    changed.write_text("[]")
    os.utime(changed, ns=(1, 1))
    second = staging.stage(source, tmp_path / "scratch")
    assert second != first
    assert contents(second) == contents(source)


def test_a_disk_without_room_is_refused_before_a_byte(tmp_path, monkeypatch):
    """Too little room: one line with both figures and the fixes, and nothing is left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 2**30))
    source = make_model(tmp_path / "m")
    with pytest.raises(InputError, match=r"GiB, and .* has 1\.0 GiB free; .*scepsy clean"):
        staging.stage(source, tmp_path / "scratch")
    assert [p for p in (tmp_path / "scratch").iterdir() if p.is_dir()] == []


def test_a_copy_that_is_given_up_leaves_nothing(tmp_path):
    """Whoever stops the run stops the copy, too."""
    source = make_model(tmp_path / "m")
    with pytest.raises(RunError, match="copying was stopped"):
        staging.stage(source, tmp_path / "scratch", lambda: True)
    assert [p for p in (tmp_path / "scratch").iterdir() if p.is_dir()] == []


SLOW_COPY = """
import sys, time
from pathlib import Path
from scepsy_hpc.engines import staging

def slowly():
    Path(sys.argv[3]).touch()
    time.sleep(600)

staging.stage(Path(sys.argv[1]), Path(sys.argv[2]), lambda: slowly())
"""


def test_a_killed_copy_is_no_copy(tmp_path):
    """SIGKILL in the middle: nothing stands in the place, and the next one makes it whole."""
    source, begun = make_model(tmp_path / "m"), tmp_path / "begun"
    line = [sys.executable, "-c", SLOW_COPY, str(source), str(tmp_path / "scratch"), str(begun)]
    # It asks whether to stop before it takes the lock, too: that one must not sleep.
    line[2] = SLOW_COPY.replace("lambda: slowly()", "slowly_later")
    line[2] = line[2].replace(
        "staging.stage(",
        "import threading\n\ndef slowly_later():\n"
        "    return threading.current_thread() is not threading.main_thread() and slowly()\n\n"
        "staging.stage(",
    )
    with subprocess.Popen(line) as copying:
        try:
            until_s = time.monotonic() + 60
            while not begun.exists():
                assert copying.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.02)
        finally:
            copying.send_signal(signal.SIGKILL)
    assert [p for p in (tmp_path / "scratch").iterdir() if p.name.startswith("m-")] == []
    assert contents(staging.stage(source, tmp_path / "scratch")) == contents(source)


def test_an_engine_is_served_from_the_copy(tmp_path):
    """With `stage` the engine gets the node's copy; without it the weights folder itself."""
    source = make_model(tmp_path / "models" / "org" / "m")
    (tmp_path / "scratch").mkdir()
    weights = WeightsFolder(folder=str(tmp_path / "models"), stage=True)
    site = Site(scratch=str(tmp_path / "scratch"), weights=weights)
    staged = asyncio.run(staging.with_weights(config_of(site)))
    assert Path(staged.model).is_relative_to(tmp_path / "scratch" / f"scepsy-{os.getuid()}")
    assert contents(Path(staged.model)) == contents(source)
    direct = Site(weights=WeightsFolder(folder=str(tmp_path / "models")))
    assert asyncio.run(staging.with_weights(config_of(direct))).model == str(source)


def test_engines_without_weights_are_left_alone(tmp_path):
    """No weights folder, or a simulated engine: the model stays the name that it is."""
    site = Site(weights=WeightsFolder(folder=str(tmp_path / "nowhere"), stage=True))
    assert asyncio.run(staging.with_weights(config_of(Site()))).model == "org/m"
    assert asyncio.run(staging.with_weights(config_of(site, "simulated"))).model == "org/m"
