"""Tables for the terminal. Seconds are printed as such; unknown is a dash, never a zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scepsy_hpc.planning.plan import Plan, Predicted, WorkflowFigures

if TYPE_CHECKING:  # these bring servers and cluster modules along, which planning does not need
    from scepsy_hpc.bundles.bundle import Bundle
    from scepsy_hpc.cluster.topology import Topology
    from scepsy_hpc.planning.simulated import SimulationResult
    from scepsy_hpc.profiling.array import ProfileResult
    from scepsy_hpc.report.comparison import Comparison
    from scepsy_hpc.report.doctor import Finding
    from scepsy_hpc.tracing.demand import Demand

LOG_WIDTH = 140
_plain = Console(highlight=False)
# In a log or a pipe there is no width to fit into; folded words would be worse.
console = _plain if _plain.is_terminal else Console(highlight=False, width=LOG_WIDTH)


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit; a dash when unknown."""
    return "-" if value is None else f"{value:.{digits}g}{' ' if unit else ''}{unit}"


def pct(value: float | None) -> str:
    """A fraction as percent; a dash when unknown."""
    return "-" if value is None else f"{100 * value:.0f} %"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table; columns that hold figures only are aligned to the right."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        figures = bool(rows) and all(_is_figure(str(row[index])) for row in rows)
        made.add_column(column, justify="right" if figures else "left", no_wrap=index == 0)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def _is_figure(cell: str) -> bool:
    return cell == "-" or (bool(cell) and (cell[0].isdigit() or cell[0] in "+-<"))


