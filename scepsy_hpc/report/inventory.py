"""Tables of what there is: GPUs, profile bundles, imported traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from scepsy_hpc.report.tables import table

if TYPE_CHECKING:  # a list of bundles needs no cluster modules
    from scepsy_hpc.formats.bundle import Bundle
    from scepsy_hpc.formats.topology import Topology
    from scepsy_hpc.profiling.array import ProfileResult


def topology_table(topology: Topology) -> Table:
    """Nodes, GPUs and how they are joined."""
    rows = []
    for node in topology.nodes:
        domains = ", ".join(f"{len(d.gpus)} by {d.link}" for d in node.domains)
        free = f"{len(node.free)} of {len(node.gpus)}"
        rows.append((node.name, node.gpu_type, f"{node.gpu_memory_gib:g} GiB", domains, free))
    return table("Topology", ("node", "GPU type", "memory", "GPUs joined", "free"), rows)


def bundles_tables(bundles: Sequence[Bundle]) -> list[Table]:
    """Bundles by GPU type, and whether an engine was measured."""
    made = []
    for gpu_type in dict.fromkeys(b.header.gpu_type for b in bundles):
        mine = [b for b in bundles if b.header.gpu_type == gpu_type]
        licences = sorted({b.header.licence for b in mine})
        rows = [_bundle_row(b) for b in mine]
        heads = ["model", "engine", "precision", "how", "TP", "share %", "points"]
        if len(licences) > 1:
            heads.append("licence")
            rows = [[*row, b.header.licence] for row, b in zip(rows, mine, strict=True)]
        title = f"Profile bundles of {gpu_type}"
        if len(licences) == 1:
            title += f", licence {licences[0]}"
        made.append(table(title, heads, rows, folding=("model", "engine", "licence")))
    return made


def _bundle_row(bundle: Bundle) -> list[str]:
    head, points = bundle.header, bundle.points
    return [
        head.model,
        f"{head.engine} {head.engine_version}",
        head.precision,
        head.how,
        ",".join(str(tp) for tp in sorted({p.tp_degree for p in points})),
        ",".join(str(share) for share in sorted({p.gpu_share_pct for p in points})),
        str(len(points)),
    ]


def profile_parts(result: ProfileResult) -> list[Any]:
    """What a profiling run wrote, or would submit."""
    parts: list[Any] = [*result.sbatch_texts]
    if result.bundles:
        parts += bundles_tables(result.bundles)
    what = f"{result.num_points} points" if result.num_points else "no points yet"
    parts.append(f"{what}; at most {result.gpu_hours:.2f} GPU-hours")
    parts += [f"skipped: {line}" for line in result.skipped]
    return parts


def imported_parts(summary: dict[str, Any]) -> list[Any]:
    """What was imported of each LLM, and its flags."""
    rows = [
        (
            llm,
            of["num_calls"],
            of["num_unfinished"],
            f"{of['input_tokens_mean']:,.0f}",
            f"{of['output_tokens_mean']:,.0f}",
        )
        for llm, of in summary["llms"].items()
    ]
    heads = ("LLM", "calls", "unfinished", "tokens\nin", "tokens\nout")
    made = table(f"Imported: {summary['num_runs']} runs", heads, rows)
    return [made, *(f"flag: {flag}" for flag in summary["flags"])]
