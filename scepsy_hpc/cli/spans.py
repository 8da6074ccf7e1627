"""``spans``: take over what other tools recorded of agents."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import (
    FILE,
    example,
    json_option,
    print_json,
    refuse_input_as_output,
    say,
)


@click.group(
    epilog=example(
        "scepsy spans import --from agent-traces session.json -o spans.jsonl \\",
        "    --llm claude-opus-4-5-20251101=planner",
    )
)
def spans() -> None:
    """Take over what other tools recorded of agents.

    Spans are a spans.jsonl as `scepsy trace` writes it; `scepsy demand` and `scepsy plan` read it.
    """


@spans.command("import", short_help="Make a spans.jsonl of another tool's traces.")
@click.argument("files", metavar="FILE...", type=FILE, nargs=-1, required=True)
@click.option(
    "--from",
    "source",
    type=click.Choice(["agent-traces"]),
    required=True,
    help="What FILE is: agent-traces, a session of kv-cache-tester in JSON.",
)
@click.option("-o", "--output", type=FILE, required=True, help="spans.jsonl to write.")
@click.option(
    "--workflow",
    metavar="NAME",
    default="agent_traces",
    show_default=True,
    help="Workflow that the runs belong to, as `name:` of its workflow.yaml.",
)
@click.option(
    "--llm",
    "llms",
    multiple=True,
    metavar="MODEL=ALIAS",
    help="The workflow's alias of a model; may be repeated.  [default: the model's name]",
)
@json_option
def import_traces(
    files: tuple[Path, ...],
    source: str,
    output: Path,
    workflow: str,
    llms: tuple[str, ...],
    as_json: bool,
) -> None:
    """Take over the runs of other tools' traces, one run a FILE.

    All are checked before spans.jsonl is written. A call whose end the trace lacks gets status
    `unfinished` and an estimated duration; the table says how many.
    """
    from scepsy_hpc.formats.spans import save_spans
    from scepsy_hpc.report import inventory, tables
    from scepsy_hpc.tracing.importers import import_agent_traces, import_summary

    refuse_input_as_output(output, *files)
    found = import_agent_traces(files, workflow, _aliases(llms))
    summary = import_summary(found)
    save_spans(output, found)
    if as_json:
        print_json(summary)
    else:
        tables.show(*inventory.imported_parts(summary))
        say(f"wrote {output}: {len(found)} spans of {summary['num_runs']} runs")


def _aliases(values: tuple[str, ...]) -> dict[str, str]:
    """Alias by model; models may hold a slash or a colon, so that the last `=` divides."""
    found: dict[str, str] = {}
    for value in values:
        model, _, alias = value.rpartition("=")
        if not model or not alias or model in found:
            raise click.UsageError(f"--llm {value!r}: give each model once, as MODEL=ALIAS")
        found[model] = alias
    return found
