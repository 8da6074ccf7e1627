"""One run of the drill: a batch, its faults, resumes until it is complete, the verdict."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import traces
from batch_case import ODDITIES, Case, make_case
from checker import check
from local_faults import NEEDS_MOUNT, NEEDS_SHIM, Fault, mount_disk
from stage import Hung, Stage

END_BOUND_S = 400.0
SETTLE_S = 20.0
# Of a phase so many tasks may still be on their way (tried again, say) when its fault comes.
STRAGGLERS = 6


@dataclass
class Verdict:
    """What one run came to. ``problems`` names each case, ``log`` says what happened when."""

    kind: str
    seed: str
    tasks: int
    faults: int = 0
    lost: int = 0
    twice: int = 0
    blamed: int = 0
    wrong: int = 0
    hung: int = 0
    left_behind: int = 0
    starts: int = 0
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong at all."""
        return not self.problems

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def oddities(names: Sequence[str], num_tasks: int, rng: random.Random) -> dict[int, str]:
    """Which tasks are strange: one for each fault that stands in the tasks, within its phase."""
    found: dict[int, str] = {}
    size = num_tasks // (len(names) + 1)
    for phase, name in enumerate(names):
        if name in ("odd_result", "orphan"):
            number = phase * size + rng.randrange(1, max(size - 1, 2))
            odd = "orphan" if name == "orphan" else ODDITIES[phase % len(ODDITIES)]
            found[number] = odd
    return found


def play(
    kind: str,
    names: Sequence[str],
    faults: Mapping[str, Fault],
    stage: Stage,
    verdict: Verdict,
) -> Verdict:
    """Inject the faults one after the other and judge. The stage is empty afterwards."""
    before = traces.shared_memory()
    try:
        stage.start()
        for phase, name in enumerate(names):
            _reach(stage, phase)
            early = stage.rng.random() < 0.5
            if early:  # the fault meets tasks on their way, not at the gate
                stage.case.open_gate(phase)
                time.sleep(stage.rng.uniform(0.0, 0.5))
            verdict.faults += 1
            stage.say(f"fault {phase}: {name}: {faults[name](stage)}")
            stage.case.open_gate(phase)
        stage.case.open_all()
        stage.until(lambda: stage.is_complete() and not stage.running(), "the end", END_BOUND_S)
    except Hung as error:
        verdict.hung += 1
        stage.say(f"state {stage.status().get('state')}, alerts {stage.status().get('alerts')}")
        verdict.problems.append(f"hung: {error}")
        stage.say(f"hung: {error}")
    _judge(stage, verdict, before)
    return verdict


def _reach(stage: Stage, phase: int) -> None:
    """Wait until the tasks of all earlier phases have ended, so that this one's are in flight."""
    stage.until(stage.is_running, "the batch to run", stage.bound_s)
    wanted = stage.case.ends_of_phase[phase - 1] - STRAGGLERS if phase else 0
    stage.until(lambda: stage.num_ended() >= wanted, f"{wanted} ended tasks", stage.bound_s)


def _judge(stage: Stage, verdict: Verdict, before: set[str]) -> None:
    if not verdict.hung:
        left = traces.left_behind(stage.mark, stage.case.folder / "tmp", before, SETTLE_S)
        verdict.left_behind = len(left)
        verdict.problems += [f"left behind: {one}" for one in left]
    stage.running()
    stage.stop_all()
    tally = check(stage.case.tasks, stage.case.out / "results.jsonl", stage.case.witness)
    if verdict.hung:  # what it has not recorded or shown yet is not lost
        tally.problems = [p for p in tally.problems if not p.startswith(("lost", "wrong"))]
        tally.lost = tally.wrong = 0
    for column in ("lost", "twice", "blamed", "wrong"):
        setattr(verdict, column, getattr(tally, column))
    verdict.problems += tally.problems[:40]
    verdict.starts, verdict.took_s = len(stage.commands), time.monotonic() - stage.began_s
    verdict.log = stage.log


def local_run(
    kind: str,
    names: Sequence[str],
    faults: Mapping[str, Fault],
    seed: str,
    folder: Path,
    shim: Path | None,
    num_tasks: int,
) -> Verdict:
    """A run on this machine, in a folder of its own that stays where something was wrong."""
    rng = random.Random(seed)
    replicas = 3 if any("engine" in name for name in names) else 2
    odd = oddities(names, num_tasks, rng)
    case = make_case(folder, rng, num_tasks, len(names) + 1, replicas=replicas, odd=odd)
    stage = Stage(case, rng)
    if NEEDS_MOUNT & set(names):
        mount_disk(case.out.parent)
    if NEEDS_SHIM & set(names):
        assert shim is not None
        stage.environment = shim_environment(case, shim)
    verdict = play(kind, names, faults, stage, Verdict(kind, seed, num_tasks))
    if not verdict.is_clean and NEEDS_MOUNT & set(names):
        shutil.copytree(case.out, folder / "kept", symlinks=True)  # the mount ends with the drill
    elif verdict.is_clean and not NEEDS_MOUNT & set(names):
        shutil.rmtree(folder)
    return verdict


def shim_environment(case: Case, shim: Path) -> dict[str, str]:
    """What makes every process of a run ask the shim before the disk."""
    return {
        "LD_PRELOAD": str(shim),
        "DRILL_SHIM": str(case.folder / "shim"),
        "DRILL_SHIM_ROOT": str(case.out),
    }
