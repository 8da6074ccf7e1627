"""What the search is asked and what it answers: options, problem, solution."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from scepsy_hpc.formats.parallelism import Link, Parallelism
from scepsy_hpc.formats.plan import Instance
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.search.work import DEFAULT

Objective = Literal["min_cost", "max_throughput"]
Method = Literal["dp", "cp_sat"]


@dataclass(frozen=True, slots=True)
class Option:
    """One LLM with ``num_replicas`` replicas of one kind, and what that costs and yields.

    ``cost_s`` adds up over LLMs (its part of the mean latency of a run); infinite where a replica
    would be above the utilisation limit. ``throughput_rps`` is in runs of the workflow.
    """

    llm: str
    gpu_type: str
    link: Link | None
    tp_degree: int
    gpu_share_pct: int
    num_replicas: int
    cost_s: float
    throughput_rps: float
    payload: Any = None

    @property
    def kind(self) -> Parallelism:
        """What one replica takes."""
        return Parallelism(self.gpu_type, self.link, self.tp_degree, self.gpu_share_pct)


@dataclass(frozen=True, slots=True, eq=False)
class OptionTable:
    """The options of one LLM and kind at several replica counts; all arrays have one length.

    Tables are what the search reads: a thousand GPUs give hundreds of thousands of options, too
    many for one object each.
    """

    llm: str
    gpu_type: str
    link: Link | None
    tp_degree: int
    gpu_share_pct: int
    num_replicas: Ints
    cost_s: Floats
    throughput_rps: Floats
    payload: Any = None

    @property
    def kind(self) -> Parallelism:
        """What one replica takes."""
        return Parallelism(self.gpu_type, self.link, self.tp_degree, self.gpu_share_pct)

    def option(self, row: int) -> Option:
        """The option in that row."""
        return Option(
            self.llm,
            *self.kind,
            int(self.num_replicas[row]),
            float(self.cost_s[row]),
            float(self.throughput_rps[row]),
            self.payload,
        )


def tables_of(options: Iterable[Option]) -> tuple[OptionTable, ...]:
    """Group single options into tables (the payload of a table is that of its first option)."""
    groups: dict[tuple[str, Parallelism], list[Option]] = {}
    for option in options:
        groups.setdefault((option.llm, option.kind), []).append(option)
    return tuple(
        OptionTable(
            llm,
            *kind,
            num_replicas=np.array([o.num_replicas for o in group], dtype=np.int64),
            cost_s=np.array([o.cost_s for o in group], dtype=np.float64),
            throughput_rps=np.array([o.throughput_rps for o in group], dtype=np.float64),
            payload=group[0].payload,
        )
        for (llm, kind), group in groups.items()
    )


@dataclass(frozen=True, slots=True)
class SearchProblem:
    """Choose one option per LLM so that all replicas fit the free GPUs of the topology.

    ``min_cost``: the smallest sum of costs among options that reach ``min_throughput_rps``.
    ``max_throughput``: the largest smallest throughput over LLMs; ties by cost.
    ``max_gpus`` and ``max_cost_s`` limit either. ``within_pct``: of all choices whose value is
    within that many percent of the best, one on the fewest GPUs; costs count for that with
    ``constant_s`` (tool time), which is the same for all. ``work_limit`` is in the units of
    ``Work``; with a ``time_limit_s`` the clock decides instead, and so the machine.
    """

    tables: tuple[OptionTable, ...]
    topology: Topology
    objective: Objective = "min_cost"
    min_throughput_rps: float = 0.0
    max_gpus: int | None = None
    max_cost_s: float | None = None
    within_pct: float | None = None
    constant_s: float = 0.0
    work_limit: float = DEFAULT
    time_limit_s: float | None = None

    @property
    def llms(self) -> tuple[str, ...]:
        """LLMs in order of first appearance."""
        return tuple(dict.fromkeys(table.llm for table in self.tables))


class FrontierPoint(NamedTuple):
    """Best value known on at most ``num_gpus`` GPUs, and a bound on it.

    ``value`` is None where no choice that fits was looked for or found; equal to ``bound`` means
    that it is proved best.
    """

    num_gpus: int
    value: float | None
    bound: float


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer. ``chosen`` is empty when there is none; ``refused`` then says why.

    ``value`` is what the objective asks for (cost in s, or throughput in rps) and ``best_value``
    that of the best choice found; ``given_up_pct`` of it was traded for fewer GPUs
    (``within_pct``). ``bound`` is what no choice can beat, ``gap`` |best_value - bound| / |bound|,
    and ``proved`` says that the gap is rounding: nothing is better than the best.
    ``proved_fewest``: no fewer GPUs are within ``within_pct``. ``proved_infeasible`` is False when
    an empty answer only means that the work ran out. ``work``: what was done, in units of ``Work``.
    """

    chosen: dict[str, Option]
    instances: tuple[Instance, ...]
    value: float
    bound: float
    gap: float
    cost_s: float
    throughput_rps: float
    num_gpus: int
    method: Method
    frontier: tuple[FrontierPoint, ...] = ()
    refused: str | None = None
    proved_infeasible: bool = False
    nearest_throughput_rps: float | None = None
    nearest_cost_s: float | None = None
    nearest_num_gpus: int | None = None
    best_value: float = math.nan
    best_num_gpus: int = 0
    given_up_pct: float = 0.0
    proved: bool = False
    proved_fewest: bool = True
    work: float = 0.0

    @property
    def is_feasible(self) -> bool:
        """Whether there is an answer."""
        return bool(self.chosen)
