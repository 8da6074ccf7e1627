"""The whole ``scepsy plan`` command, from a cold start to the written plan, on made-up workflows.

Each run calls every LLM in turn, twice; the models are those with shipped H100 profiles of vLLM,
taken in turn. Spans are 2,000 calls whatever the number of LLMs.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from scepsy_hpc.files import shipped_path

PROFILES = shipped_path("profiles") / "h100_sxm"
MODELS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "meta-llama/Meta-Llama-3.1-8B",
    "Qwen/Qwen3-32B",
)
NUM_CALLS = 2000


@dataclass(frozen=True)
class Command:
    """One size of the command: LLMs, nodes of 8 GPUs, runs per second."""

    num_llms: int
    num_nodes: int
    rate_rps: float

    @property
    def name(self) -> str:
        """For the table."""
        return f"scepsy plan: {self.num_llms} LLMs, {8 * self.num_nodes} GPUs"


COMMANDS = (Command(5, 2, 1.0), Command(20, 32, 20.0))


def spans_of(num_llms: int) -> Iterator[str]:
    """Lines of spans.jsonl."""
    rng = random.Random(num_llms)
    per_run = 2 * num_llms
    for run in range(NUM_CALLS // per_run):
        clock_s = 0.0
        for number in range(per_run):
            length_s = rng.uniform(0.5, 4.0)
            span = {
                "run_id": f"r{run}",
                "span_id": f"s{number}",
                "kind": "llm",
                "llm": f"llm{number % num_llms}",
                "start_s": clock_s,
                "end_s": clock_s + length_s,
                "status": "ok",
                "input_tokens": rng.randint(200, 2000),
                "output_tokens": rng.randint(10, 400),
            }
            clock_s += length_s + 0.05
            yield json.dumps(span)


def write_inputs(folder: Path, num_llms: int, num_nodes: int) -> list[str]:
    """Workflow, spans and topology in ``folder``; the command's options that name them."""
    workflow = {
        "schema": "scepsy/workflow/v1",
        "name": "made_up",
        "llms": {f"llm{i}": {"model": MODELS[i % len(MODELS)]} for i in range(num_llms)},
    }
    nodes = [
        {
            "name": f"node{i:03}",
            "gpu_type": "h100_sxm",
            "gpu_memory_gib": 80,
            "nvlink_domains": [list(range(8))],
        }
        for i in range(num_nodes)
    ]
    topology = {"schema": "scepsy/topology/v1", "nodes": nodes}
    for name, content in (("workflow", workflow), ("topology", topology)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "spans.jsonl").write_text("\n".join(spans_of(num_llms)) + "\n", encoding="utf-8")
    files = {"workflow": "workflow.yaml", "spans": "spans.jsonl", "topology": "topology.yaml"}
    named = [f"--{option}={folder / file}" for option, file in files.items()]
    return [*named, f"--profiles={PROFILES}"]


def timed_command(command: Command) -> float:
    """Seconds of the command, the better of two runs. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = write_inputs(folder, command.num_llms, command.num_nodes)
        options += [f"--rate={command.rate_rps:g}", "-o", str(folder / "plan.yaml"), "--json"]
        took_s = []
        for _ in range(2):
            start = time.perf_counter()
            line = [sys.executable, "-m", "scepsy_hpc", "plan", *options]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            took_s.append(time.perf_counter() - start)
    return min(took_s)
