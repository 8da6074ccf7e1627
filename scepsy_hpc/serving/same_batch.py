"""Whether a results folder goes on with the batch that it began: same tasks, plan and agents."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from scepsy_hpc import __version__
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import record, sha256_file, to_plain
from scepsy_hpc.formats.plan import Plan, load_plan
from scepsy_hpc.formats.tasks import Task, load_tasks
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json

MAX_AGENT_FILES = 500
"""Where an agent's folder holds more modules only those of its own name are compared."""
_NOT_ITS_OWN = frozenset(("__pycache__", "node_modules", "site-packages"))
# What runs; the other parts of a plan say what was expected of it.
_RUNS = ("workflows", "llms", "instances", "allocation", "routing")


@record
class Origin:
    """``origin.json``: the version that began a batch; agents' files by workflow, as SHA-256."""

    version: str = __version__
    agents: dict[str, dict[str, str]] = field(default_factory=dict)


def save_origin(folder: RunFolder, plan: Plan) -> None:
    """Note what the agents are now."""
    write_json(folder.origin, asdict(_origin_of(plan)))


def check_same_batch(folder: RunFolder, plan: Plan, tasks_path: Path, flag: str) -> None:
    """Raise InputError that says what differs from the batch that the folder holds.

    ``flag`` is what a user gives to go on all the same.
    """
    found = [
        *_other_tasks(folder, plan, tasks_path),
        *_other_plan(folder, plan),
        *_other_agents(folder, plan),
    ]
    if found:
        raise InputError(
            f"{folder.root}: holds another batch: {'; '.join(found)}. Add {flag} to go on "
            "with what differs (what is recorded stays), or give another folder with -o"
        )


def told_of_version(folder: RunFolder, error: InputError) -> InputError:
    """The same error of a file of the batch, with the version that began it if that is another."""
    origin = _origin(folder)
    if origin is None or origin.version == __version__:
        return error
    return InputError(
        f"{error}; the batch was begun by scepsy {origin.version}, this is {__version__}: go on "
        "with that version, or make the plan anew"
    )


def _origin(folder: RunFolder) -> Origin | None:
    try:
        return read_json(folder.origin, Origin)
    except InputError:
        return None  # of a version that says more; its plan and tasks are compared all the same


def _other_tasks(folder: RunFolder, plan: Plan, path: Path) -> Iterator[str]:
    if not folder.tasks.exists() or folder.tasks.read_bytes() == path.read_bytes():
        return
    names = tuple(workflow.name for workflow in plan.workflows)
    given = {task.task_id: task for task in load_tasks(path, names)}
    try:
        begun = {task.task_id: task for task in load_tasks(folder.tasks, names)}
    except InputError as error:
        yield f"its tasks are not for this plan ({error})"
        return
    numbers = {task_id: number for number, task_id in enumerate(given, start=1)}
    changed = [f"{t} (task {numbers[t]})" for t in given if _is_other(begun.get(t), given[t])]
    new = [f"{t} (task {numbers[t]})" for t in given if t not in begun]
    gone = [t for t in begun if t not in given]
    parts = {"changed": changed, "new": new, "gone": gone}
    said = [f"{len(names)} {what}: {_some(names)}" for what, names in parts.items() if names]
    if said:
        yield f"of the tasks in {path} {', '.join(said)}"


def _is_other(begun: Task | None, given: Task) -> bool:
    return begun is not None and json.dumps(begun.data) != json.dumps(given.data)


def _other_plan(folder: RunFolder, plan: Plan) -> Iterator[str]:
    if not folder.plan.exists():
        return
    try:
        begun = load_plan(folder.plan)
    except InputError as error:
        yield f"its plan cannot be read ({told_of_version(folder, error)})"
        return
    was, now = ({k: to_plain(getattr(p, k)) for k in _RUNS} for p in (begun, plan))
    differing = list(_differing(was, now, ""))
    if differing:
        yield f"the plan differs in {_some(differing)}"


def _differing(was: Any, now: Any, path: str) -> Iterator[str]:
    """Keys at which two plain values differ, with both values where these are short."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in {**was, **now}:
            where = f"{path}.{key}" if path else str(key)
            yield from _differing(was.get(key), now.get(key), where)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _differing(one, other, f"{path}[{number}]")
    elif was != now:
        before, after = json.dumps(was), json.dumps(now)
        short = len(before) + len(after) < 100
        yield f"{path} (was {before}, is {after})" if short else path


def _other_agents(folder: RunFolder, plan: Plan) -> Iterator[str]:
    begun = _origin(folder)
    if begun is None:
        return
    now = _origin_of(plan).agents
    for workflow, files in now.items():
        was = begun.agents.get(workflow)
        if was is None:
            continue
        names = [name for name in {**was, **files} if was.get(name) != files.get(name)]
        if names:
            yield f"the agent of {workflow} has other files: {_some(sorted(names))}"


def _origin_of(plan: Plan) -> Origin:
    agents = {w.name: _digests(w.agent) for w in plan.workflows if w.agent is not None}
    return Origin(agents=agents)


def _digests(agent: Agent) -> dict[str, str]:
    """SHA-256 of an agent's own files, by path below its folder."""
    folder = Path(agent.folder or ".")
    files = _named_files(agent, folder) if agent.command else _modules(agent, folder)
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(files)}


def _named_files(agent: Agent, folder: Path) -> list[Path]:
    """Files below the folder that a command names."""
    parts = [folder / part for part in agent.command or () if not Path(part).is_absolute()]
    return [path for path in parts if path.is_file()]


def _modules(agent: Agent, folder: Path) -> list[Path]:
    found = []
    for path in _python_files(folder):
        found.append(path)
        if len(found) > MAX_AGENT_FILES:
            break
    else:
        return found
    name = (agent.python or "").partition(":")[0].partition(".")[0]
    alone = folder / f"{name}.py"
    return [alone] if alone.is_file() else list(_python_files(folder / name))


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NOT_ITS_OWN
            and not Path(parent, name, "pyvenv.cfg").exists()
        )
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
