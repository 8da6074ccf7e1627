"""Part 5: the planner's split of one GPU against halves and against one engine after the other.

A workflow of two LLMs (several calls of a 0.6B model, then one of an 8B model), a closed batch,
real runs under each scheme in interleaved rounds. Engines of two schemes do not fit the GPU
together, so every round starts them anew: 2 to 3 minutes a scheme and round, starts not counted in
the figures. The first runs under halves are also the trace that the planner gets. `--profiles`
are the bundles of parts 2 and 3; without them the shipped, modelled ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_bench
from gpu_bench import Bench

from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.errors import RunError
from scepsy_hpc.files import read_jsonl_data, shipped_path, write_yaml
from scepsy_hpc.formats import workflow as workflows
from scepsy_hpc.formats.plan import Deployment, Instance, Plan, PlanWorkflow, save_plan
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Limits, MaxThroughput
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving.rehearsal import rehearsed
from scepsy_hpc.serving.run_folder import RunFolder, read_json
from scepsy_hpc.serving.settings import RunSettings

ALIASES = {"judge": gpu_bench.SMALL, "writer": gpu_bench.LARGE}
NAME = "two_stage"
Schemes = dict[str, Sequence[tuple[Path, tuple[str, ...]]]]


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Trace under halves, plan, then all schemes in turn, round by round."""
    flow = write_workflow(bench)
    halves = by_hand(bench, flow, {"judge": 50, "writer": 50}, "halves")
    traced = await scheme(bench, options, "trace", [(halves, tuple(ALIASES))])
    planned = plan(bench, options, flow, bench.folder / "runs" / "trace-0")
    schemes: Schemes = {
        "planned": [(planned, tuple(ALIASES))],
        "halves": [(halves, tuple(ALIASES))],
        "one after the other": [
            (by_hand(bench, flow, {alias: 100}, f"only-{alias}"), (alias,)) for alias in ALIASES
        ],
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in schemes}
    bench.save("plan_vs_baselines.json", {"trace": traced, "rounds": found})
    for number in range(options.rounds):
        # Whatever drifts in a round (heat, clocks) meets each scheme at each place in turn.
        order = [*schemes][number % len(schemes) :] + [*schemes][: number % len(schemes)]
        for name in order:
            place = f"{name.replace(' ', '-')}-round{number}"
            found[name].append(await scheme(bench, options, place, schemes[name]))
            bench.save("plan_vs_baselines.json", {"trace": traced, "rounds": found})
            one = found[name][-1]
            bench.say(
                f"{name}: {one['throughput_rps']:.3f} runs/s, {one['latency_mean_s']:.2f} s a run"
            )


def write_workflow(bench: Bench) -> workflows.Workflow:
    """The workflow of the two aliases, served as everything is here."""
    llms = {
        alias: {
            "model": model,
            "tp_degrees": [1],
            "gpu_shares_pct": [25, 50, 75],
            "engine_args": {} if bench.dry_run else bench.model_spec(model).engine_args,
        }
        for alias, model in ALIASES.items()
    }
    agent = {"python": "two_stage_agent:run", "folder": str(Path(__file__).parent)}
    path = bench.folder / "workflow.yaml"
    write_yaml(path, {"name": NAME, "llms": llms, "agent": agent}, workflows.WORKFLOW_SCHEMA)
    return workflows.load_workflow(path)


def by_hand(
    bench: Bench, flow: workflows.Workflow, shares_pct: Mapping[str, int], name: str
) -> Path:
    """A plan with one instance of each alias on the one GPU, at these shares."""
    node = bench.topology.nodes[0]
    llms, instances = {}, []
    for alias, share in shares_pct.items():
        spec = bench.model_spec(ALIASES[alias])
        llms[alias] = Deployment(
            model=spec.model,
            engine=spec.engine,
            gpu_type=node.gpu_type,
            tp_degree=1,
            gpu_share_pct=share,
            num_replicas=1,
            engine_args=spec.engine_args,
        )
        gpus = (node.gpus[0],)
        instances.append(
            Instance(id=f"{alias}-0", llm=alias, node=node.name, gpus=gpus, gpu_share_pct=share)
        )
    workflow = PlanWorkflow(name=flow.name, llms={a: a for a in llms}, agent=flow.agent)
    path = bench.folder / f"{name}.yaml"
    save_plan(path, Plan(workflows=(workflow,), llms=llms, instances=tuple(instances)))
    return path


