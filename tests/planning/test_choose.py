"""From a target to a choice, against every allocation of a small problem."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from small_problem import allocation, allocations, chosen, problem, refusal

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.choose import choose
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate, Target


@pytest.mark.parametrize("num_gpus", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("rate", [0.1, 0.9, 1.6])
def test_lowest_latency_at_a_rate(rate: float, num_gpus: int) -> None:
    """The choice at a rate is the best of all allocations, and certified to be."""
    best_s = min(a.latency_s(rate) for a in allocations(num_gpus))
    if math.isinf(best_s):
        assert "nearest feasible rate" in refusal(Rate(rate), Limits(num_gpus=num_gpus))
        return
    choice = chosen(Rate(rate), Limits(num_gpus=num_gpus))
    assert allocation(choice).latency_s(rate) == pytest.approx(best_s)
    assert choice.certificate is not None
    assert choice.certificate.metric == "latency_mean_s"
    assert choice.certificate.value == pytest.approx(best_s)
    assert choice.certificate.bound == pytest.approx(best_s)
    assert choice.solution.num_gpus == allocation(choice).num_gpus <= num_gpus
    assert choice.pipeline.rates_rps == {"w": rate}
    assert choice.notes == ()
    assert choice.batch is None
    assert {h.stage.name: h.num_replicas for h in choice.hosted} == {
        llm: replicas for llm, _, replicas in allocation(choice).kinds
    }


@pytest.mark.parametrize("within_pct", [0.0, 3.0, 10.0, 40.0])
def test_fewest_gpus_within_a_percentage_of_the_whole_latency(within_pct: float) -> None:
    """`--within` at a rate: the fewest GPUs whose latency, tools included, is so close."""
    best = min(allocations(), key=lambda a: a.latency_s(0.9))
    ceiling_s = best.latency_s(0.9) * (1 + within_pct / 100) * (1 + 1e-9)
    fewest = min(a.num_gpus for a in allocations() if a.latency_s(0.9) <= ceiling_s)
    on_them = min(a.latency_s(0.9) for a in allocations(fewest))
    choice = chosen(Rate(0.9), within_pct=within_pct)
    assert choice.solution.num_gpus == fewest
    assert choice.certificate is not None
    assert choice.certificate.value == pytest.approx(on_them)
    assert choice.certificate.bound == pytest.approx(best.latency_s(0.9))
    assert choice.certificate.gap == pytest.approx(0.0, abs=1e-9)
    given_up_pct = 100 * (on_them / best.latency_s(0.9) - 1)
    assert choice.certificate.given_up_pct == pytest.approx(given_up_pct, abs=1e-6)
    said = (
        f"within {within_pct:g}%: {fewest} instead of {best.num_gpus} GPUs; the best mean "
        f"latency is {best.latency_s(0.9):.4g} s",
    )
    assert choice.notes == (said if fewest < best.num_gpus else ())


def test_a_rate_out_of_reach() -> None:
    """The nearest rate is 95% of the largest capacity, with its GPUs; or how many GPUs it takes."""
    most_rps = max(a.capacity_rps for a in allocations(3))
    used = min(a.num_gpus for a in allocations(3) if a.capacity_rps == most_rps)
    enough = min(a.num_gpus for a in allocations() if a.latency_s(1.5) < math.inf)
    assert refusal(Rate(1.5), Limits(num_gpus=3)) == (
        f"rate w 1.5 runs/s is out of reach here: the nearest feasible rate is w "
        f"{0.95 * most_rps:.4g} runs/s (95% of capacity on {used} GPUs); {enough} GPUs, not 3, "
        "would reach it"
    )
    used = min(a.num_gpus for a in allocations() if a.capacity_rps == 3.0)
    assert refusal(Rate(100.0)).endswith(f"is w 2.85 runs/s (95% of capacity on {used} GPUs)")


def test_rates_out_of_reach_of_two_workflows() -> None:
    """Of several workflows all rates are named, scaled alike."""
    one = problem()
    first = replace(one.pipeline.workflows[0], rate_rps=1.0)
    none = replace(first, name="v", rate_rps=4.0)  # calls nothing, and so is no load
    two = replace(one, pipeline=replace(one.pipeline, workflows=(first, none))).at_rates(5.0)
    with pytest.raises(InfeasibleError) as caught:
        choose(two, Rate())
    assert "rate w 5, v 20 runs/s is out of reach here" in str(caught.value)
    assert "nearest feasible rate is w 2.85, v 11.4 runs/s" in str(caught.value)


def test_the_rate_at_95_percent_is_just_within_reach() -> None:
    """At 95% of the largest capacity there is a plan; a little above there is none."""
    most_rps = 0.95 * max(a.capacity_rps for a in allocations())
    assert chosen(Rate(most_rps * (1 - 1e-6))).solution.is_feasible
    assert "nearest feasible rate" in refusal(Rate(most_rps * (1 + 1e-6)))


def test_a_latency_limit_at_a_rate() -> None:
    """A limit above the best latency is kept; below, the nearest is named, and enough GPUs."""
    best_s = min(a.latency_s(0.5) for a in allocations(2))
    assert chosen(Rate(0.5), Limits(num_gpus=2, latency_limit_s=1.001 * best_s)).certificate
    limit_s = 0.98 * best_s
    enough = min(a.num_gpus for a in allocations() if a.latency_s(0.5) <= limit_s)
    said = refusal(Rate(0.5), Limits(num_gpus=2, latency_limit_s=limit_s))
    assert said == (
        f"latency limit {limit_s:g} s is out of reach: the nearest feasible limit is "
        f"{best_s:.4g} s at rate w 0.5 runs/s; {enough} GPUs, not 2, would reach it"
    )
    best_s = min(a.latency_s(0.5) for a in allocations())
    said = refusal(Rate(0.5), Limits(latency_limit_s=0.98 * best_s))
    assert said.endswith(f"limit is {best_s:.4g} s at rate w 0.5 runs/s")


def test_nothing_fits() -> None:
    """Two LLMs on one GPU that none may share: no rate is near, two GPUs are the way out."""
    for target in (Rate(0.1), MaxThroughput(), Deadline(10, 1000.0)):
        said = refusal(target, Limits(num_gpus=1))
        assert said.startswith("no plan fits: ")
        assert said.endswith("; 2 GPUs, not 1, hold every LLM")


@pytest.mark.parametrize("num_gpus", [2, 3, 5, 6])
def test_highest_rate(num_gpus: int) -> None:
    """The most is 95% of the largest capacity, on the allocation of lowest latency there."""
    most_rps = max(a.capacity_rps for a in allocations(num_gpus))
    rate = 0.95 * most_rps * (1 - 1e-9)
    choice = chosen(MaxThroughput(), Limits(num_gpus=num_gpus))
    assert choice.pipeline.total_rps == pytest.approx(rate, rel=1e-12)
    assert allocation(choice).latency_s(rate) == pytest.approx(
        min(a.latency_s(rate) for a in allocations(num_gpus))
    )
    assert choice.certificate is not None
    assert choice.certificate.metric == "throughput_rps"
    assert choice.certificate.value == pytest.approx(most_rps)
    assert choice.certificate.value <= choice.certificate.bound == pytest.approx(most_rps)
    assert choice.certificate.gap == pytest.approx(0.0, abs=1e-9)


def test_highest_rate_is_of_the_mix() -> None:
    """Rates given with the workflows scale together: the certificate is in runs of the mix."""
    most_rps = max(a.capacity_rps for a in allocations())
    twice = problem(MaxThroughput()).at_rates(2.0)
    choice = choose(twice, MaxThroughput())
    assert choice.pipeline.total_rps == pytest.approx(0.95 * most_rps, rel=1e-6)
    assert choice.certificate is not None
    assert choice.certificate.value == pytest.approx(most_rps)
    assert choice.certificate.bound == pytest.approx(most_rps)


@pytest.mark.parametrize("within_pct", [5.0, 30.0])
def test_highest_rate_on_few_gpus(within_pct: float) -> None:
    """`--within`: the fewest GPUs whose capacity is so close, and no more than those are used."""
    most_rps = max(a.capacity_rps for a in allocations())
    close = [a for a in allocations() if a.capacity_rps >= most_rps * (1 - within_pct / 100)]
    fewest = min(a.num_gpus for a in close)
    choice = chosen(MaxThroughput(), within_pct=within_pct)
    best_rps = max(a.capacity_rps for a in allocations(fewest))
    assert choice.solution.num_gpus == fewest
    assert allocation(choice).capacity_rps == pytest.approx(best_rps)
    assert choice.certificate is not None
    assert choice.certificate.value == pytest.approx(best_rps)
    assert choice.certificate.bound == pytest.approx(most_rps)


@pytest.mark.parametrize("limit_s", [2.6, 3.0, 5.0])
def test_highest_rate_under_a_latency_limit(limit_s: float) -> None:
    """The highest rate that any allocation keeps the limit at, to a thousandth, and certified."""
    most_rps = max(a.highest_rps(limit_s) for a in allocations())
    asked = problem(MaxThroughput(), Limits(latency_limit_s=limit_s)).at_rates(2.0)
    choice = choose(asked, MaxThroughput())
    rate = choice.pipeline.total_rps
    assert (1 - 1e-3) * most_rps <= rate <= most_rps * (1 + 1e-9)
    assert allocation(choice).latency_s(rate) <= limit_s
    assert allocation(choice).latency_s(rate) == pytest.approx(
        min(a.latency_s(rate) for a in allocations())
    )
    assert choice.certificate is not None
    assert choice.certificate.metric == "rate_rps"
    assert choice.certificate.value == pytest.approx(rate)
    assert most_rps <= choice.certificate.bound <= 1.0011 * rate
    assert choice.notes == ("the limit on latency, not capacity, ends the rate",)
    assert {table.llm for table in choice.tables} == {"a", "b"}


def test_a_latency_limit_that_no_rate_keeps() -> None:
    """The nearest limit is the latency of an idle plan; and the GPUs that would keep this one."""
    idle_s = min(a.latency_s(0.0) for a in allocations(2))
    best_s = min(a.latency_s(0.0) for a in allocations())
    limit_s = (idle_s + best_s) / 2
    enough = min(a.num_gpus for a in allocations() if a.latency_s(0.0) <= limit_s)
    assert refusal(MaxThroughput(), Limits(num_gpus=2, latency_limit_s=limit_s)) == (
        f"latency limit {limit_s:g} s is out of reach: the nearest feasible limit is {idle_s:.4g} "
        f"s at a rate of nearly zero; {enough} GPUs, not 2, would reach it"
    )
    said = refusal(MaxThroughput(), Limits(latency_limit_s=0.9 * best_s))
    assert said.endswith(f"limit is {best_s:.4g} s at a rate of nearly zero")


def test_a_batch_is_of_one_workflow() -> None:
    """Two workflows have no common batch; a limit on the p95 needs runs, and arrivals."""
    one = problem()
    first = one.pipeline.workflows[0]
    two = replace(one, pipeline=replace(one.pipeline, workflows=(first, replace(first, name="v"))))
    with pytest.raises(InputError, match="one workflow at a time"):
        choose(two, Deadline(10, 100.0))
    limited = problem(limits=Limits(p95_limit_s=5.0))
    with pytest.raises(InputError, match="not to --tasks"):
        choose(limited, Deadline(10, 100.0))
    for target in (Rate(1.0), MaxThroughput()):
        with pytest.raises(InputError, match="needs the workflow's spans"):
            choose(limited, target)


def _runs(num_runs: int = 30) -> list[Span]:
    """Runs of one call each, as long as the mean call."""
    return [
        Span(
            run_id=f"r{number}",
            span_id="s",
            kind="llm",
            llm="a",
            start_s=0.0,
            end_s=1.0,
            status="ok",
            input_tokens=1000,
            output_tokens=100,
        )
        for number in range(num_runs)
    ]


def _under_p95(target: Target, limit_s: float, **limits: float) -> Choice:
    """One replica, by replay: k calls in flight, which is a call of k s, have weight ~ load^k."""
    made = Limits(p95_limit_s=limit_s, **limits)  # type: ignore[arg-type]
    return chosen(target, made, llms="a", num_gpus=1, spans=_runs(), tool_s=0.0)


def test_highest_rate_under_a_p95_limit() -> None:
    """Of calls at load x a part x^3 takes more than 3 s: 5% do at x = 0.05^(1/3)."""
    choice = _under_p95(MaxThroughput(), 3.5)
    assert choice.pipeline.total_rps == pytest.approx(0.05 ** (1 / 3), rel=0.03)
    assert choice.certificate is not None
    assert choice.certificate.metric == "rate_rps"
    assert choice.certificate.value == pytest.approx(choice.pipeline.total_rps)
    assert choice.certificate.bound == pytest.approx(0.95)
    (note,) = choice.notes
    assert note == (
        "the limit on latency, not capacity, ends the rate; at each rate up to 4 plans of lowest "
        "mean were replayed for their p95, and what was taken is kept by simulation, not certified"
    )


def test_a_p95_limit_that_the_highest_rate_keeps() -> None:
    """A limit above the p95 at 95% of capacity (59 s) leaves the rate to capacity."""
    choice = _under_p95(MaxThroughput(), 100.0)
    assert choice.certificate is not None
    assert choice.certificate.metric == "throughput_rps"
    assert choice.certificate.value == pytest.approx(1.0)
    assert choice.notes == ()


def test_a_p95_limit_at_a_rate() -> None:
    """At load 0.3 a call finds three or more beside it in 3% of cases, and seldom to its end.

    So the p95 of runs of one call is under 3 s, and over the 2 s beside one other.
    """
    choice = _under_p95(Rate(0.3), 3.5)
    assert choice.certificate is not None
    assert choice.certificate.value == pytest.approx(1 / 0.7)
    (note,) = choice.notes
    assert note.startswith("p95 limit 3.5 s: kept by simulation (")
    found = re.search(r"simulation \((\S+) s; by replay (\S+) s\), not certified", note)
    assert found is not None
    assert 2.0 < float(found[1]) < 3.0
    assert 2.0 < float(found[2]) < 3.0
    with pytest.raises(
        InfeasibleError, match=r"p95 limit 1.9 s is out of reach .* limit is 2\.\d+ s"
    ):
        _under_p95(Rate(0.3), 1.9)


def test_a_p95_limit_that_no_rate_keeps() -> None:
    """Below the call of an idle replica the nearest limit is named, of the p95 and of the mean."""
    with pytest.raises(InfeasibleError) as caught:
        _under_p95(MaxThroughput(), 0.5)
    assert str(caught.value).startswith(
        "at a rate of nearly zero: p95 limit 0.5 s is out of reach here"
    )
    assert "feasible limit is 1 s, by simulation" in str(caught.value)
    with pytest.raises(InfeasibleError) as caught:
        _under_p95(MaxThroughput(), 3.5, latency_limit_s=0.5)
    assert str(caught.value) == (
        "latency limit 0.5 s is out of reach: the nearest feasible limit is 1 s at a rate of "
        "nearly zero"
    )
