"""Faults on this machine. Each takes the stage, injects one fault and returns what it did."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import traces
from stage import Hung, Stage

READY_S = 90.0
CONTROLLER = "submitit.local._local"
Fault = Callable[[Stage], str]


def kill_worker(stage: Stage) -> str:
    """SIGKILL to an agent at work, as when memory runs out."""
    return _kill(stage, stage.workers, "worker")


def kill_nursery(stage: Stage) -> str:
    """SIGKILL to the process that forks agents, and to some of them, so that others are needed."""
    killed = _kill(stage, lambda: _some(stage.nursery()), "nursery")
    workers = stage.workers()
    chosen = stage.rng.sample(workers, min(len(workers), stage.rng.randint(1, 3)))
    traces.signal_all(chosen, signal.SIGKILL)
    return f"{killed} and {len(chosen)} workers"


def kill_engine(stage: Stage) -> str:
    """SIGKILL to an engine, its guard, or both."""
    leader = choose(stage, stage.engines, "engine")
    members = [leader, *_children(leader)]
    chosen = stage.rng.choice([members, members[:1], members[1:] or members])
    traces.signal_all(chosen, signal.SIGKILL)
    return f"SIGKILL to {len(chosen)} of {len(members)} processes of engine {leader.pid}"


def kill_lead(stage: Stage) -> str:
    """SIGKILL to the process that leads the batch."""
    return _kill(stage, lambda: _some(stage.lead()), "lead")


def kill_command(stage: Stage) -> str:
    """SIGKILL to the command that the user gave; then to what it started, outermost first."""
    command = stage.commands[-1]
    if command.poll() is None:
        command.kill()
        command.wait()
        return f"SIGKILL to the command {command.pid}"
    between = [p for p in traces.marked(stage.mark) if CONTROLLER in traces.words_of(p)]
    if between:
        traces.signal_all(between, signal.SIGKILL)
        return f"SIGKILL to the controller {between[0].pid}"
    return kill_lead(stage)


def freeze_engine(stage: Stage) -> str:
    """SIGSTOP to an engine for good."""
    leader = choose(stage, stage.engines, "engine")
    members = [leader, *_children(leader)]
    chosen = stage.rng.choice([members, members[1:] or members])
    traces.signal_all(chosen, signal.SIGSTOP)
    return f"SIGSTOP to {len(chosen)} of {len(members)} processes of engine {leader.pid}"


def freeze_engine_a_while(stage: Stage) -> str:
    """SIGSTOP to an engine for one to eight seconds: no reason to restart it."""
    leader = choose(stage, stage.engines, "engine")
    return _freeze_a_while(stage, [leader, *_children(leader)], 8.0, "engine")


def freeze_lead_a_while(stage: Stage) -> str:
    """SIGSTOP to the lead for one to ten seconds."""
    lead = choose(stage, lambda: _some(stage.lead()), "lead")
    return _freeze_a_while(stage, [lead], 10.0, "lead")


def odd_result(stage: Stage) -> str:
    """Stands in the tasks already."""
    return "odd results of tasks of this phase"


def full_disk(stage: Stage) -> str:
    """No byte is left in the results' file system for two to six seconds."""
    ballast, long_s = stage.case.out.parent / "ballast", stage.rng.uniform(2.0, 6.0)
    with ballast.open("wb", buffering=0) as stream:
        block = b"\0" * 65_536
        while block:
            try:
                stream.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]
    _between(stage, long_s)
    ballast.unlink()
    return f"disk full for {long_s:.1f} s"


def read_only_disk(stage: Stage) -> str:
    """Every write below the results folder answers EROFS for two to six seconds."""
    flag, long_s = stage.case.folder / "shim" / "EROFS", stage.rng.uniform(2.0, 6.0)
    flag.touch()
    _between(stage, long_s)
    flag.unlink()
    return f"disk read-only for {long_s:.1f} s"


