"""From a target to a choice, against every allocation of a small problem.

Each replica here does ``RATES`` calls a second however many it holds: a flat curve. What a group of
them takes is the business of ``test_group``; the rest is worked out without the planner.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from planning_cases import bundle, calls, cluster, demand, flat_group_s, point, workflow

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.choose import Choice, choose
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate, Target

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
            CALLS[llm] * flat_group_s(RATES[llm][tp], replicas, CALLS[llm] * rate_rps)
            for llm, tp, replicas in self.kinds
        )

    def highest_rps(self, limit_s: float) -> float:
        """The highest rate whose latency is within the limit, by bisection; 0 where none is."""
        low, high = 0.0, 0.95 * self.capacity_rps
        for _ in range(30):
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
) -> PlanningProblem:
    """One workflow that calls these LLMs on a node of so many GPUs."""
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
        limits or Limits(),
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
    assert choice.max_runs_in_flight is None
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
    choice = chosen(Rate(0.9), Limits(within_pct=within_pct))
    assert choice.solution.num_gpus == fewest
    assert choice.certificate is not None
    assert choice.certificate.value == pytest.approx(on_them)
    assert choice.certificate.bound == pytest.approx(best.latency_s(0.9))
    assert choice.notes == (
        f"within {within_pct:g}%: {fewest} instead of {best.num_gpus} GPUs; the best mean "
        f"latency is {best.latency_s(0.9):.4g} s",
    )


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
    """Two LLMs on one GPU that none may share: no rate is near, more GPUs are the way out."""
    for target in (Rate(0.1), MaxThroughput(), Deadline(10, 1000.0)):
        said = refusal(target, Limits(num_gpus=1))
        assert said.startswith("no plan fits: ")
        assert said.endswith("; free more GPUs or allow smaller shares")


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
    choice = chosen(MaxThroughput(), Limits(within_pct=within_pct))
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


def test_a_batch_on_the_fewest_gpus() -> None:
    """One LLM at TP 1 without tools: k runs in flight on as many replicas end T tasks in T / k s.

    100 tasks in 30 s are 3.33 a second: four replicas would be at 83%. A replica has one run at a
    time, so fewer than four in flight leave one idle, and four end the batch in 25 s.
    """
    choice = _batch(Deadline(100, 30.0))
    assert allocation(choice).kinds == (("a", 1, 4),)
    assert choice.max_runs_in_flight == 4
    assert choice.notes == ("the fewest GPUs that end 100 tasks in 30 s",)
    assert choice.certificate is not None
    assert choice.certificate.metric == "latency_mean_s"
    assert choice.certificate.value == pytest.approx(flat_group_s(1.0, 4, 10 / 3))
    assert choice.certificate.gap == 0.0
    assert choice.pipeline.total_rps == pytest.approx(10 / 3)


@pytest.mark.parametrize(("deadline_s", "gpus", "in_flight"), [(210, 1, 1), (60, 2, 2), (34, 4, 3)])
def test_runs_in_flight_of_a_batch(deadline_s: float, gpus: int, in_flight: int) -> None:
    """As many runs in flight as the deadline takes, though the replicas would hold more.

    100 tasks in 34 s need three at a time (33.3 s) but are 2.94 a second, 98% of three replicas:
    so four are hosted, of which three would do.
    """
    choice = _batch(Deadline(100, float(deadline_s)))
    assert allocation(choice).num_gpus == gpus
    assert (choice.solution.num_gpus, choice.max_runs_in_flight) == (gpus, in_flight)


def test_a_batch_of_runs_that_differ() -> None:
    """The drain lasts as long as the longest run in flight, by the lengths of the traced ones.

    20 tasks in 5.7 s: four replicas start the last after 4 s, and 1 s later all is done. Where half
    the runs take 1.9 of the mean the drain of four is 1.8 s; five replicas end after 3 + 1.8 s.
    """
    even, uneven = (_batch(Deadline(20, 5.7), lengths_s=x) for x in ((1.0, 1.0), (0.1, 1.9)))
    assert (even.solution.num_gpus, even.max_runs_in_flight) == (4, 4)
    assert (uneven.solution.num_gpus, uneven.max_runs_in_flight) == (5, 5)


def test_a_deadline_out_of_reach() -> None:
    """Six replicas end 60 tasks in 10 s; a run in flight a task is as fast as it gets."""
    assert _batch(Deadline(60, 10.6)).solution.num_gpus == 6
    with pytest.raises(InfeasibleError) as caught:
        _batch(Deadline(60, 9.0))
    assert str(caught.value) == (
        "60 tasks by a deadline of 9 s are out of reach here: the nearest feasible deadline is "
        "about 10 s"
    )


def test_a_batch_keeps_the_limit_on_gpus_and_latency() -> None:
    """Limits hold for a batch too: fewer GPUs than it takes, or a latency no plan has, end it."""
    with pytest.raises(InfeasibleError, match="nearest feasible deadline is about 50 s"):
        _batch(Deadline(100, 30.0), Limits(num_gpus=2))
    # At 3.33 tasks a second a run takes longer on four replicas than on five, least on all six.
    four_s, five_s, six_s = (flat_group_s(1.0, replicas, 10 / 3) for replicas in (4, 5, 6))
    assert four_s > 2.0 > five_s > six_s > 1.1
    held = _batch(Deadline(100, 30.0), Limits(latency_limit_s=2.0))
    assert allocation(held).kinds == (("a", 1, 5),)
    with pytest.raises(InfeasibleError) as caught:
        _batch(Deadline(100, 30.0), Limits(latency_limit_s=1.1))
    assert str(caught.value) == (
        f"latency limit 1.1 s is out of reach: the nearest feasible limit is {six_s:.4g} s at rate "
        "w 3.33333 runs/s"
    )


def test_a_batch_that_ends_at_its_deadline() -> None:
    """A makespan of exactly the deadline is in time, whatever rate the workflow came with."""
    for factor in (1.0, 5.0):
        choice = _batch(Deadline(10, 10.0), factor=factor)
        assert (choice.solution.num_gpus, choice.max_runs_in_flight) == (2, 1)
        assert choice.pipeline.total_rps == pytest.approx(1.0)


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
        "mean were replayed for their p95"
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
    found = re.match(r"p95 limit 3.5 s: kept by replay \((\S+) s\)", note)
    assert found is not None
    assert 2.0 < float(found[1]) < 3.0
    refused = rf"p95 limit 1.9 s is out of reach .* limit is {re.escape(found[1])} s"
    with pytest.raises(InfeasibleError, match=refused):
        _under_p95(Rate(0.3), 1.9)


def test_a_p95_limit_that_no_rate_keeps() -> None:
    """Below the call of an idle replica the nearest limit is named, of the p95 and of the mean."""
    with pytest.raises(InfeasibleError) as caught:
        _under_p95(MaxThroughput(), 0.5)
    assert str(caught.value).startswith("p95 limit 0.5 s is out of reach")
    assert str(caught.value).endswith("limit is 1 s, at a rate of nearly zero")
    with pytest.raises(InfeasibleError) as caught:
        _under_p95(MaxThroughput(), 3.5, latency_limit_s=0.5)
    assert str(caught.value) == (
        "latency limit 0.5 s is out of reach: the nearest feasible limit is 1 s at a rate of "
        "nearly zero"
    )


def _batch(
    target: Deadline, limits: Limits | None = None, factor: float = 1.0, **more: object
) -> Choice:
    """A batch of one LLM that runs at TP 1 only, without tools."""
    asked = problem(target, limits, llms="a", tool_s=0.0, **more)  # type: ignore[arg-type]
    offers = asked.offers["a"]
    single = tuple(o for o in offers.found if o.curve.kind.tp_degree == 1)
    single_tp = replace(asked, offers={"a": replace(offers, found=single)})
    return choose(single_tp.at_rates(factor), target)
