"""Why the plan is what it is, in lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.offers import Offers
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.search.problem import Option, OptionTable

_MOST_REFUSALS = 4
_MOST_BARS = 8
_BAR = 32  # characters of the longest bar
_NO_CHANGE = "no change"


def explain(
    choice: Choice,
    offers: Mapping[str, Offers],
    predicted: Figures,
    demands: Mapping[str, WorkflowDemand],
) -> tuple[str, ...]:
    """One line per LLM, then the target's notes, the frontier, and what was refused and why."""
    lines = [_llm_line(choice, name, offers[name], predicted) for name in choice.solution.chosen]
    lines += choice.notes
    lines += _frontier(choice)
    for offer in offers.values():
        lines += offer.refused[:_MOST_REFUSALS]
        if len(offer.refused) > _MOST_REFUSALS:
            lines.append(f"  and {len(offer.refused) - _MOST_REFUSALS} more refused")
    for demand in demands.values():
        lines += demand.warnings
    return tuple(lines)


def _llm_line(choice: Choice, name: str, offers: Offers, predicted: Figures) -> str:
    option = choice.solution.chosen[name]
    figures = predicted.per_llm[name]
    share = figures.share_of_latency
    said = [f"evidence {offers.of(option.payload).evidence.label}"]
    if share is not None:
        said.append(f"{100 * share:.0f}% of the latency of a run")
    if figures.utilisation is not None:
        said.append(f"{100 * figures.utilisation:.0f}% utilised")
    text = f"{name}: {', '.join(said)}"
    if not choice.tables:
        return text
    more, less = _neighbour(choice, option, +1), _neighbour(choice, option, -1)
    text += f"; one GPU more: {more}; one less: {less}"
    return text + (_first_gain(choice, option) if more == _NO_CHANGE else "")


def gpus_of(table: OptionTable | Option) -> float:
    """GPUs that one replica takes."""
    return table.tp_degree * table.gpu_share_pct / 100.0


def _best_cost_s(choice: Choice, llm: str, most_gpus: float) -> float:
    """Least cost of one LLM on at most so many GPUs; infinite where the rate is out of reach."""
    best = np.inf
    for table in choice.tables:
        if table.llm == llm:
            fitting = table.num_replicas * gpus_of(table) <= most_gpus + 1e-9
            if np.any(fitting):
                best = min(best, float(table.cost_s[fitting].min()))
    return float(best)


def _change_pct(choice: Choice, option: Option, cost_s: float) -> float:
    total_s = choice.pipeline.mean_latency_s(choice.solution.cost_s)
    return 100.0 * (cost_s - option.cost_s) / total_s if total_s > 0 else 0.0


def _neighbour(choice: Choice, option: Option, step: int) -> str:
    """What the best option of that LLM with one GPU more or less would do to the run's latency."""
    most = option.num_replicas * gpus_of(option) + step
    best_s = _best_cost_s(choice, option.llm, most)
    if not np.isfinite(best_s):
        return "the rate is out of reach"
    change = _change_pct(choice, option, best_s)
    return f"{change:+.1f}% latency" if abs(change) >= 0.05 else _NO_CHANGE


def _first_gain(choice: Choice, option: Option) -> str:
    """The first number of GPUs more that is worth a percent: groups grow in steps."""
    used = option.num_replicas * gpus_of(option)
    for step in (2, 4, 8, 16):
        best_s = _best_cost_s(choice, option.llm, used + step)
        change = _change_pct(choice, option, best_s)
        if np.isfinite(best_s) and change <= -1.0:
            return f"; {step} more: {change:+.1f}%"
    return ""


def _frontier(choice: Choice) -> list[str]:
    """Number of GPUs against the best figure on them, as bars."""
    frontier, used = choice.known_frontier, choice.solution.num_gpus
    if not frontier.points:
        return []
    picked = _picked(sorted(frontier.points), used)
    longest = max(frontier.points[g] for g in picked) or 1.0  # without calls and tools 0 s
    lines = [f"frontier: {frontier.what} by number of GPUs (> this plan's)"]
    for gpus in picked:
        value = frontier.points[gpus]
        bar = "\u2588" * max(round(_BAR * value / longest), 1)
        shown = f"{value:.4g} {frontier.unit}"
        lines.append(f"{'>' if gpus == used else ' '} {gpus:>5}  {shown:>14}  {bar}")
    return lines


def _picked(counts: Sequence[int], used: int) -> list[int]:
    """A few numbers of GPUs, closer together where they are small, and the plan's own."""
    if len(counts) <= _MOST_BARS:
        return list(counts)
    wanted = np.geomspace(counts[0], counts[-1], _MOST_BARS - (used in counts))
    nearest = {counts[int(np.abs(np.array(counts) - x).argmin())] for x in wanted}
    return sorted(nearest | ({used} & set(counts)))