def no_locks(stage: Stage) -> str:
    """A start where every lock answers ENOLCK (the shim is on): lead killed, or a second writer."""
    (stage.case.folder / "shim" / "ENOLCK").touch()
    return stage.rng.choice([kill_lead, two_writers])(stage) + " without locks"


def two_writers(stage: Stage) -> str:
    """The lead hangs, its job is forgotten, another host resumes; then the first one wakes up."""
    lead = choose(stage, lambda: _some(stage.lead()), "lead")
    first = str(stage.status().get("attempt"))
    traces.signal_all([lead], signal.SIGSTOP)
    for name in ("private/job.json", "status.json"):
        (stage.case.out / name).unlink(missing_ok=True)
    try:
        # Later resumes come from there, too: elsewhere nobody knows for 90 s that a run has died.
        stage.on_host = () if stage.on_host else _another_host()
        second = stage.start()
        _until(lambda: second.poll() is not None or _leads(stage, first), "the second writer")
    finally:
        traces.signal_all([lead], signal.SIGCONT)
    return f"a second writer beside {first} ({stage.status().get('attempt')})"


def orphan(stage: Stage) -> str:
    """Stands in the tasks already: an agent leaves a process in a session of its own."""
    return "agents of this phase leave processes"


def _another_host() -> tuple[str, ...]:
    """Another name of this machine; only root can give it one."""
    if os.geteuid() != 0:
        return ()
    return ("unshare", "--uts", "sh", "-c", 'hostname localhost; exec "$@"', "sh")


def _leads(stage: Stage, first: str) -> bool:
    status = stage.status()
    return status.get("attempt") not in (None, first) and status.get("state") == "running"


def _kill(stage: Stage, find: Callable[[], list[psutil.Process]], what: str) -> str:
    process = choose(stage, find, what)
    traces.signal_all([process], signal.SIGKILL)
    return f"SIGKILL to {what} {process.pid}"


def _freeze_a_while(stage: Stage, processes: list[psutil.Process], most_s: float, what: str) -> str:
    long_s = stage.rng.uniform(1.0, most_s)
    traces.signal_all(processes, signal.SIGSTOP)
    _between(stage, long_s)
    traces.signal_all(processes, signal.SIGCONT)
    return f"SIGSTOP to {what} {processes[0].pid} for {long_s:.1f} s"


def choose(stage: Stage, find: Callable[[], list[psutil.Process]], what: str) -> psutil.Process:
    """One of what is found; waits while the batch comes up."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = find() if stage.is_running() else []
        return bool(found)

    stage.until(is_there, f"a live {what}", stage.bound_s)
    return stage.rng.choice(found)


def _between(stage: Stage, long_s: float) -> None:
    """Let the fault last; whoever gives up meanwhile is not resumed before it is over."""
    time.sleep(long_s)
    stage.running()


def _until(holds: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() > until_s:
            raise Hung(f"waited {READY_S:g} s for {what}")
        time.sleep(0.2)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _some(process: psutil.Process | None) -> list[psutil.Process]:
    return [] if process is None else [process]


LOCAL: dict[str, Fault] = {
    one.__name__: one
    for one in (
        *(kill_worker, kill_nursery, kill_engine, kill_lead, kill_command),
        *(freeze_engine, freeze_engine_a_while, freeze_lead_a_while),
        *(odd_result, orphan, full_disk, read_only_disk, no_locks, two_writers),
    )
}
NEEDS_SHIM = frozenset({"read_only_disk", "no_locks"})
NEEDS_MOUNT = frozenset({"full_disk"})


def mount_disk(folder: Path) -> None:
    """A small file system of its own; it goes with the drill's mount namespace."""
    line = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(folder)]
    subprocess.run(line, check=True)


def build_shim(folder: Path) -> Path:
    """Compile what answers in place of a bad file system."""
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    line = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(line, check=True)
    return library
