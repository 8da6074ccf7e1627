"""Stand-ins for sbatch, squeue, srun and scancel: a Slurm that is one folder and told what to do.

``sbatch`` records the script and its environment; it runs each array member at once, as the
node would, unless the test told it to lose or to hold some. ``squeue`` tells what ``states`` says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

TOOLS = ("sbatch", "squeue", "srun", "scancel")


def install(folder: Path) -> Path:
    """Executables in ``folder/bin``, to be put first on PATH; ``folder`` keeps what they saw."""
    tools = folder / "bin"
    tools.mkdir()
    for tool in TOOLS:
        path = tools / tool
        line = shlex.join([sys.executable, __file__, tool, str(folder)])
        path.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        path.chmod(0o755)
    return tools


def sbatch(folder: Path, arguments: list[str]) -> None:
    script = Path(arguments[-1]).read_text()
    (folder / "script").write_text(script)
    (folder / "environ").write_text(json.dumps(dict(os.environ)))
    refusal = folder / "refusal"
    if refusal.exists():
        sys.exit(refusal.read_text())
    array = re.search(r"--array=0-(\d+)", script)
    members = [f"71_{i}" for i in range(int(array[1]) + 1)] if array else ["71"]
    lost = (folder / "lost").read_text().split() if (folder / "lost").exists() else []
    states = {}
    for member in members:
        states[member] = "RUNNING"
        if member in lost:
            states[member] = "NODE_FAIL"
        else:
            start(folder, member, script)
    if (folder / "held").exists():
        states = json.loads((folder / "held").read_text())
    (folder / "states").write_text(json.dumps(states))
    print("Submitted batch job 71")


def start(folder: Path, member: str, script: str) -> None:
    """Run one member on its own, after sbatch has answered, as a node does."""
    identity = {"SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    if "_" in member:
        identity |= {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": member.split("_")[1]}
    with (folder / f"{member}.log").open("wb") as log:
        subprocess.Popen(
            ["/bin/bash", "-c", f"{script}\ntouch {shlex.quote(str(folder / member))}.ended"],
            env=os.environ | identity,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def squeue(folder: Path, arguments: list[str]) -> None:
    if (folder / "squeue_fails").exists():
        (folder / "squeue_fails").unlink()
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    for member, told in json.loads((folder / "states").read_text()).items():
        state = "COMPLETED" if (folder / f"{member}.ended").exists() else told
        print(f"{member}|{state}|{'Priority' if state == 'PENDING' else 'None'}")


def srun(folder: Path, arguments: list[str]) -> None:
    command = [a for a in arguments if not a.startswith("--")]
    streams = {}
    for option, name in (("--output", "stdout"), ("--error", "stderr")):
        if option in arguments:
            named = arguments[arguments.index(option) + 1]
            command.remove(named)
            streams[name] = open(_filled_in(named), "ab")  # noqa: SIM115
    (folder / "srun").write_text(shlex.join(arguments))
    (folder / "step_environ").write_text(json.dumps(dict(os.environ)))
    sys.exit(subprocess.call(command, **streams))


def _filled_in(path: str) -> str:
    """A path with Slurm's signs for job, array and task put in."""
    job, member = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "0")
    signs = {"%j": job, "%A": os.environ.get("SLURM_ARRAY_JOB_ID", job), "%a": member, "%t": "0"}
    for sign, value in signs.items():
        path = path.replace(sign, value)
    return path


def scancel(folder: Path, arguments: list[str]) -> None:
    (folder / "cancelled").write_text(" ".join(arguments))
    states = json.loads((folder / "states").read_text())
    (folder / "states").write_text(json.dumps(dict.fromkeys(states, "CANCELLED")))


if __name__ == "__main__":
    {"sbatch": sbatch, "squeue": squeue, "srun": srun, "scancel": scancel}[sys.argv[1]](
        Path(sys.argv[2]), sys.argv[3:]
    )
