"""When runs come: all at once with room for so many, as a Poisson process, or at given times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.pipeline.of_plan import rates_in
from scepsy_hpc.planning.simulation.run_graph import RunGraph


@dataclass(frozen=True, slots=True)
class Closed:
    """A batch: ``num_runs`` in all, at most ``max_in_flight`` at a time, the first at once.

    Without ``num_runs`` it goes on for ever: a steady state.
    """

    num_runs: int | None
    max_in_flight: int

    def __post_init__(self) -> None:
        if (self.num_runs is not None and self.num_runs < 1) or self.max_in_flight < 1:
            raise InputError(
                f"num_runs ({self.num_runs}) and max_in_flight ({self.max_in_flight}) must be at "
                "least 1"
            )


@dataclass(frozen=True, slots=True)
class Open:
    """``num_runs`` Poisson arrivals at ``rate_rps`` runs per second, into an idle system.

    Without ``num_runs`` they go on for ever: a steady state.
    """

    num_runs: int | None
    rate_rps: float

    def __post_init__(self) -> None:
        if self.num_runs is not None and self.num_runs < 1:
            raise InputError(f"num_runs ({self.num_runs}) must be at least 1")
        if not (math.isfinite(self.rate_rps) and self.rate_rps > 0):
            raise InputError(f"rate_rps ({self.rate_rps}) must be finite and greater than 0")


@dataclass(frozen=True, slots=True)
class Timed:
    """Runs that come at these times (s), which do not descend; into an idle system."""

    times_s: Sequence[float]

    def __post_init__(self) -> None:
        if not self.times_s:
            raise InputError("arrivals: no times; a simulation needs at least one run")
        last_s = -math.inf
        for number, time_s in enumerate(self.times_s, start=1):
            if not math.isfinite(time_s) or time_s < last_s:
                raise InputError(
                    f"arrivals: time {number} ({time_s}) must be finite and not before the one "
                    f"ahead of it ({last_s})"
                )
            last_s = time_s

    @property
    def num_runs(self) -> int:
        """Runs that come."""
        return len(self.times_s)


Arrivals = Closed | Open | Timed


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
    if isinstance(arrivals, Closed | Open | Timed):
        if len(graphs) == 1:
            return dict.fromkeys(graphs, arrivals)
        if isinstance(arrivals, Closed):
            raise InputError(
                f"arrivals: a batch of several workflows ({', '.join(graphs)}) needs its number "
                "of runs and its runs in flight for each"
            )
        if isinstance(arrivals, Timed):
            raise InputError(
                f"arrivals: times of several workflows ({', '.join(graphs)}) need to name theirs"
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
    found = {}
    for name, part in parts.items():
        mine = replace(arrivals, rate_rps=arrivals.rate_rps * part)
        if arrivals.num_runs is not None:
            mine = replace(mine, num_runs=max(round(arrivals.num_runs * part), 1))
        found[name] = mine
    return found
