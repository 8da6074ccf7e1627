"""``simulate``: the recorded runs on a plan, call by call."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from scepsy_hpc.cli.inputs import spans_files
from scepsy_hpc.cli.options import (
    ANY_SEED,
    COUNT,
    FILE,
    FOLDER,
    POSITIVE,
    PROFILES_HELP,
    example,
    json_option,
    print_json,
)
from scepsy_hpc.formats.figures import ReplicaServer


@click.command(epilog=example("scepsy simulate plan.yaml --rate 5 --seed 1"))
@click.argument("plan_path", metavar="PLAN", type=FILE)
@click.option("--rate", type=POSITIVE, help="Runs per second, Poisson arrivals.")
@click.option("--runs-in-flight", type=COUNT, help="Or so many runs always in flight.")
@click.option(
    "--arrivals",
    type=FILE,
    help="Or runs that come at given times: JSON lines or CSV of time_s, workflow, count.",
)
@click.option(
    "--runs",
    type=COUNT,
    help="Runs to simulate; with --runs-in-flight a batch of so many, fill and drain included.  "
    "[default: as many as the interval needs]",
)
@click.option(
    "--seed", type=ANY_SEED, default=0, show_default=True, help="Seed of arrivals and draws."
)
@click.option(
    "--cores",
    type=COUNT,
    help="Cores of the agents, where the spans say their CPU seconds; by default the plan's.",
)
@click.option(
    "--server",
    type=click.Choice(get_args(ReplicaServer)),
    help="What a replica is: one that shares X(k) evenly among k calls, or an engine, step by "
    "step.  [default: an engine where prompts repeat others of their run, else shared]",
)
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
    arrivals: Path | None,
    runs: int | None,
    seed: int,
    cores: int | None,
    server: ReplicaServer | None,
    spans: tuple[str, ...],
    profiles: Path | None,
    as_json: bool,
) -> None:
    """Simulate the traced runs on PLAN, call by call: percentiles with intervals.

    Give the load: --rate, --runs-in-flight or --arrivals. Every figure carries its 95% interval;
    warm-up is dropped. A load that the plan cannot carry is `overloaded` and has no figures.
    """
    from scepsy_hpc.formats.arrival_times import load_arrival_times
    from scepsy_hpc.formats.plan import load_plan
    from scepsy_hpc.planning.forecast import simulated
    from scepsy_hpc.planning.inputs import bundles_of, spans_of
    from scepsy_hpc.planning.pipeline.of_plan import check_complete
    from scepsy_hpc.planning.request import LEAST_RATE_RPS
    from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, Open, Timed
    from scepsy_hpc.report import tables

    if sum(given is not None for given in (rate, runs_in_flight, arrivals)) != 1:
        raise click.UsageError("give one of --rate, --runs-in-flight and --arrivals")
    if arrivals is not None and runs is not None:
        raise click.UsageError("--runs: the file of --arrivals says how many; leave it out")
    if rate is not None and rate < LEAST_RATE_RPS:
        raise click.UsageError(f"--rate: must be at least {LEAST_RATE_RPS:g} runs/s; is {rate:g}")
    made = load_plan(plan_path)
    check_complete(made)
    recorded = spans_of(made, spans_files(spans, made.workflows) if spans else None)
    load: Arrivals | dict[str, Arrivals]
    wanted = None
    if arrivals is not None:
        times_s = load_arrival_times(arrivals, [flow.name for flow in made.workflows])
        load = {name: Timed(mine) for name, mine in times_s.items()}
    elif rate is not None:
        load, wanted = Open(None, rate), runs
    else:
        load = Closed(runs, runs_in_flight or 1)
    found = simulated(made, recorded, bundles_of(made, profiles), load, seed, wanted, cores, server)
    if as_json:
        print_json(found)
        return
    if found.latency_mean_s is None:
        tables.show("No figures: this load has no steady state on this plan.")
    else:
        tables.show(tables.simulated_table(found))
    tables.show(*(f"flag: {flag}" for flag in found.flags))
