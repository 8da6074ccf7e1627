"""Plots as SVG text, to stand inside one HTML file. Every axis carries its unit."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.metrics import Floats

COLOURS = ("#3b6fb6", "#d9822b", "#4c9a5f", "#a8485a", "#7a5ea8", "#6d6d6d")
_DIGITS = re.compile(r"(\d+)")
SIZE_IN = (6.4, 3.0)
MOST_POINTS = 400
"""Of one line: enough for the eye, and the file stays small however long the batch."""


def colour_of(names: Sequence[str]) -> dict[str, str]:
    """One colour a name, the same in every plot of a report."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(sorted(set(names)))}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Glyphs as text keep the file small and searchable; no date, so that equal data is equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scepsy"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def _axes(title: str, x: str, y: str, size: tuple[float, float] = SIZE_IN) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def latency_distribution(
    measured_s: Mapping[str, Sequence[float]], predicted_s: Mapping[str, float]
) -> str:
    """Share of runs that ended within a time, by name; predicted figures as upright lines."""
    figure, axes = _axes("Run latency, measured", "seconds", "share of runs that ended")
    for (name, values), colour in zip(measured_s.items(), COLOURS, strict=False):
        times, shares = _ended_within(values)
        label = f"{name} ({len(values)} runs)"
        axes.step(
            [0.0, *times], [0.0, *shares], where="post", label=label, color=colour, linewidth=1.6
        )
    for (name, value), dashes in zip(predicted_s.items(), ("--", ":", "-."), strict=False):
        axes.axvline(value, color="#444444", linestyle=dashes, linewidth=1.1, label=name)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _svg(figure)


def _ended_within(values: Sequence[float]) -> tuple[Floats, Floats]:
    """Times in order and the share of values up to each; of many, evenly picked ones."""
    ordered, number = np.sort(np.asarray(values, dtype=float)), len(values)
    picked = np.unique(np.linspace(1, number, min(number, MOST_POINTS)).round().astype(int))
    return ordered[picked - 1], picked / number


def calls_in_flight(spans: Sequence[Span]) -> str:
    """Calls in flight of each LLM over the batch, as the mean of short equal times."""
    calls = [s for s in spans if s.kind == "llm" and s.llm]
    origin_s = min((c.start_s for c in calls), default=0.0)
    length_s = max((c.end_s for c in calls), default=origin_s + 1.0) - origin_s
    edges = np.linspace(0.0, max(length_s, 1e-6), MOST_POINTS + 1)
    title = f"Calls in flight, means of {edges[1]:.2g} s"
    figure, axes = _axes(title, "seconds since the first call", "calls")
    for name, colour in colour_of([c.llm or "" for c in calls]).items():
        mine = np.array([(c.start_s, c.end_s) for c in calls if c.llm == name]) - origin_s
        level = _mean_level(mine[:, 0], mine[:, 1], edges)
        axes.stairs(level, edges, color=colour, label=name, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    # Beside the lines: there is no corner that is always free.
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def _mean_level(starts: Floats, ends: Floats, edges: Floats) -> Floats:
    """Mean number of calls under way between two edges each."""
    # Time spent in calls until each edge, then its differences.
    spent = np.array(
        [np.clip(edge - starts, 0.0, ends - starts).sum() for edge in edges], dtype=float
    )
    return np.diff(spent) / np.diff(edges)


def placement(plan: Plan) -> str:
    """GPUs as columns, node by node, filled by the shares of the instances placed on them."""
    used = {(i.node, gpu) for i in plan.instances for gpu in i.gpus}
    gpus = sorted(used, key=lambda at: (_natural(at[0]), at[1]))
    colours = colour_of(list(plan.llms))
    width = max(4.2, 0.5 * len(gpus) + 2.4)
    figure, axes = _axes("Placement (nodes of the plan)", "", "share of the GPU, %", (width, 2.9))
    base = dict.fromkeys(gpus, 0.0)
    for instance in sorted(plan.instances, key=lambda i: (-len(i.gpus), i.llm, _natural(i.id))):
        for gpu in instance.gpus:
            at, share = (instance.node, gpu), instance.gpu_share_pct
            axes.bar(
                gpus.index(at),
                share,
                bottom=base[at],
                color=colours[instance.llm],
                width=0.86,
                edgecolor="white",
                linewidth=1.2,
            )
            label = f"TP {len(instance.gpus)}" if len(instance.gpus) > 1 else ""
            middle = base[at] + share / 2.0
            axes.text(
                gpus.index(at), middle, label, ha="center", va="center", fontsize=7, color="white"
            )
            base[at] += share
    axes.set_xticks(range(len(gpus)), [f"GPU {gpu}" for _, gpu in gpus], fontsize=7)
    _name_nodes(axes, [node for node, _ in gpus])
    axes.set_xlim(-0.6, max(len(gpus), 3) - 0.4)
    axes.set_ylim(0, max(100, *base.values()))
    handles = [Patch(color=c, label=name) for name, c in colours.items()]
    axes.legend(
        handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    return _svg(figure)


def _name_nodes(axes: Any, nodes: Sequence[str]) -> None:
    """Each node's name once, under the middle of its GPUs, and a gap line between nodes."""
    for node in dict.fromkeys(nodes):
        first, count = nodes.index(node), nodes.count(node)
        axes.annotate(
            node,
            (first + (count - 1) / 2.0, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -24),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            annotation_clip=False,
        )
        if first:
            axes.axvline(first - 0.5, color="#b9c0c9", linewidth=0.8)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: node2 before node10."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in _DIGITS.split(name)]
