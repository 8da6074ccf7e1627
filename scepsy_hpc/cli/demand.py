"""``demand``: what the recorded calls say about each LLM."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from scepsy_hpc.cli.options import FILE, example, json_option, print_json


@click.command(epilog=example("scepsy demand --workflow workflow.yaml --spans spans.jsonl"))
@click.option("--workflow", type=FILE, required=True, help="workflow.yaml that was traced.")
@click.option("--spans", type=FILE, required=True, help="spans.jsonl that `scepsy trace` wrote.")
@json_option
def demand(workflow: Path, spans: Path, as_json: bool) -> None:
    """Say what the spans show about each LLM: calls, parallelism, share of LLM time, tokens.

    Needs no profile.
    """
    from scepsy_hpc.formats.spans import load_spans
    from scepsy_hpc.formats.workflow import load_workflow
    from scepsy_hpc.report import tables
    from scepsy_hpc.tracing.demand.demand import demand_of

    checked = load_workflow(workflow)
    found = demand_of(load_spans(spans), checked.name, tuple(checked.llms))
    if as_json:
        print_json(asdict(found.summary()))  # with what is unknown, as null
    else:
        tables.show(*tables.demand_parts(found))
