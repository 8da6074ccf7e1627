"""What a run that is over leaves and nobody needs."""

from __future__ import annotations

import fcntl
import os
import socket

import fake_slurm
import pytest
from model_folders import make_model

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.engines.staging import stage
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.serving.cleaning import bytes_on_disk, find_rubbish, find_staged, remove
from scepsy_hpc.serving.job import Job, remember_job
from scepsy_hpc.serving.run_folder import RunFolder, write_json


def run_of(root, state="ended", cluster="local", pid=None, ids=("1",)):
    """A results folder with a bit of everything."""
    folder = RunFolder(root)
    folder.create()
    write_json(folder.status, RunStatus(attempt="a-0", state=state).plain())
    job = Job(cluster=cluster, ids=ids, host=socket.gethostname(), pid=pid, created_s=None)
    write_json(folder.job, job)
    for path in (folder.plan, folder.tasks, folder.results, folder.spans, folder.measured):
        path.write_text("{}\n")
    for name in ("a-0.1.log", "a-0.2.log", "agent-w.log"):
        (folder.logs / name).write_text("x" * 5000)
    write_json(folder.attempt("a-0").beat(0), {"since_s": 1.0})
    write_json(folder.attempt("a-0").asked, {"since_s": 1.0})
    (folder.jobs / "scepsy-run-1").mkdir()
    (folder.jobs / "scepsy-run-1" / "1_submitted.pkl").write_bytes(b"x" * 100_000)
    (root / ".status.json.k3x").write_text("{")
    return folder


def names(found, root):
    return {str(os.path.relpath(one.path, root)) for one in found}


def test_what_a_finished_run_no_longer_needs(tmp_path):
    """Starts, pickles, earlier logs and half-written files; the rest stays."""
    folder = run_of(tmp_path / "out")
    found = find_rubbish(folder.root)
    attempts = os.path.relpath(folder.attempt("a-0").root, folder.root)
    assert names(found, folder.root) == {
        attempts,
        os.path.relpath(folder.attempt("a-0").asked, folder.root),
        os.path.relpath(folder.jobs / "scepsy-run-1", folder.root),
        "logs/a-0.1.log",
        ".status.json.k3x",
    }
    assert sum(one.num_bytes for one in found) > 100_000
    remove(found)
    assert find_rubbish(folder.root) == []
    for path in (folder.plan, folder.tasks, folder.results, folder.spans, folder.measured):
        assert path.read_text() == "{}\n"
    assert sorted(p.name for p in folder.logs.iterdir()) == ["a-0.2.log", "agent-w.log"]
    assert folder.key.exists()


@pytest.mark.parametrize("state", ["running", "starting", "waiting"])
def test_a_run_that_uses_the_folder_is_left_alone(tmp_path, state):
    """The process that runs it lives: refused, and nothing is touched."""
    folder = run_of(tmp_path / "out", state=state)
    remember_job(folder, "local", [str(os.getpid())])
    with pytest.raises(InputError, match=r"a run uses this folder now .*scepsy stop"):
        find_rubbish(folder.root)


def test_a_run_that_was_killed_may_be_cleaned(tmp_path):
    """Its process is gone without a word: what it left can go, and it can be resumed."""
    folder = run_of(tmp_path / "out", state="running", pid=2**22 + 1)
    assert len(find_rubbish(folder.root)) == 5


@pytest.mark.parametrize(
    ("squeue", "state", "said"),
    [
        ({"71": "RUNNING"}, "running", "a run uses this folder now"),
        # Cut short, and queued anew: its pickles are still needed.
        ({"71": "PENDING"}, "interrupted", "a run uses this folder now"),
        (None, "interrupted", "nobody here can tell"),
        ({"71": "TIMEOUT"}, "interrupted", None),
        (None, "ended", None),
    ],
)
def test_the_queue_is_asked(tmp_path, monkeypatch, squeue, state, said):
    """A job in the queue may use the folder again; where nobody knows, only an end counts."""
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    tools = fake_slurm.install(slurm)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    if squeue is None:
        (tools / "squeue").write_text("#!/bin/sh\nexit 1\n")
    else:
        (slurm / "states").write_text(str(squeue).replace("'", '"'))
    folder = run_of(tmp_path / "out", state=state, cluster="slurm", ids=("71",))
    if said is None:
        assert find_rubbish(folder.root)
    else:
        with pytest.raises(InputError, match=said):
            find_rubbish(folder.root)


def test_other_folders_are_refused(tmp_path):
    """A folder that is none of a run is never cleaned."""
    (tmp_path / "private" / "attempts" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no status\.json"):
        find_rubbish(tmp_path)


def test_what_cannot_be_removed_is_named(tmp_path):
    """The first thing that stays, with the system's reason."""
    folder = run_of(tmp_path / "out")
    found = find_rubbish(folder.root)
    (tmp_path / "file").touch()
    broken = type(found[0])(path=str(tmp_path / "file" / "below"), why="x", num_bytes=1)
    with pytest.raises(RunError, match=r"below: Not a directory; it stays"):
        remove([broken])


def test_staged_weights_are_found_but_not_those_being_copied(tmp_path):
    """Copies of this machine go; one that is made at this moment, by whomever, stays."""
    site = Site(scratch=str(tmp_path))
    assert find_staged(site) == []
    root = tmp_path / f"scepsy-{os.getuid()}" / "weights"
    place = stage(make_model(tmp_path / "m"), root)
    other = stage(make_model(tmp_path / "n"), root)
    with (root / f".{other.name}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = find_staged(site)
        assert str(place) in {one.path for one in found}
        assert str(other) not in {one.path for one in found}
        remove(found)
    assert not place.exists()
    assert other.exists()
    remove(find_staged(site))
    assert list(root.iterdir()) == []


def test_links_are_not_followed(tmp_path):
    """A link in the rubbish neither counts nor costs what it leads to."""
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "big")
    assert bytes_on_disk(tmp_path / "here") < 50_000
    folder = run_of(tmp_path / "out")
    (folder.jobs / "link").symlink_to(tmp_path / "here")
    remove(find_rubbish(folder.root))
    assert (tmp_path / "here" / "link").is_symlink()
