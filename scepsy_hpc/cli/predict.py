"""``predict``: throughput and latency of any allocation."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.inputs import load_workflows, spans_files
from scepsy_hpc.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    POSITIVE,
    PROFILES_HELP,
    example,
    json_option,
    print_json,
)


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
@click.option(
    "--spans",
    multiple=True,
    metavar="[NAME=]FILE",
    help="spans.jsonl of traced runs.  [default: what the plan keeps of them]",
)
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
    from scepsy_hpc.planning.forecast import demands_in_spans, with_in_flight
    from scepsy_hpc.planning.inputs import bundles_of, spans_of
    from scepsy_hpc.planning.pipeline import of_plan
    from scepsy_hpc.planning.pipeline.deployments import demands_in
    from scepsy_hpc.report import tables
    from scepsy_hpc.report.plan_screen import predicted_parts

    made = load_plan(plan_path)
    bundles = bundles_of(made, profiles)
    flows = [flow for flow, _ in load_workflows(workflows)]
    made = of_plan.complete(made, flows, bundles)
    if spans:
        demands = demands_in_spans(made, spans_of(made, spans_files(spans, made.workflows)))
    elif tasks is not None and any(item.role == "spans" for item in made.inputs):
        demands = demands_in_spans(made, spans_of(made))  # a makespan asks for every run
    else:
        demands = demands_in(made)
    if runs_in_flight:
        made = with_in_flight(made, runs_in_flight)
    found = of_plan.predict_plan(made, demands, bundles, rate, tasks)
    if as_json:
        print_json(found)
        return
    tables.show(*predicted_parts(found, "Predicted by the pipeline"))
