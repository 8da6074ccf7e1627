"""``simulate``: the recorded runs on a plan, call by call."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.inputs import spans_files
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


@click.command(epilog=example("scepsy simulate plan.yaml --rate 5 --runs 500 --seed 1"))
@click.argument("plan_path", metavar="PLAN", type=FILE)
@click.option("--rate", type=POSITIVE, help="Runs per second, Poisson arrivals.")
@click.option("--runs-in-flight", type=COUNT, help="Or a closed batch, so many runs at a time.")
@click.option("--runs", type=COUNT, default=200, show_default=True, help="Runs to simulate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of arrivals and draws.")
@click.option(
    "--spans",
    multiple=True,
    metavar="[NAME=]FILE",
    help="spans.jsonl of traced runs.  [default: those the plan names]",
)
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
    from scepsy_hpc.planning.simulation.arrivals import Closed, Open
    from scepsy_hpc.report import tables

    if (rate is None) == (runs_in_flight is None):
        raise click.UsageError("give one of --rate and --runs-in-flight")
    made = load_plan(plan_path)
    recorded = spans_of(made, spans_files(spans, made.workflows) if spans else None)
    load = Open(runs, rate) if rate is not None else Closed(runs, runs_in_flight or 1)
    found = simulated(made, recorded, bundles_of(made, profiles), load, seed)
    if as_json:
        print_json(found)
        return
    tables.show(tables.simulated_table(found))
    tables.show(*(f"flag: {flag}" for flag in found.flags))
