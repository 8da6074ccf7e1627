"""From a target to a choice."""

from __future__ import annotations

import pytest
from planning_cases import (
    gpus_of_plan,
    request_for,
)

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate


def test_more_gpus_never_hurt() -> None:
    """The lowest latency falls, or stays, as GPUs are allowed."""
    found = [
        make_plan(request_for(Rate(1.0), limits=Limits(num_gpus=n))).predicted
        for n in (2, 3, 4, 6, 8)
    ]
    latencies = [f.latency_mean_s for f in found if f is not None and f.latency_mean_s is not None]
    assert len(latencies) == 5
    assert latencies == sorted(latencies, reverse=True)


def test_no_replica_above_95_percent() -> None:
    """The highest rate leaves every replica at or under 95%, the busiest of them at it."""
    plan = make_plan(request_for(MaxThroughput()))
    assert plan.predicted is not None
    busy = [f.utilisation or 0.0 for f in plan.predicted.per_llm.values()]
    assert max(busy) == pytest.approx(0.95, rel=1e-6)
    assert max(busy) <= 0.95 + 1e-9
    assert plan.certificate is not None
    assert plan.certificate.metric == "throughput_rps"
    assert plan.certificate.value == pytest.approx(plan.predicted.throughput_rps)
    assert plan.workflows[0].rate_rps == pytest.approx(0.95 * plan.certificate.value, rel=1e-6)


def test_highest_rate_under_a_latency_limit() -> None:
    """With a latency limit the highest rate keeps it, and a little more would not."""
    free = make_plan(request_for(MaxThroughput()))
    idle = make_plan(request_for(Rate(0.01))).predicted
    assert idle is not None
    assert idle.latency_mean_s is not None
    limit_s = 1.2 * idle.latency_mean_s
    held = make_plan(request_for(MaxThroughput(), limits=Limits(latency_limit_s=limit_s)))
    assert held.predicted is not None
    assert held.predicted.latency_mean_s is not None
    assert held.predicted.latency_mean_s <= limit_s
    rate = held.workflows[0].rate_rps
    assert rate is not None
    assert rate < (free.workflows[0].rate_rps or 0.0)
    with pytest.raises(InfeasibleError, match="nearest feasible limit"):
        make_plan(request_for(Rate(1.01 * rate), limits=Limits(latency_limit_s=limit_s)))


def test_within_uses_fewer_gpus() -> None:
    """Within 10% of the best mean latency: fewer GPUs, no more than 10% slower, said so."""
    best, few = (
        make_plan(request_for(Rate(1.0))),
        make_plan(request_for(Rate(1.0), limits=Limits(within_pct=10.0))),
    )
    assert best.predicted is not None
    assert few.predicted is not None
    assert gpus_of_plan(few) < gpus_of_plan(best)
    assert few.predicted.latency_mean_s is not None
    assert few.predicted.latency_mean_s <= 1.1 * (best.predicted.latency_mean_s or 0.0) + 1e-9
    assert any(line.startswith("within 10%") for line in few.explanation)


def test_infeasible_rate_names_the_nearest() -> None:
    """A rate out of reach ends with exit code 3 and a rate that is then feasible."""
    with pytest.raises(InfeasibleError, match="nearest feasible rate") as caught:
        make_plan(request_for(Rate(1000.0)))
    assert caught.value.exit_code == 3
    words = str(caught.value).split()
    nearest = float(words[words.index("is", words.index("nearest")) + 2])
    assert make_plan(request_for(Rate(nearest * 0.999))).predicted is not None


def test_infeasible_limits_name_the_nearest() -> None:
    """A latency limit no rate keeps names one that holds; too few GPUs, how many would do."""
    with pytest.raises(InfeasibleError, match="rate of nearly zero") as caught:
        make_plan(request_for(MaxThroughput(), limits=Limits(latency_limit_s=1.01)))
    nearest_s = float(str(caught.value).partition("feasible limit is ")[2].split()[0])
    assert (
        make_plan(
            request_for(MaxThroughput(), limits=Limits(latency_limit_s=1.01 * nearest_s))
        ).certificate
        is not None
    )
    best = make_plan(request_for(Rate(1.0), limits=Limits(num_gpus=8))).certificate
    assert best is not None
    with pytest.raises(InfeasibleError, match=r"GPUs, not 2, would reach it") as caught:
        make_plan(
            request_for(Rate(1.0), limits=Limits(num_gpus=2, latency_limit_s=1.05 * best.value))
        )
    enough = int(str(caught.value).rpartition("; ")[2].split()[0])
    assert make_plan(
        request_for(Rate(1.0), limits=Limits(num_gpus=enough, latency_limit_s=1.05 * best.value))
    ).instances


def test_deadline_takes_the_fewest_gpus() -> None:
    """A batch in time: on the fewest GPUs that make it, with the runs in flight it takes."""
    easy, hard = (
        make_plan(request_for(Deadline(1000, 3600.0))),
        make_plan(request_for(Deadline(1000, 50.0))),
    )
    for plan, limit_s in ((easy, 3600.0), (hard, 50.0)):
        assert plan.predicted is not None
        assert plan.predicted.makespan_s is not None
        assert plan.predicted.makespan_s <= limit_s
        assert plan.workflows[0].max_runs_in_flight is not None
    assert gpus_of_plan(easy) < gpus_of_plan(hard)
    with pytest.raises(InfeasibleError, match="deadline"):
        make_plan(request_for(Deadline(1000, 50.0), limits=Limits(num_gpus=gpus_of_plan(hard) - 1)))
    with pytest.raises(InfeasibleError, match="nearest feasible deadline"):
        make_plan(request_for(Deadline(1000, 5.0)))
