"""When runs come: all at once with room for so many, or as a Poisson process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.pipeline.of_plan import rates_in
from scepsy_hpc.planning.simulation.run_graph import RunGraph


@dataclass(frozen=True, slots=True)
class Closed:
    """A batch: ``num_runs`` in all, at most ``max_in_flight`` at a time, the first at once."""

    num_runs: int
    max_in_flight: int

    def __post_init__(self) -> None:
        if self.num_runs < 1 or self.max_in_flight < 1:
            raise InputError(
                f"num_runs ({self.num_runs}) and max_in_flight ({self.max_in_flight}) must be at "
                "least 1"
            )


@dataclass(frozen=True, slots=True)
class Open:
    """``num_runs`` Poisson arrivals at ``rate_rps`` runs per second, into an idle system."""

    num_runs: int
    rate_rps: float

    def __post_init__(self) -> None:
        if self.num_runs < 1:
            raise InputError(f"num_runs ({self.num_runs}) must be at least 1")
        if not (math.isfinite(self.rate_rps) and self.rate_rps > 0):
            raise InputError(f"rate_rps ({self.rate_rps}) must be finite and greater than 0")


Arrivals = Closed | Open


def arrivals_of(
    plan: Plan,
    arrivals: Arrivals | Mapping[str, Arrivals],
    graphs: Mapping[str, Sequence[RunGraph]],
) -> dict[str, Arrivals]:
    """Arrivals of each workflow; open ones for all are split by the plan's mix of rates.

    Raises InputError.
    """
    empty = [name for name, mine in graphs.items() if not mine]
    if not graphs or empty:
        raise InputError(
            f"workflow {', '.join(empty) or '(none given)'}: has no spans to simulate; record some "
            "with `scepsy trace`"
        )
    if isinstance(arrivals, Closed | Open):
        if len(graphs) == 1:
            return dict.fromkeys(graphs, arrivals)
        if isinstance(arrivals, Closed):
            raise InputError(
                f"arrivals: a batch of several workflows ({', '.join(graphs)}) needs its number "
                "of runs and its runs in flight for each"
            )
        return dict(_split(plan, arrivals, list(graphs)))
    if set(arrivals) != set(graphs):
        raise InputError(
            f"arrivals: are for {', '.join(sorted(arrivals))}; spans are for "
            f"{', '.join(sorted(graphs))}"
        )
    return dict(arrivals)


def _split(plan: Plan, arrivals: Open, names: Sequence[str]) -> dict[str, Open]:
    mix = rates_in(plan)
    total_rps = sum(mix[name] for name in names)
    parts = {name: mix[name] / total_rps for name in names}
    return {
        name: Open(max(round(arrivals.num_runs * part), 1), arrivals.rate_rps * part)
        for name, part in parts.items()
    }
