"""``workflow.yaml``: an agent and the LLMs it calls by alias."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Count, Positive, read_yaml, record
from scepsy_hpc.formats.parallelism import SharePct

WORKFLOW_SCHEMA = "scepsy/workflow/v1"

EngineArg = str | int | float | bool | tuple[str, ...]


def _checked_args(args: dict[str, EngineArg]) -> dict[str, EngineArg]:
    """What plans are computed from must be what the engine would take."""
    for name, value in args.items():
        if name.strip("-").replace("-", "_") != "max_num_seqs":
            continue
        text = str(value).strip()
        if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, is {value!r}")
    return args


EngineArgs = Annotated[dict[str, EngineArg], AfterValidator(_checked_args)]


@record
class Llm:
    """One LLM of a workflow and the parallelism it may be given.

    ``engine``, ``engine_version`` and ``precision`` None: the newest version that was measured.
    """

    model: str
    tp_degrees: tuple[Count, ...] | None = None
    gpu_shares_pct: tuple[SharePct, ...] | None = None
    min_memory_gib: Positive | None = None
    engine_args: EngineArgs = field(default_factory=dict)
    engine: str | None = None
    engine_version: str | None = None
    precision: str | None = None


@record
class Agent:
    """How one task is run: a command (JSON on stdin and stdout) or a Python function.

    ``folder`` is the working directory and import path, set to the workflow's own folder.
    """

    command: tuple[str, ...] | None = None
    python: str | None = None
    folder: str | None = None


@record
class _WorkflowFile:
    name: str
    llms: dict[str, Llm]
    agent: Agent | None = None


@dataclass(frozen=True, slots=True)
class Workflow:
    """A checked workflow; ``agent`` is None where only planning is asked for."""

    name: str
    llms: dict[str, Llm]
    agent: Agent | None
    path: Path


def load_workflow(path: Path | str) -> Workflow:
    """Read and check ``workflow.yaml``. Raises InputError."""
    path = Path(path)
    raw = read_yaml(path, _WorkflowFile, WORKFLOW_SCHEMA)
    if not raw.llms:
        raise InputError(f"{path}: llms: is empty; a workflow calls at least one LLM")
    return Workflow(raw.name, raw.llms, _check_agent(raw.agent, path), path)


def _check_agent(agent: Agent | None, path: Path) -> Agent | None:
    if agent is None:
        return None
    if (agent.command is None) == (agent.python is None):
        raise InputError(
            f"{path}: agent: give one of `command: [...]` or `python: module:function`"
        )
    if agent.python is not None and agent.python.count(":") != 1:
        raise InputError(f"{path}: agent.python: must be `module:function`, is {agent.python!r}")
    folder = Path(agent.folder) if agent.folder else Path()
    return Agent(
        command=agent.command, python=agent.python, folder=str((path.parent / folder).resolve())
    )
