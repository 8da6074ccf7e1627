"""``trace``: run a few tasks and record every call."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scepsy_hpc.cli.hosting import show_progress
from scepsy_hpc.cli.options import (
    COUNT,
    DURATION,
    FILE,
    FOLDER,
    cluster_options,
    example,
    json_option,
    named,
    print_json,
    refuse_input_as_output,
    say,
)
from scepsy_hpc.cluster.jobs.submit import ClusterName

if TYPE_CHECKING:
    from scepsy_hpc.formats.tasks import Task


@click.command(
    epilog=example(
        "scepsy trace workflow.yaml tasks.jsonl -o spans.jsonl -n 20 \\",
        "    --endpoint generator=http://localhost:8000/v1#Qwen/Qwen3-8B",
    )
)
@click.argument("workflow", type=FILE)
@click.argument("tasks", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="spans.jsonl to write.")
@click.option("-n", "--num-tasks", type=COUNT, default=20, show_default=True, help="First N tasks.")
@click.option("--runs-in-flight", type=COUNT, default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--warm-up",
    "num_warm_up",
    type=click.IntRange(min=0),
    help="So many of the tasks after those run first and are not recorded. Default: one for each "
    "worker of a `python` agent, whose first run also loads what it uses.",
)
@click.option("--task-timeout", type=DURATION, help="Limit for one run, such as 30min.")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="ALIAS=URL[#MODEL]",
    help="Where an LLM is served already; once for each alias of the workflow. The key is taken "
    "from OPENAI_API_KEY.",
)
@click.option("--plan", "plan_path", type=FILE, help="plan.yaml to host for the recording.")
@click.option("--profiles", type=FOLDER, help="Bundles of the LLMs to host, one small one of each,")
@click.option("--topology", type=FILE, help="on the GPUs of this topology.yaml.")
@click.option("--rehearse", is_flag=True, help="Host simulated engines; timing from --profiles.")
@cluster_options("local")
@json_option
def trace(
    workflow: Path,
    tasks: Path,
    output: Path,
    num_tasks: int,
    runs_in_flight: int,
    num_warm_up: int | None,
    task_timeout: float | None,
    endpoints: tuple[str, ...],
    plan_path: Path | None,
    profiles: Path | None,
    topology: Path | None,
    rehearse: bool,
    cluster: ClusterName,
    site: Path | None,
    as_json: bool,
) -> int:
    """Run a few TASKS of WORKFLOW and record every call through a proxy.

    Say where the LLMs are: --endpoint for each; or a --plan to host for the time of the recording;
    or --profiles and --topology, to host one small instance of each LLM.
    """
    from scepsy_hpc.formats.spans import save_spans
    from scepsy_hpc.formats.tasks import load_tasks
    from scepsy_hpc.formats.workflow import load_workflow
    from scepsy_hpc.report import tables
    from scepsy_hpc.tracing.demand.demand import demand_of
    from scepsy_hpc.tracing.warm_up import num_cold, warm_up_tasks, without_runs_of

    refuse_input_as_output(output, workflow, tasks, plan_path, topology)
    checked = load_workflow(workflow)
    known = load_tasks(tasks, (checked.name,))
    chosen = known[:num_tasks]
    cold = min(num_cold(checked.agent, runs_in_flight), len(chosen))
    first = warm_up_tasks(known, num_tasks, cold if num_warm_up is None else num_warm_up)
    sent = [*first, *chosen]
    if endpoints:
        spans, failures = _by_endpoints(checked, sent, endpoints, runs_in_flight, task_timeout)
    else:
        plan = _plan_to_host(checked, plan_path, profiles, topology, rehearse)
        spans, failures = _hosted(plan, sent, cluster, site, runs_in_flight, task_timeout)
    spans = without_runs_of(spans, first)
    save_spans(output, spans)
    found = demand_of(spans, checked.name, tuple(checked.llms))
    if as_json:
        summary = asdict(found.summary())  # with what is unknown, as null
        runs = {"num_runs": len(chosen), "num_warm_up": len(first), "failures": failures}
        print_json({**runs, "demand": summary})
    else:
        tables.show(*tables.demand_parts(found))
        say(f"wrote {output}: {len(spans)} spans of {len(chosen)} runs{_warmed(len(first), cold)}")
    for task_id, error in failures.items():
        say(f"error: task {task_id}: {error}")
    return int(bool(failures))


def _warmed(num_first: int, num_cold: int) -> str:
    """How many runs are left out, and how many are in that were the first of their worker."""
    left_out = f", after {num_first} to warm up" if num_first else ""
    if num_first >= num_cold:
        return left_out
    return (
        f"{left_out}; {num_cold - num_first} of them the first of their worker, which take longer: "
        "give more tasks than -n"
    )


def _by_endpoints(
    workflow: Any,
    tasks: list[Task],
    endpoints: tuple[str, ...],
    runs_in_flight: int,
    timeout_s: float | None,
) -> tuple[list[Any], dict[str, str]]:
    import os

    from scepsy_hpc.report.progress import ProgressBar
    from scepsy_hpc.tracing.proxy.router import CallTarget
    from scepsy_hpc.tracing.recorder import trace_workflow

    targets = {}
    for alias, address in named(endpoints, "url").items():
        if alias is None:
            raise click.UsageError(f"--endpoint {address!r}: write ALIAS=URL")
        if alias not in workflow.llms:
            known = ", ".join(workflow.llms)
            raise click.UsageError(
                f"--endpoint {alias}: {workflow.name} has no such LLM; has {known}"
            )
        url, _, model = address.partition("#")
        key = os.environ.get("OPENAI_API_KEY")
        targets[alias] = CallTarget(url, model or workflow.llms[alias].model, None, key)
    with ProgressBar("runs") as progress:
        recording = trace_workflow(
            workflow,
            tasks,
            targets,
            concurrency=runs_in_flight,
            timeout_s=timeout_s,
            on_progress=lambda p: progress.update(p.num_done, p.num_total, f"{p.num_calls} calls"),
        )
    return list(recording.spans), recording.failures


def _plan_to_host(
    workflow: Any, plan_path: Path | None, profiles: Path | None, topology: Path | None, sim: bool
) -> Any:
    from scepsy_hpc.bundles.library import find_bundles
    from scepsy_hpc.formats.plan import load_plan
    from scepsy_hpc.formats.topology import load_topology
    from scepsy_hpc.planning.one_each import one_each
    from scepsy_hpc.serving.rehearsal import rehearsed

    bundles = find_bundles(profiles) if profiles else []
    if plan_path:
        plan = load_plan(plan_path)
    elif profiles and topology:
        plan = one_each(workflow, bundles, load_topology(topology))
    else:
        raise click.UsageError(
            "give --endpoint for each LLM, or --plan, or --profiles with --topology"
        )
    return rehearsed(plan, bundles) if sim else plan


def _hosted(
    plan: Any,
    tasks: list[Task],
    cluster: ClusterName,
    site: Path | None,
    runs_in_flight: int,
    timeout_s: float | None,
) -> tuple[list[Any], dict[str, str]]:
    from scepsy_hpc.cluster.site import load_site
    from scepsy_hpc.report.progress import ProgressBar
    from scepsy_hpc.serving.recording import record_hosted

    with ProgressBar("runs") as progress:
        return record_hosted(
            plan,
            tasks,
            cluster,
            load_site(site),
            runs_in_flight,
            timeout_s,
            lambda status, note: show_progress(progress, status, note),
        )
