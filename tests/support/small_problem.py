"""A workflow of two LLMs on a few GPUs, and every allocation of it, by closed form.

Each replica here is an M/M/1 server: one that does ``RATES`` calls a second alone takes 1 / (rate -
load) seconds a call, so all that a choice says can be worked out without the planner.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from planning_cases import bundle, calls, cluster, demand, point, workflow

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.choose import choose
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Limits, Rate, Target

RATES = {"a": {1: 1.0, 2: 1.7}, "b": {1: 3.0, 2: 4.0}}  # calls per second by TP degree
CALLS = {"a": 1.0, "b": 2.0}
TOOL_S = 0.5
NUM_GPUS = 6


@dataclass(frozen=True)
class Allocation:
    """TP degree and replicas of each LLM."""

    kinds: tuple[tuple[str, int, int], ...]

    @property
    def num_gpus(self) -> int:
        return sum(tp * replicas for _, tp, replicas in self.kinds)

    @property
    def capacity_rps(self) -> float:
        return min(replicas * RATES[llm][tp] / CALLS[llm] for llm, tp, replicas in self.kinds)

    def latency_s(self, rate_rps: float) -> float:
        """Tools, and each LLM's calls one after the other; infinite above 95% of capacity."""
        if rate_rps > 0.95 * self.capacity_rps:
            return math.inf
        return TOOL_S + sum(
            CALLS[llm] / (RATES[llm][tp] - CALLS[llm] * rate_rps / replicas)
            for llm, tp, replicas in self.kinds
        )

    def highest_rps(self, limit_s: float) -> float:
        """The highest rate whose latency is within the limit, by bisection; 0 where none is."""
        low, high = 0.0, 0.95 * self.capacity_rps
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.latency_s(middle) <= limit_s else (low, middle)
        return low if self.latency_s(low) <= limit_s else 0.0


def allocations(num_gpus: int = NUM_GPUS, llms: str = "ab") -> Iterator[Allocation]:
    """Every allocation on so many GPUs of one NVLink domain."""
    kinds = [(tp, replicas) for tp in (1, 2) for replicas in range(1, num_gpus // tp + 1)]
    for chosen in itertools.product(kinds, repeat=len(llms)):
        found = Allocation(tuple((llm, *kind) for llm, kind in zip(llms, chosen, strict=True)))
        if found.num_gpus <= num_gpus:
            yield found


def allocation(choice: Choice) -> Allocation:
    """What was chosen."""
    return Allocation(
        tuple((name, o.tp_degree, o.num_replicas) for name, o in choice.solution.chosen.items())
    )


def problem(
    target: Target = Rate(1.0),  # noqa: B008
    limits: Limits | None = None,
    llms: str = "ab",
    num_gpus: int = NUM_GPUS,
    spans: list[Span] | None = None,
    lengths_s: tuple[float, ...] = (),
    tool_s: float = TOOL_S,
    within_pct: float = 0.0,
) -> PlanningProblem:
    """One workflow that calls these LLMs on a node of so many GPUs; the very best is asked for."""
    flow = workflow("w", {x: Llm(model=f"org/{x}", gpu_shares_pct=(100,)) for x in llms})
    bundles = [
        bundle(
            [point(1, rate, tp_degree=tp) for tp, rate in RATES[x].items()],
            model=f"org/{x}",
            link="nvlink",
        )
        for x in llms
    ]
    needs = demand({x: calls(CALLS[x]) for x in llms}, tool_time_s=tool_s, run_lengths_s=lengths_s)
    request = PlanRequest(
        [(flow, None)],
        bundles,
        cluster(gpus=num_gpus),
        target,
        replace(limits or Limits(), within_pct=within_pct),
        spans={"w": spans} if spans else {},
        demands={"w": needs},
    )
    return PlanningProblem.of(request)


def chosen(target: Target, limits: Limits | None = None, **more: object) -> Choice:
    """The choice for a target."""
    return choose(problem(target, limits, **more), target)  # type: ignore[arg-type]


def refusal(target: Target, limits: Limits | None = None, **more: object) -> str:
    """What is said where nothing meets the target."""
    with pytest.raises(InfeasibleError) as caught:
        chosen(target, limits, **more)
    return str(caught.value)