def show(*parts: Any) -> None:
    """Print tables and lines; a folded line keeps its words."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))


def topology_table(topology: Topology) -> Table:
    """Nodes, GPUs and how they are joined."""
    rows = []
    for node in topology.nodes:
        domains = ", ".join(f"{len(d.gpus)} by {d.link}" for d in node.domains)
        free = f"{len(node.free)} of {len(node.gpus)}"
        rows.append((node.name, node.gpu_type, f"{node.gpu_memory_gib:g} GiB", domains, free))
    return table("Topology", ("node", "GPU type", "memory", "GPUs joined", "free"), rows)


def demand_parts(demand: Demand) -> list[Any]:
    """What the spans say about each LLM, each role where there are several, and the warnings."""
    rows = []
    for alias, llm in demand.llms.items():
        rows.append(
            (
                alias,
                number(llm.calls_per_run),
                number(llm.parallelism),
                pct(llm.share_mean),
                "-" if llm.share_cv is None else f"{llm.share_cv:.2f}",
                number(llm.duration_s.mean, "s"),
                number(llm.input_tokens.mean, digits=4),
                number(llm.output_tokens.mean, digits=4),
            )
        )
    title = (
        f"Demand of {demand.workflow}: {demand.num_runs} runs of "
        f"{number(demand.run_length_mean_s, 's')}, {number(demand.tool_time_s, 's')} of it outside "
        f"LLMs, overlap {demand.overlap:.2f}"
    )
    heads = (
        *("LLM", "calls/run", "parallelism", "share of LLM time", "CV of it"),
        *("call latency", "tokens in", "tokens out"),
    )
    return [table(title, heads, rows), *_roles(demand), *(f"note: {f}" for f in demand.flags)]


def _roles(demand: Demand) -> list[Table]:
    rows = [
        (
            alias,
            role,
            number(of.calls_per_run),
            number(of.duration_mean_s, "s"),
            number(of.input_tokens_mean, digits=4),
            number(of.output_tokens_mean, digits=4),
        )
        for alias, llm in demand.llms.items()
        if len(llm.roles) > 1
        for role, of in llm.roles.items()
    ]
    heads = ("LLM", "role", "calls/run", "call latency", "tokens in", "tokens out")
    return [table("Roles", heads, rows)] if rows else []


def bundles_table(bundles: Sequence[Bundle]) -> Table:
    """Bundles and whether an engine was measured."""
    rows = []
    for bundle in bundles:
        head, points = bundle.header, bundle.points
        rows.append(
            (
                head.gpu_type,
                head.model,
                f"{head.engine} {head.engine_version}",
                head.precision,
                head.how,
                ", ".join(str(tp) for tp in sorted({p.tp_degree for p in points})),
                ", ".join(str(share) for share in sorted({p.gpu_share_pct for p in points})),
                len(points),
                head.licence,
            )
        )
    heads = (
        *("GPU type", "model", "engine", "precision", "how", "TP", "shares, %"),
        *("points", "licence"),
    )
    return table("Profile bundles", heads, rows)


def deployments_table(plan: Plan) -> Table:
    """What each LLM got."""
    rows = []
    for name, llm in plan.llms.items():
        figures = plan.predicted.per_llm.get(name) if plan.predicted else None
        places = sorted({i.node for i in plan.instances if i.llm == name})
        rows.append(
            (
                name,
                llm.model,
                f"{llm.engine} {llm.engine_version or ''}".strip(),
                llm.gpu_type,
                llm.tp_degree,
                f"{llm.gpu_share_pct} %",
                llm.num_replicas,
                pct(figures.utilisation if figures else None),
                number(figures.latency_mean_s if figures else None, "s"),
                pct(figures.share_of_latency if figures else None),
                ", ".join(places),
            )
        )
    heads = (
        *("LLM", "model", "engine", "GPU type", "TP", "share", "replicas"),
        *("utilisation", "call latency", "of latency", "nodes"),
    )
    return table("Deployments", heads, rows)


def predicted_table(predicted: Predicted, title: str = "Predicted") -> Table:
    """Throughput and latency, whole and by workflow."""
    rows = []
    parts: dict[str, Predicted | WorkflowFigures] = {**predicted.per_workflow}
    for name, part in (parts or {"all": predicted}).items():
        rows.append(
            (
                name,
                number(part.throughput_rps, "runs/s"),
                number(part.latency_mean_s, "s"),
                number(part.latency_p50_s, "s"),
                number(part.latency_p95_s, "s"),
                number(part.makespan_s, "s"),
            )
        )
    heads = ("workflow", "throughput", "mean latency", "p50", "p95", "makespan")
    return table(title, heads, rows)


def llm_table(predicted: Predicted) -> Table:
    """Utilisation and call latency of each deployment."""
    rows = [
        (name, pct(f.utilisation), number(f.latency_mean_s, "s"), pct(f.share_of_latency))
        for name, f in predicted.per_llm.items()
    ]
    return table("Deployments", ("LLM", "utilisation", "call latency", "of latency"), rows)


def simulated_table(found: SimulationResult) -> Table:
    """Simulated figures with their 95% intervals."""
    rows = []
    for name, flow in found.per_workflow.items():
        for label, key, unit in (
            ("throughput", "throughput_rps", "runs/s"),
            ("mean latency", "latency_mean_s", "s"),
            ("p50 latency", "latency_p50_s", "s"),
            ("p95 latency", "latency_p95_s", "s"),
            ("p99 latency", "latency_p99_s", "s"),
            ("makespan", "makespan_s", "s"),
        ):
            low, high = flow.intervals.get(key, (None, None))
            between = "-" if low is None else f"{number(low)} to {number(high)}"
            rows.append((name, label, number(getattr(flow, key), unit), between))
    title = f"Simulated, not measured: {found.num_runs} runs, seed {found.seed}"
    return table(title, ("workflow", "figure", "value", "95% interval"), rows)


def comparison_table(comparison: Comparison) -> Table:
    """Predicted beside measured."""
    rows = [
        (
            row.workflow,
            row.metric,
            number(row.pipeline, row.unit),
            number(row.simulation, row.unit),
            number(row.measured, row.unit),
            signed_pct(row.pipeline_error),
            signed_pct(row.simulation_error),
            pct(row.noise),
        )
        for row in comparison.rows
    ]
    heads = (
        *("workflow", "figure", "pipeline", "simulation", "measured"),
        *("error, pipeline", "error, simulation", "noise floor"),
    )
    return table("Predicted and measured", heads, rows)


def signed_pct(value: float | None) -> str:
    """A relative error with its sign; a dash when unknown."""
    return "-" if value is None else f"{100 * value:+.1f} %"


def profile_parts(result: ProfileResult) -> list[Any]:
    """What a profiling run wrote, or would submit."""
    parts: list[Any] = [*result.sbatch_texts]
    if result.bundles:
        parts.append(bundles_table(result.bundles))
    what = f"{result.num_points} points" if result.num_points else "no points yet"
    parts.append(f"{what}; at most {result.gpu_hours:.2f} GPU-hours")
    parts += [f"skipped: {line}" for line in result.skipped]
    return parts


def findings_parts(findings: Sequence[Finding]) -> list[str]:
    """What `doctor` found, a few lines each: long texts do not fit columns."""
    parts = []
    for f in findings:
        lines = [f"{f.state:8} {f.what}: {f.detail}"]
        if f.state != "ok":
            lines.append(f"         needed for: {f.needed_for}")
        if f.fix:
            lines.append(f"         fix: {f.fix}")
        parts.append("\n".join(lines))
    return parts


def status_tables(status: dict[str, Any]) -> list[Any]:
    """Progress of a run."""
    counts = status.get("tasks")
    parts: list[Any] = [f"state: {status['state']}; tasks recorded: {status['recorded']}"]
    if counts:
        parts.append("tasks: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in counts.items()))
    if status.get("url"):
        parts.append(f"endpoint: {status['url']} (put any name for RUN_ID)")
    rows = [
        (
            i["id"],
            i["llm"],
            i["state"],
            i["host"],
            ",".join(i["gpus"]),
            i["starts"],
            i["calls_in_flight"],
            i["num_calls"],
        )
        for i in status.get("instances", [])
    ]
    if rows:
        heads = ("instance", "LLM", "state", "host", "GPUs", "starts", "in flight", "calls")
        parts.append(table("Instances", heads, rows))
    parts += [f"{i['id']}: {i['error']}" for i in status.get("instances", []) if i.get("error")]
    return parts
