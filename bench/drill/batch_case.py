"""The batch of one drill run: a plan on simulated engines, and tasks in phases between gates."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
MODELS = {"small": "Qwen/Qwen3-0.6B", "large": "Qwen/Qwen3-8B"}
TIME_SCALE = 0.02
ODDITIES = (
    *("lone_surrogate", "line_separator", "nul", "deep", "deeper", "nan", "huge_number"),
    *("large_result", "no_json", "huge_stdout"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """Files of one run. ``ends_of_phase``: how many tasks there are up to the end of each phase.

    Tasks of phase k go no further before the file ``gate(k)`` is there.
    """

    folder: Path
    ends_of_phase: tuple[int, ...]

    @property
    def plan(self) -> Path:
        """What is hosted."""
        return self.folder / "plan.yaml"

    @property
    def tasks(self) -> Path:
        """What is worked off."""
        return self.folder / "tasks.jsonl"

    @property
    def witness(self) -> Path:
        """What the agents say that they did."""
        return self.folder / "witness.jsonl"

    @property
    def out(self) -> Path:
        """The results folder, on a mount of its own where there is one."""
        return self.folder / "disk" / "out"

    def gate(self, phase: int) -> Path:
        """Its tasks wait for this file."""
        return self.folder / "gates" / str(phase)

    def open_gate(self, phase: int) -> None:
        """Let the tasks of a phase end."""
        self.gate(phase).touch()

    def open_all(self) -> None:
        """Let every task end."""
        for phase in range(len(self.ends_of_phase)):
            self.open_gate(phase)


def make_case(
    folder: Path,
    rng: random.Random,
    num_tasks: int,
    num_phases: int,
    nodes: tuple[str, str] = ("a", "b"),
    gpu_type: str = "h100_sxm",
    replicas: int = 2,
    odd: dict[int, str] | None = None,
) -> Case:
    """Write plan, agent and tasks. ``odd``: what is strange, by number of task.

    ``replicas`` of each of two LLMs, dealt to two logical nodes.
    """
    for name in ("gates", "disk", "tmp", "shim"):
        (folder / name).mkdir()
    ends = tuple(num_tasks * (k + 1) // num_phases for k in range(num_phases))
    case = Case(folder, ends)
    shutil.copy(HERE / "drill_agent.py", folder)
    lines = [_task(case, number, rng, (odd or {}).get(number)) for number in range(num_tasks)]
    case.tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    case.plan.write_text(yaml.safe_dump(_plan(folder, nodes, gpu_type, replicas)))
    return case


def _task(case: Case, number: int, rng: random.Random, odd: str | None) -> dict[str, Any]:
    phase = next(k for k, end in enumerate(case.ends_of_phase) if number < end)
    # Strange names are tasks like others.
    task_id = f"t{number:04}" + (" \u00e9\u2028x" if number % 50 == 7 else "")
    task: dict[str, Any] = {"task_id": task_id, "witness": str(case.witness)}
    if odd:
        return task | {"odd": odd}
    return task | {"gate": str(case.gate(phase)), "pause_s": round(rng.uniform(0.0, 0.1), 3)}


def _plan(folder: Path, nodes: tuple[str, str], gpu_type: str, replicas: int) -> dict[str, Any]:
    llms = {name: _deployment(name, gpu_type, replicas) for name in MODELS}
    instances = []
    for model in MODELS:
        for number in range(replicas):
            node = nodes[number % len(nodes)]
            gpu = sum(one["node"] == node for one in instances)
            one = {"id": f"{model}{number}", "llm": model, "node": node, "gpus": [gpu]}
            instances.append(one | {"gpu_share_pct": 100})
    workflow = {
        "name": "drill",
        "llms": {name: name for name in MODELS},
        "max_runs_in_flight": 12,
        "agent": {"python": "drill_agent:run", "folder": str(folder)},
    }
    return {
        "schema": "scepsy/plan/v1",
        "workflows": [workflow],
        "llms": llms,
        "instances": instances,
    }


def _deployment(name: str, gpu_type: str, replicas: int) -> dict[str, Any]:
    bundle = f"h100_sxm/{MODELS[name].replace('/', '__')}/vllm-0.24.0/token-grid"
    return {
        "model": MODELS[name],
        "engine": "simulated",
        "gpu_type": gpu_type,
        "tp_degree": 1,
        "gpu_share_pct": 100,
        "num_replicas": replicas,
        "engine_args": {"timing_bundle": bundle, "time_scale": TIME_SCALE},
    }