def plan(bench: Bench, options: argparse.Namespace, flow: workflows.Workflow, traced: Path) -> Path:
    """The planner's answer for the highest throughput on one GPU."""
    bundles = find_bundles(options.profiles or shipped_path("profiles"))
    spans = load_spans(traced / "spans.jsonl")
    request = PlanRequest(
        [(flow, None)],
        bundles,
        bench.topology,
        MaxThroughput(),
        Limits(num_gpus=1),
        spans={flow.name: spans},
        engine="vllm",
    )
    made = make_plan(request)
    if bench.dry_run:
        made = rehearsed(made, bundles)
        scale = {"time_scale": gpu_bench.DRY_TIME_SCALE}
        llms = {n: replace(d, engine_args=d.engine_args | scale) for n, d in made.llms.items()}
        made = replace(made, llms=llms)
    for line in made.explanation:
        bench.say(f"plan: {line}")
    path = bench.folder / "planned.yaml"
    save_plan(path, made)
    return path


async def scheme(
    bench: Bench,
    options: argparse.Namespace,
    place: str,
    phases: Sequence[tuple[Path, tuple[str, ...]]],
) -> dict[str, Any]:
    """Work the batch off under a scheme; several phases host their engines one after the other."""
    outs = []
    for number, (plan_path, stages) in enumerate(phases):
        out = bench.folder / "runs" / f"{place}-{number}"
        tasks = write_tasks(out.parent / f"{out.name}.jsonl", options, stages)
        await asyncio.to_thread(work_off, plan_path, tasks, out, options.runs_in_flight)
        outs.append(out)
    ledgers = [read_jsonl_data(out / "results.jsonl") for out in outs]
    statuses = [read_json(RunFolder(out).status, RunStatus) for out in outs]
    return combine(ledgers) | {"alerts": [alert for s in statuses if s for alert in s.alerts]}


def write_tasks(path: Path, options: argparse.Namespace, stages: Sequence[str]) -> Path:
    """The batch, for these stages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    task = {
        "stages": list(stages),
        "judge_calls": options.judge_calls,
        "judge_shape": options.judge_shape,
        "writer_shape": options.writer_shape,
    }
    lines = [json.dumps({"task_id": f"t{i}", **task}) for i in range(options.tasks)]
    path.write_text("\n".join(lines) + "\n")
    return path


def work_off(plan_path: Path, tasks: Path, out: Path, runs_in_flight: int) -> None:
    """What `scepsy run PLAN TASKS -o OUT --cluster local` does. Raises RunError."""
    settings = RunSettings(max_runs_in_flight=runs_in_flight, ready_timeout_s=300.0)
    folder = runs.prepare(plan_path, tasks, out, settings)
    jobs = runs.launch(folder, "local")
    runs.follow(folder, jobs, lambda status, note: None)


def combine(ledgers: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Throughput and mean latency over the phases of a scheme, engine starts left out.

    A task is in work from its first start to its last end, less the time between phases; so with
    one engine after the other it waits for the phase of all others to end.
    """
    failed = [line for ledger in ledgers for line in ledger if line["status"] != "ok"]
    if failed:
        raise RunError(f"{len(failed)} tasks failed; the first: {failed[0].get('error')}")
    starts = [min(line["started_s"] for line in ledger) for ledger in ledgers]
    ends = [max(line["finished_s"] for line in ledger) for ledger in ledgers]
    makespan_s = sum(end - start for start, end in zip(starts, ends, strict=True))
    between_s = sum(b - a for a, b in zip(ends, starts[1:], strict=False))
    first = {line["task_id"]: line["started_s"] for line in ledgers[0]}
    last = {line["task_id"]: line["finished_s"] for line in ledgers[-1]}
    latencies = [last[task] - first[task] - between_s for task in first]
    return {
        "num_tasks": len(first),
        "makespan_s": makespan_s,
        "throughput_rps": len(first) / makespan_s,
        "latency_mean_s": sum(latencies) / len(latencies),
        "between_phases_s": between_s,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The batch and how often it is run."""
    parser.add_argument("--profiles", type=lambda p: Path(p).absolute(), nargs="+")
    parser.add_argument("--tasks", type=int, default=96)
    parser.add_argument("--runs-in-flight", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--judge-calls", type=int, default=8)
    parser.add_argument("--judge-shape", nargs=2, type=int, default=(512, 8))
    parser.add_argument("--writer-shape", nargs=2, type=int, default=(1024, 128))


if __name__ == "__main__":
    sys.exit(gpu_bench.run("plan_vs_baselines", __doc__, measure, add_arguments))
