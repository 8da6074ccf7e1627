"""A colleague in the same group, in a project folder that both write to (umask 002, setgid).

Needs root, to be two other users in turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.slurm import account

REPOSITORY = Path(__file__).parent.parent.parent
GROUP = 54320

_SUBMIT = """
    import os, sys, time
    from pathlib import Path
    os.umask(0o002)
    from scepsy_hpc.serving.run_folder import RunFolder
    from scepsy_hpc.cluster.jobs.processes import local_jobs
    from scepsy_hpc.cluster.jobs.submit import submission_folder
    from scepsy_hpc.cluster.jobs.tasks import Resources
    import submitit
    folder = RunFolder(Path(sys.argv[1]))
    folder.create()
    own = submission_folder(folder.jobs, "scepsy-run")
    delayed = submitit.core.utils.DelayedSubmission(max, 1, 2)
    delayed.dump(own / "7_submitted.pkl")
    print(own)
"""
_PLANT = """
    import os, pickle, shutil, sys
    from pathlib import Path
    root, own = Path(sys.argv[1]), Path(sys.argv[2])
    class Trap:
        def __reduce__(self):
            return os.system, (f"id -un > {root.parent}/trapped; chmod 666 {root.parent}/trapped",)
    os.umask(0)
    root.rename(root.with_name("moved"))
    own.mkdir(parents=True)
    for name in ("7_submitted.pkl", "7_0_result.pkl"):
        (own / name).write_bytes(pickle.dumps(Trap()))
    for folder in (root, own, own.parent, own.parent.parent):
        os.chmod(folder, int(sys.argv[3], 8))
"""
_READ = """
    import sys
    from pathlib import Path
    from scepsy_hpc.cluster.jobs.tasks import read_result
    from scepsy_hpc.cli.main import run_line
    print(read_result(Path(sys.argv[1]) / "7_0_result.pkl"))
"""
_PREPARE = """
    import sys
    from pathlib import Path
    from scepsy_hpc.serving.run_folder import RunFolder
    RunFolder(Path(sys.argv[1])).create()
"""


class Users:
    """The user and the colleague, who share a group and a project folder."""

    def __init__(self, folder: Path) -> None:
        self.user = account.ensure_user("scepsy-test")
        self.colleague = account.ensure_user("scepsy-colleague")
        self.project = folder / "project"
        self.project.mkdir()
        os.chown(self.project, 0, GROUP)
        self.project.chmod(0o2775)
        for one in (self.user, self.colleague):
            account.let_pass(one, [self.project, REPOSITORY, Path(sys.executable)])

    def run(self, who: str, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command as one of the two, who are both in the group."""
        one = self.user if who == "user" else self.colleague
        return subprocess.run(
            command,
            user=one.pw_uid,
            group=one.pw_gid,
            extra_groups=[GROUP],
            umask=0o002,
            cwd=self.project,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": "/", **more},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def script(self, who: str, text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A Python script as one of the two."""
        words = [str(argument) for argument in arguments]
        return self.run(who, sys.executable, "-P", "-c", textwrap.dedent(text), *words)


@pytest.fixture
def users(tmp_path_factory: pytest.TempPathFactory) -> Users:
    """Two users and their project folder."""
    return Users(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("mode", ["0700", "0777"])
def test_a_swapped_pickle_runs_nothing(users: Users, mode: str) -> None:
    """The colleague moves the results away and plants pickles: they are refused where read.

    The project folder is the group's, so nothing forbids the swap; without it the same task runs.
    """
    root = users.project / "results"
    done = users.script("user", _SUBMIT, root)
    assert done.returncode == 0, done.stderr
    own = Path(done.stdout.split()[-1])
    for folder in (root, root / "private", own):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == users.user.pw_uid
    entry = [sys.executable, "-P", "-u", "-m", "scepsy_hpc.cluster.jobs.entry", str(own)]
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7"}
    local |= {"SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALRANK": "0"}
    local |= {"SUBMITIT_LOCAL_LOCALID": "0", "SUBMITIT_LOCAL_NODEID": "0"}
    local |= {"SUBMITIT_LOCAL_JOB_NUM_NODES": "1"}
    ran = users.run("user", *entry, **local)
    assert ran.returncode == 0, ran.stderr
    planted = users.script("colleague", _PLANT, root, own, mode)
    assert planted.returncode == 0, planted.stderr
    refused = users.run("user", *entry, **local)
    assert refused.returncode == 2
    assert refused.stderr.startswith("scepsy: refused: ") or mode == "0700"
    read = users.script("user", _READ, own)
    assert read.returncode != 0
    assert not (users.project / "trapped").exists()
    if mode == "0777":  # the trap is a real one: submitit's own entry runs it
        users.run("user", sys.executable, "-m", "submitit.core._submit", str(own), **local)
        assert (users.project / "trapped").read_text() == "scepsy-test\n"


def test_another_s_results_folder_is_refused_before_anything(users: Users) -> None:
    """A folder that the colleague made, or a link, is not written to."""
    root = users.project / "results"
    assert users.run("colleague", "mkdir", "-m", "0777", str(root)).returncode == 0
    done = users.script("user", _PREPARE, root)
    assert "belongs to user scepsy-colleague" in done.stderr
    assert not list(root.iterdir())
    link = users.project / "link"
    users.run("colleague", "ln", "-s", str(root), str(link))
    done = users.script("user", _PREPARE, link)
    assert "is a link that user scepsy-colleague made" in done.stderr


def test_modules_in_the_working_directory_are_not_imported(users: Users) -> None:
    """A `submitit.py` of the colleague's in the folder where the job was submitted stays unread."""
    trap = users.project / "submitit.py"
    text = f"open({str(users.project / 'trapped')!r}, 'w').write('x')\n"
    users.run("colleague", "sh", "-c", f'printf %s "$TEXT" > {trap}', TEXT=text)
    assert trap.exists()
    done = users.script("user", _SUBMIT, users.project / "results")
    own = done.stdout.split()[-1]
    users.run("user", sys.executable, "-P", "-u", "-m", "scepsy_hpc.cluster.jobs.entry", own)
    assert not (users.project / "trapped").exists()
