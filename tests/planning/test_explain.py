"""Why a plan is what it is, in lines for people."""

from __future__ import annotations

from planning_cases import (
    cluster,
    gpus_of_plan,
    request_for,
)

from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.targets import Rate


def test_the_frontier_is_drawn() -> None:
    """The explanation plots latency by GPUs in at most eight bars, this plan's marked."""
    plan = make_plan(request_for(Rate(1.0), topology=cluster(num_nodes=4)))
    first = next(i for i, line in enumerate(plan.explanation) if line.startswith("frontier"))
    bars = [line for line in plan.explanation[first + 1 :] if "\u2588" in line]
    assert 4 <= len(bars) <= 8
    lengths = [line.count("\u2588") for line in bars]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]
    marked = [line for line in bars if line.startswith(">")]
    assert [int(line.split()[1]) for line in marked] == [gpus_of_plan(plan)]
