"""``plan``, ``predict`` and ``simulate``: computed from files alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scepsy_hpc.cli.options import (
    COUNT,
    DURATION,
    FILE,
    FOLDER,
    PERCENT,
    POSITIVE,
    example,
    json_option,
    named,
    print_json,
    say,
)

DEMAND_HELP = "spans.jsonl of traced runs.  [default: what the plan keeps of them]"
SPANS_HELP = "spans.jsonl of traced runs.  [default: those the plan names]"
PROFILES_HELP = "Folder of bundles.  [default: those the plan names]"


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
@click.option("--within", type=PERCENT, help="The fewest GPUs within so many percent of the best.")
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
    within: float | None,
    engine: str | None,
    dask: str,
    output: Path,
    as_json: bool,
) -> None:
    """Aggregate spans and profiles, search every allocation, place the best.

    Without a target, the rates given with --workflow count. Exit code 3 where nothing meets the
    target: the message names the nearest that is feasible, and nothing is written.
    """
    from scepsy_hpc.bundles.library import find_bundles
    from scepsy_hpc.formats.plan import save_plan
    from scepsy_hpc.formats.topology import load_topology
    from scepsy_hpc.planning.aggregate import dask_workers
    from scepsy_hpc.planning.make_plan import make_plan
    from scepsy_hpc.planning.targets import Limits

    target = _target(rate, max_throughput, tasks, deadline)
    flows, paths = _workflows(workflows)
    recorded, span_paths = _spans(spans, [flow for flow, _ in flows])
    limits = Limits(gpus, latency_limit, p95_limit, within)
    with dask_workers(dask) as client:
        made = make_plan(
            flows,
            recorded,
            find_bundles(profiles.absolute()),
            load_topology(topology),
            target,
            limits,
            engine=engine,
            # Absolute: `scepsy report` looks for them from the results folder of a later day.
            inputs=[path.absolute() for path in (*paths, *span_paths, topology)],
            client=client,
        )
    save_plan(output, made)
    if as_json:
        print_json(made)
    else:
        _show_plan(made)
        say(f"wrote {output}")


def _show_plan(made: Any) -> None:
    from scepsy_hpc.report import tables

    tables.show(tables.deployments_table(made))
    if made.predicted:
        tables.show(tables.predicted_table(made.predicted), tables.llm_table(made.predicted))
    tables.show(*made.explanation)
    if made.certificate:
        c = made.certificate
        tables.show(f"certificate: {c.metric} {c.value:.4g}, bound {c.bound:.4g}, gap {c.gap:.2%}")


def _target(rate: float | None, most: bool, tasks: int | None, deadline: float | None) -> Any:
    from scepsy_hpc.planning.targets import Deadline, MaxThroughput, Rate

    if (tasks is None) != (deadline is None):
        raise click.UsageError("--tasks and --deadline belong together")
    given = (rate is not None, most, tasks is not None)
    if given.count(True) > 1:
        raise click.UsageError("give one of --rate, --max-throughput, --tasks with --deadline")
    if tasks is not None and deadline is not None:
        return Deadline(tasks, deadline)
    return MaxThroughput() if most else Rate(rate)


def _workflows(values: tuple[str, ...]) -> tuple[list[tuple[Any, float | None]], list[Path]]:
    """Workflows with their rates, and their paths."""
    from scepsy_hpc.formats.workflow import load_workflow

    flows, paths = [], []
    for name, value in named(values, "workflow").items():
        match = re.fullmatch(r"(.+?)(?:@([\d.eE+-]+))?", value)
        assert match is not None
        flow = load_workflow(match[1])
        if name is not None and name != flow.name:
            raise click.UsageError(f"--workflow {name}={value}: its `name:` is {flow.name!r}")
        flows.append((flow, _rate(match[2], value)))
        paths.append(Path(match[1]))
    return flows, paths


def _rate(text: str | None, value: str) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise click.UsageError(f"--workflow {value}: rate {text!r} must be above 0 runs per second")
    return rate


def _spans(values: tuple[str, ...], flows: Sequence[Any]) -> tuple[dict[str, Any], list[Path]]:
    """Spans by workflow name, and their paths."""
    from scepsy_hpc.formats.spans import load_spans

    found: dict[str, Any] = {}
    paths: list[Path] = []
    known = ", ".join(flow.name for flow in flows)
    for name, value in named(values, "spans").items():
        wanted = name or (str(flows[0].name) if len(flows) == 1 else "")
        if wanted not in {flow.name for flow in flows}:
            raise click.UsageError(f"--spans {value}: write NAME={value}; NAME is one of {known}")
        found[wanted] = load_spans(value)
        paths.append(Path(value))
    for flow in flows:
        if flow.name not in found:
            raise click.UsageError(f"--spans {flow.name}=FILE is missing")
    return found, paths


@click.command(epilog=example("scepsy predict plan.yaml --rate 5"))
@click.argument("plan_path", metavar="PLAN", type=FILE)
@click.option("--rate", type=POSITIVE, help="Runs per second.  [default: the plan's]")
@click.option("--tasks", type=COUNT, help="Or a closed batch of so many tasks.")
@click.option("--runs-in-flight", type=COUNT, help="Runs of it at a time.  [default: the plan's]")
@click.option(
    "--workflow",
    "workflows",
    multiple=True,
    metavar="[NAME=]FILE",
    help="workflow.yaml, as in plan.",
)
@click.option("--spans", multiple=True, metavar="[NAME=]FILE", help=DEMAND_HELP)
@click.option("--profiles", type=FOLDER, help=PROFILES_HELP)
@json_option
def predict(
    plan_path: Path,
    rate: float | None,
    tasks: int | None,
    runs_in_flight: int | None,
    workflows: tuple[str, ...],
    spans: tuple[str, ...],
    profiles: Path | None,
    as_json: bool,
) -> None:
    """Say what an allocation reaches: mean latency and throughput by the pipeline.

    PLAN may be written by hand; then give --workflow, --spans and --profiles too. Percentiles
    come from `scepsy simulate`.
    """
    from scepsy_hpc.formats.plan import load_plan
    from scepsy_hpc.planning.aggregate import demands_in
    from scepsy_hpc.planning.forecast import demands_in_spans, with_in_flight
    from scepsy_hpc.planning.inputs import bundles_of
    from scepsy_hpc.planning.pipeline import of_plan
    from scepsy_hpc.report import tables

    made = load_plan(plan_path)
    bundles = bundles_of(made, profiles)
    flows = [flow for flow, _ in _workflows(workflows)[0]]
    made = of_plan.complete(made, flows, bundles)
    if spans:
        demands = demands_in_spans(made, _spans(spans, made.workflows)[0])
    else:
        demands = demands_in(made)
    if runs_in_flight:
        made = with_in_flight(made, runs_in_flight)
    found = of_plan.predict_plan(made, demands, bundles, rate, tasks)
    if as_json:
        print_json(found)
        return
    tables.show(tables.predicted_table(found, "Predicted by the pipeline"))
    tables.show(tables.llm_table(found))
    tables.show(*(f"flag: {flag}" for flag in found.flags))


@click.command(epilog=example("scepsy simulate plan.yaml --rate 5 --runs 500 --seed 1"))
@click.argument("plan_path", metavar="PLAN", type=FILE)
@click.option("--rate", type=POSITIVE, help="Runs per second, Poisson arrivals.")
@click.option("--runs-in-flight", type=COUNT, help="Or a closed batch, so many runs at a time.")
@click.option("--runs", type=COUNT, default=200, show_default=True, help="Runs to simulate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of arrivals and draws.")
@click.option("--spans", multiple=True, metavar="[NAME=]FILE", help=SPANS_HELP)
@click.option("--profiles", type=FOLDER, help=PROFILES_HELP)
@json_option
def simulate(
    plan_path: Path,
    rate: float | None,
    runs_in_flight: int | None,
    runs: int,
    seed: int,
    spans: tuple[str, ...],
    profiles: Path | None,
    as_json: bool,
) -> None:
    """Simulate the traced runs on PLAN, call by call: percentiles with intervals.

    Give the load: --rate or --runs-in-flight. Every figure carries its 95% interval.
    """
    from scepsy_hpc.formats.plan import load_plan
    from scepsy_hpc.planning.forecast import simulated
    from scepsy_hpc.planning.inputs import bundles_of, spans_of
    from scepsy_hpc.planning.simulation.flows import Closed, Open
    from scepsy_hpc.report import tables

    if (rate is None) == (runs_in_flight is None):
        raise click.UsageError("give one of --rate and --runs-in-flight")
    made = load_plan(plan_path)
    recorded = _spans(spans, made.workflows)[0] if spans else spans_of(made)
    load = Open(runs, rate) if rate is not None else Closed(runs, runs_in_flight or 1)
    found = simulated(made, recorded, bundles_of(made, profiles), load, seed)
    if as_json:
        print_json(found)
        return
    tables.show(tables.simulated_table(found))
    tables.show(*(f"flag: {flag}" for flag in found.flags))
