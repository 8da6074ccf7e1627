"""``demo``: the commands of a whole project, typed one after the other on embedded defaults."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from scepsy_hpc.cli.options import COUNT, FOLDER, say

TOPOLOGY = """\
schema: scepsy/topology/v1
note: four pretended GPUs; the demo's engines are simulated
nodes:
  - {name: node1, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1, 2, 3]]}
"""

SPEC = """\
schema: scepsy/profile-spec/v1
topology: topology.yaml
models:
  - model: Qwen/Qwen3-0.6B
    engine: simulated
    llm: reranker
    gpu_shares_pct: [50, 100]
    weights_gib: 1.2
    kv_bytes_per_token: 114688
    engine_args: {timing_bundle: h100_sxm/Qwen__Qwen3-0.6B/vllm-0.24.0/token-grid}
  - model: Qwen/Qwen3-8B
    engine: simulated
    llm: generator
    tp_degrees: [1, 2]
    gpu_shares_pct: [50, 100]
    weights_gib: 15.3
    kv_bytes_per_token: 147456
    engine_args: {timing_bundle: h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid}
workload: {name: rag_rerank, spans: spans.jsonl}
loads: {concurrency: [2, 4, 8, 20], requests_per_point: 12, warmup_requests: 2}
"""


@click.command()
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder for everything it makes.")
@click.option("--tasks", "num_tasks", type=COUNT, default=80, show_default=True, help="Batch size.")
def demo(output: Path, num_tasks: int) -> int:
    """Show the whole way on this machine: trace, profile, plan, run a batch, report.

    Local processes, simulated engines, a real agent (RAG with a reranker). Takes about a minute
    and a half. Whatever was in the folder from an earlier demo is replaced.
    """
    from scepsy_hpc.files import shipped_path, write_text

    workflow = shipped_path("workflows") / "rag_rerank"
    _clear(output)
    write_text(output / "topology.yaml", TOPOLOGY)
    write_text(output / "profile.yaml", SPEC)
    _write_tasks(workflow / "tasks.jsonl", output / "tasks.jsonl", num_tasks)
    say(
        "The engines of this demo are SIMULATED: no model is computed. Their timing follows the\n"
        "shipped profiles of Qwen3-0.6B and Qwen3-8B on H100 (vLLM 0.24.0), which are modelled,\n"
        "not measured. So agreement of prediction and run shows that the planner and the runtime\n"
        "are consistent with each other, not how accurate they are on real GPUs."
    )
    started_s = time.monotonic()
    for title, command in _steps(output, workflow):
        code = _type(title, command)
        if code:
            say(f"error: the demo stopped at `scepsy {command}`")
            return code
    say(f"\nThe whole demo took {time.monotonic() - started_s:.0f} s.")
    say(f"report: {(output / 'report.html').absolute()}")
    return 0


def _write_tasks(shipped: Path, path: Path, num_tasks: int) -> None:
    """So many tasks; the shipped ones come again under another id where they are too few."""
    from scepsy_hpc.files import read_jsonl_data, write_jsonl

    tasks = read_jsonl_data(shipped)
    chosen = []
    for number in range(num_tasks):
        turn, index = divmod(number, len(tasks))
        task = tasks[index]
        chosen.append(task if turn == 0 else {**task, "task_id": f"{task['task_id']}-{turn + 1}"})
    write_jsonl(path, chosen)


def _steps(out: Path, workflow: Path) -> list[tuple[str, str]]:
    """Title and command line of each step; paths are quoted for a shell."""
    names = ("topology.yaml", "profile.yaml", "tasks.jsonl", "spans.jsonl", "profiles", "plan.yaml")
    topology, spec, tasks, spans, profiles, plan = (shlex.quote(str(out / n)) for n in names)
    results, report = (shlex.quote(str(out / n)) for n in ("results", "report.html"))
    flow, shipped = shlex.quote(str(workflow / "workflow.yaml")), shlex.quote(str(_shipped_h100()))
    return [
        (
            "1. Trace: 48 runs of the agent, on one small instance of each LLM",
            f"trace {flow} {tasks} -o {spans} -n 48 --runs-in-flight 4 --rehearse "
            f"--profiles {shipped} --topology {topology}",
        ),
        (
            "2. Profile: every model under every parallelism, at the traced token lengths",
            f"profile {spec} -o {profiles} --cluster local",
        ),
        (
            "3. Plan: aggregate, search every allocation, place",
            f"plan --workflow {flow} --spans {spans} --profiles {profiles} "
            f"--topology {topology} --rate 3 --within 5% -o {plan}",
        ),
        (
            "4. Run: the batch, inside one allocation (here: local processes)",
            f"run {plan} {tasks} -o {results} --runs-in-flight 4",
        ),
        ("5. Report: predicted beside measured", f"report {results} -o {report}"),
    ]


def _shipped_h100() -> Path:
    from scepsy_hpc.files import shipped_path

    return shipped_path("profiles") / "h100_sxm"


def _type(title: str, command: str) -> int:
    """Run one command as a user would, and say which."""
    from scepsy_hpc.cli.main import run_line

    say(f"\n=== {title}\n$ scepsy {command}")
    return run_line(shlex.split(command))


def _clear(output: Path) -> None:
    """Empty the folder of an earlier demo; refuses a folder that holds anything else."""
    import shutil

    from scepsy_hpc.errors import InputError

    ours = {"topology.yaml", "profile.yaml", "tasks.jsonl", "spans.jsonl", "profiles", "plan.yaml"}
    ours |= {"results", "report.html"}
    strange = [p.name for p in output.iterdir() if p.name not in ours] if output.is_dir() else []
    if strange:
        raise InputError(
            f"{output}: holds {strange[0]!r}, which no demo made; give an empty folder"
        )
    if output.is_dir():
        shutil.rmtree(output)
    output.mkdir(parents=True)
