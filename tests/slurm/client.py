"""Using a mini cluster as the unprivileged user, and looking at it as root."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import account

FINAL_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE"}
    | {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
)


class MiniSlurmError(RuntimeError):
    """The cluster did not start, or a job did not get where the test wanted it."""


@dataclass
class SlurmClient:
    """The cluster whose files are in ``directory``."""

    directory: Path

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def home(self) -> Path:
        """Home of the user who runs jobs; private to it."""
        return self.directory / "home"

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for a command of the user: nothing inherited, so no foreign ``SLURM_*``."""
        path = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
        mine = {
            "SLURM_CONF": str(self.conf),
            "PATH": os.pathsep.join(path),
            "HOME": str(self.home),
            "USER": account.USER_NAME,
            "LOGNAME": account.USER_NAME,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
        }
        return mine | dict(extra or {})

    def popen_as_user(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Popen as the unprivileged user, in its home unless told; ``env`` adds to ``env()``."""
        owner = account.ensure_user()
        child: subprocess.Popen[str] = subprocess.Popen(
            list(command),
            user=owner.pw_uid,
            group=owner.pw_gid,
            extra_groups=[],
            cwd=cwd or self.home,
            env=self.env(env),
            text=True,
            **options,
        )
        return child

    def run_as_user(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        timeout_s: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``command`` to its end; where it fails and ``check``, MiniSlurmError says why."""
        pipe = subprocess.PIPE
        with self.popen_as_user(
            command, cwd, env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        ) as child:
            try:
                out, err = child.communicate(timeout=timeout_s)
            except BaseException:
                child.kill()
                raise
        if check and child.returncode != 0:
            raise MiniSlurmError(f"{list(command)} ended with {child.returncode}: {out}{err}")
        return subprocess.CompletedProcess(list(command), child.returncode, out, err)

    def job_dir(self, name: str) -> Path:
        """A fresh directory ``name`` of the user, private to it, to submit from and write to."""
        owner = account.ensure_user()
        directory = self.home / name
        directory.mkdir(mode=0o700)
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        return directory

    def sbatch(self, script: str, cwd: Path, *options: str) -> str:
        """Submits ``script`` (text) from ``cwd`` as the user; returns the job id."""
        file = cwd / f"job-{secrets.token_hex(4)}.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)
        answer = self.run_as_user(["sbatch", "--parsable", *options, str(file)], cwd=cwd).stdout
        return answer.strip().split(";")[0]

    def nodes(self) -> dict[str, str]:
        """State of each node as sinfo words it, without the marks behind it (``down*``)."""
        lines = self._slurm("sinfo", "-h", "-N", "-o", "%N|%T").splitlines()
        return {
            name: re.sub(r"\W", "", state) for name, state in (line.split("|") for line in lines)
        }

    def jobs(self, job_id: str | None = None) -> dict[str, str]:
        """State of each job that slurmctld remembers; array tasks one by one, as ``12_0``."""
        selection = ["-j", job_id] if job_id else []
        lines = self._slurm("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", *selection)
        return dict(line.split("|") for line in lines.splitlines())

    def wait_for_job(self, job_id: str, timeout_s: float = 60.0) -> dict[str, str]:
        """Waits until the job (of an array every task) has ended; state of each."""
        self.wait_for_state(job_id, FINAL_STATES, timeout_s)
        return self.jobs(job_id)

    def wait_for_state(
        self, job_id: str, states: frozenset[str] | set[str], timeout_s: float = 60.0
    ) -> None:
        """Waits until the job (of an array every task) is in one of ``states``."""
        wanted = f"job {job_id} to be {' or '.join(sorted(states))}"
        self.wait_until(lambda: set(self.jobs(job_id).values()) <= states, timeout_s, wanted)

    def _slurm(self, *command: str) -> str:
        """Output of a Slurm command run as root, which may see and cancel every job."""
        done = subprocess.run(
            command, env=self.env({"USER": "root"}), capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise MiniSlurmError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout

    def wait_until(self, holds: Callable[[], bool], timeout_s: float, wanted: str) -> None:
        """Asks every half second at first, then every second and a half."""
        began = time.monotonic()
        while True:
            try:
                if holds():
                    return
                seen = ""
            except MiniSlurmError as error:  # slurmctld answers only once it is up
                seen = f" ({error})"
            waited_s = time.monotonic() - began
            if waited_s > timeout_s:
                raise MiniSlurmError(self.describe(f"waited {timeout_s:.0f} s for {wanted}{seen}"))
            time.sleep(0.5 if waited_s < 15 else 1.5)

    def describe(self, problem: str = "") -> str:
        """The problem, the last lines of the daemons' logs, and what nodes and jobs do."""
        parts = [problem]
        for command in (["sinfo", "-N", "-l"], ["squeue", "-t", "all"]):
            done = subprocess.run(command, env=self.env(), capture_output=True, text=True)
            parts.append(done.stdout.strip())
        for log in sorted(self.directory.glob("log/*")):
            tail = log.read_text(errors="replace").splitlines()[-8:]
            parts.append("\n".join([f"--- {log.name}", *tail]))
        return "\n".join(parts)
