"""CPU slices: what is written to the kernel, and what is said when it may not be.

A folder stands in for the cgroup file system, so that no test here needs root;
tests/vllm/test_engine_cpu.py holds a real engine to a real quota.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cpu_throttling import throttled_s

from scepsy_hpc.cluster import cpu_slices
from scepsy_hpc.cluster.cpu_slices import SLICE_CORES, SliceGroup, quota_cores
from scepsy_hpc.errors import InputError, RunError

FILES = {
    "v1": {"cgroup.procs": "", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
    "v2": {"cgroup.procs": "", "cgroup.controllers": "cpu memory", "cpu.max": "max 100000"},
}


@pytest.fixture(params=["v1", "v2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files that the kernel puts into a cgroup."""
    for name, text in FILES[request.param].items():
        (tmp_path / name).write_text(text)
    return tmp_path


def limit_of(folder: Path) -> tuple[str, str]:
    """Quota and period, as the kernel would read them."""
    if (folder / "cpu.max").exists():
        quota, _, period = (folder / "cpu.max").read_text().partition(" ")
        return quota, period
    files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
    quota, period = (path.read_text() for path in files)
    return quota, period


def test_quota_grows_with_group_and_share() -> None:
    """Two slices are twice the quota, half a share is half of it."""
    assert quota_cores(1, 100) == pytest.approx(SLICE_CORES)
    assert quota_cores(2, 100) == pytest.approx(2 * SLICE_CORES)
    assert quota_cores(2, 50) == pytest.approx(SLICE_CORES)


def test_limit_is_a_part_of_a_period(folder: Path) -> None:
    """0.35 cores are 7 ms of each 20 ms, in both versions' words."""
    SliceGroup(folder).limit(0.35)
    assert limit_of(folder) == ("7000", "20000")


def test_limit_is_never_below_what_the_kernel_takes(folder: Path) -> None:
    """A tiny share asks for the smallest quota there is, not for one that is refused."""
    SliceGroup(folder).limit(0.001)
    assert limit_of(folder)[0] == "1000"


def test_lift_takes_the_quota_away(folder: Path) -> None:
    """While an engine starts nothing holds it back."""
    group = SliceGroup(folder)
    group.limit(0.35)
    group.lift()
    assert limit_of(folder)[0] == ("max" if (folder / "cpu.max").exists() else "-1")


def test_the_command_enters_first_and_keeps_its_words(folder: Path) -> None:
    """The process that becomes the command has put itself into the group before."""
    code = "import os, sys; print(os.getpid(), sys.argv[1:])"
    words = ["two words", '"$quoted"', "*"]
    line = SliceGroup(folder).enter_command([sys.executable, "-c", code, *words])
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    pid, _, argv = out.strip().partition(" ")
    assert (folder / "cgroup.procs").read_text().strip() == pid
    assert argv == repr(words)


def test_a_group_that_cannot_be_entered_starts_nothing(tmp_path: Path) -> None:
    """Better no engine than one outside its quota; the log says where to look."""
    line = SliceGroup(tmp_path / "gone").enter_command(["echo", "started"])
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 126
    assert "started" not in done.stdout
    assert f"cannot enter {tmp_path}/gone/cgroup.procs" in done.stderr


def test_throttled_time_in_both_units(folder: Path) -> None:
    """Version 1 counts nanoseconds, version 2 microseconds."""
    if (folder / "cpu.max").exists():
        (folder / "cpu.stat").write_text("usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000\n")
    else:
        (folder / "cpu.stat").write_text("nr_throttled 3\nthrottled_time 2500000000\n")
    assert throttled_s(SliceGroup(folder)) == 2.5


def test_remove_waits_for_nothing_and_says_what_is_left(tmp_path: Path) -> None:
    """A removed group is fine; one still in use is an error that names it."""
    empty, busy = tmp_path / "empty", tmp_path / "busy"
    empty.mkdir()
    (busy / "inside").mkdir(parents=True)
    SliceGroup(empty).remove()
    SliceGroup(empty).remove()
    assert not empty.exists()
    with pytest.raises(RunError, match=f"{busy}: cannot be removed"):
        SliceGroup(busy).remove(timeout_s=0)


def test_a_parent_that_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    """The line names the variable, the folder, and what root has to do."""
    with pytest.raises(InputError) as caught:
        cpu_slices.make_group("judge", {"SCEPSY_CPU_SLICE_CGROUP": str(tmp_path)})
    text = str(caught.value)
    assert text.startswith(f"SCEPSY_CPU_SLICE_CGROUP: {tmp_path} is not a cgroup")
    assert "delegate" in text


def test_no_controller_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any cgroup CPU controller there are no slices, and nothing runs unlimited."""
    monkeypatch.setattr(cpu_slices, "_V1_ROOTS", (tmp_path / "v1",))
    monkeypatch.setattr(cpu_slices, "_V2_ROOT", tmp_path)
    with pytest.raises(InputError, match="no cgroup CPU controller is mounted"):
        cpu_slices.make_group("judge", {})
