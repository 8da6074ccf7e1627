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

from scepsy_hpc.planning.plan import Plan
from scepsy_hpc.tracing.spans import Span

COLOURS = ("#3b6fb6", "#d9822b", "#4c9a5f", "#a8485a", "#7a5ea8", "#6d6d6d")
SIZE_IN = (6.4, 3.0)


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


def latency_distribution(measured_s: Mapping[str, Sequence[float]]) -> str:
    """Share of runs that ended within a time; one line for each named set of run latencies."""
    figure, axes = _axes("Run latency", "seconds", "share of runs that ended")
    for (name, values), colour in zip(measured_s.items(), COLOURS, strict=False):
        ordered = np.sort(np.asarray(values, dtype=float))
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, shares, where="post", label=f"{name} (n={len(ordered)})", color=colour)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _svg(figure)


def calls_in_flight(spans: Sequence[Span]) -> str:
    """Calls in flight of each LLM over the batch."""
    calls = [s for s in spans if s.kind == "llm" and s.llm]
    figure, axes = _axes("Calls in flight", "seconds since the first call", "calls")
    origin_s = min((c.start_s for c in calls), default=0.0)
    for name, colour in colour_of([c.llm or "" for c in calls]).items():
        events = sorted(
            event
            for c in calls
            if c.llm == name
            for event in ((c.start_s - origin_s, 1), (c.end_s - origin_s, -1))
        )
        times = [0.0, *(t for t, _ in events)]
        axes.step(
            times,
            np.cumsum([0, *(d for _, d in events)]),
            where="post",
            color=colour,
            label=name,
            linewidth=1.1,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def placement(plan: Plan) -> str:
    """GPUs as columns, filled by the shares of the instances placed on them."""
    gpus = sorted({(i.node, gpu) for i in plan.instances for gpu in i.gpus})
    colours = colour_of(list(plan.llms))
    width = max(3.2, min(0.75 * len(gpus) + 1.6, 12.0))
    figure, axes = _axes("Placement", "", "share of the GPU, percent", (width, 2.8))
    base = dict.fromkeys(gpus, 0.0)
    for instance in sorted(plan.instances, key=lambda i: (-len(i.gpus), i.llm, i.id)):
        for gpu in instance.gpus:
            at = gpus.index((instance.node, gpu))
            share = instance.gpu_share_pct
            axes.bar(
                at,
                share,
                bottom=base[gpus[at]],
                color=colours[instance.llm],
                width=0.82,
                edgecolor="white",
                linewidth=1.2,
            )
            base[gpus[at]] += share
    axes.set_xticks(range(len(gpus)), [f"{node}\nGPU {gpu}" for node, gpu in gpus], fontsize=7)
    axes.set_ylim(0, 100)
    handles = [Patch(color=c, label=name) for name, c in colours.items()]
    axes.legend(
        handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    return _svg(figure)
