"""``plan``: aggregate, search every allocation, place the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from scepsy_hpc.cli.inputs import load_workflows, spans_files
from scepsy_hpc.cli.options import (
    COUNT,
    DURATION,
    FILE,
    FOLDER,
    PERCENT,
    POSITIVE,
    example,
    json_option,
    print_json,
    refuse_input_as_output,
    say,
)
from scepsy_hpc.planning.targets import DEFAULT_WITHIN_PCT, STARTUP_S


@click.command(
    epilog=example(
        "scepsy plan --workflow workflow.yaml --spans spans.jsonl \\",
        "    --profiles profiles/ --topology topology.yaml --rate 2 -o plan.yaml",
    )
)
@click.option(
    "--workflow",
    "workflows",
    multiple=True,
    required=True,
    metavar="[NAME=]FILE[@RATE]",
    help="workflow.yaml; repeat for several, each with its rate in runs per second.",
)
@click.option(
    "--spans",
    multiple=True,
    required=True,
    metavar="[NAME=]FILE",
    help="spans.jsonl of its traced runs; NAME is its workflow's, where there are several.",
)
@click.option("--profiles", type=FOLDER, required=True, help="Folder of profile bundles.")
@click.option("--topology", type=FILE, required=True, help="topology.yaml: the GPUs to use.")
@click.option("--rate", type=POSITIVE, help="Target: lowest latency at so many runs per second.")
@click.option("--max-throughput", is_flag=True, help="Target: highest rate.")
@click.option("--tasks", type=COUNT, help="Target: a batch of so many tasks, with --deadline.")
@click.option("--deadline", type=DURATION, help="The batch ends within this time, such as 8h.")
@click.option("--gpus", type=COUNT, help="Limit: at most so many GPUs.")
@click.option("--latency-limit", type=DURATION, help="Limit: mean run latency, such as 30s.")
@click.option("--p95-limit", type=DURATION, help="Limit: 95% of runs end within this time.")
@click.option(
    "--within",
    type=PERCENT,
    default=DEFAULT_WITHIN_PCT,
    show_default=f"{DEFAULT_WITHIN_PCT:g}%",
    help="The fewest GPUs within so many percent of the best; 0% for the very best.",
)
@click.option(
    "--startup",
    type=DURATION,
    help="GPUs of a batch are held so long before its first task.",
    show_default=f"{STARTUP_S / 60:g}min",
)
@click.option(
    "--check-calls",
    type=COUNT,
    help="Calls that the check by simulation may take.  [default: 200000]",
)
@click.option(
    "--time-limit",
    type=DURATION,
    help="Each search ends after so long, such as 5s; the plan then depends on the machine.",
)
@click.option(
    "--engine", metavar="NAME", help="Only profiles of this engine: vllm, or vllm-0.24.0."
)
@click.option(
    "--dask",
    metavar="WHERE",
    default="none",
    show_default=True,
    help="Aggregate on Dask workers: local, slurm or a scheduler's address.",
)
@click.option("-o", "--output", type=FILE, required=True, help="plan.yaml to write.")
@json_option
def plan(
    workflows: tuple[str, ...],
    spans: tuple[str, ...],
    profiles: Path,
    topology: Path,
    rate: float | None,
    max_throughput: bool,
    tasks: int | None,
    deadline: float | None,
    gpus: int | None,
    latency_limit: float | None,
    p95_limit: float | None,
    within: float,
    startup: float | None,
    check_calls: int | None,
    time_limit: float | None,
    engine: str | None,
    dask: str,
    output: Path,
    as_json: bool,
) -> None:
    """Aggregate spans and profiles, search every allocation, place the best, simulate it.

    Without a target, the rates given with --workflow count. Of plans about as good the one on
    fewer GPUs is taken (--within), of batches the one of the fewest GPU-hours. Exit code 3 where
    nothing meets the target: the message names the nearest that is feasible, and nothing is
    written.
    """
    from scepsy_hpc.bundles.library import find_bundles
    from scepsy_hpc.cluster.dask import dask_workers
    from scepsy_hpc.formats.plan import save_plan
    from scepsy_hpc.formats.spans import load_spans
    from scepsy_hpc.formats.topology import load_topology
    from scepsy_hpc.planning.check import MAX_CALLS
    from scepsy_hpc.planning.make_plan import make_plan
    from scepsy_hpc.planning.request import PlanRequest
    from scepsy_hpc.planning.targets import Limits

    target = _target(rate, max_throughput, tasks, deadline, startup)
    flows = load_workflows(workflows)
    files = spans_files(spans, [flow for flow, _ in flows])
    request = PlanRequest(
        flows,
        find_bundles(profiles),
        load_topology(topology),
        target,
        Limits(gpus, latency_limit, p95_limit, within, time_limit),
        spans={name: load_spans(path) for name, path in files.items()},
        engine=engine,
        inputs=_inputs([flow for flow, _ in flows], files, topology, output),
        check_calls=check_calls or MAX_CALLS,
    )
    with dask_workers(dask) as client:
        made = make_plan(request, client)
    save_plan(output, made)
    if as_json:
        print_json(made)
    else:
        _show_plan(made)
        say(f"wrote {output}")


def _inputs(
    flows: Sequence[Any], files: Mapping[str, Path], topology: Path, output: Path
) -> tuple[Any, ...]:
    """The files as the plan names them. Raises UsageError where ``output`` is one of them."""
    from scepsy_hpc.planning.inputs import input_of

    refuse_input_as_output(output, topology, *(flow.path for flow in flows), *files.values())
    return (
        *(input_of("workflow", flow.path, flow.name) for flow in flows),
        # A pipe is read by now, and cannot be found again.
        *(input_of("spans", path, name) for name, path in files.items() if path.is_file()),
        input_of("topology", topology),
    )


def _show_plan(made: Any) -> None:
    from scepsy_hpc.report import tables
    from scepsy_hpc.report.plan_screen import plan_parts

    tables.show(*plan_parts(made))


def _target(
    rate: float | None,
    most: bool,
    tasks: int | None,
    deadline: float | None,
    startup: float | None,
) -> Any:
    from scepsy_hpc.planning.targets import Deadline, MaxThroughput, Rate

    if (tasks is None) != (deadline is None):
        raise click.UsageError("--tasks and --deadline belong together")
    given = (rate is not None, most, tasks is not None)
    if given.count(True) > 1:
        raise click.UsageError("give one of --rate, --max-throughput, --tasks with --deadline")
    if tasks is not None and deadline is not None:
        return Deadline(tasks, deadline, STARTUP_S if startup is None else startup)
    if startup is not None:
        raise click.UsageError("--startup belongs to --tasks with --deadline")
    return MaxThroughput() if most else Rate(rate)
