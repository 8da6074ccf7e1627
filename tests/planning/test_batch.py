"""Batches by a deadline: the fewest GPU-hours, against every allocation and runs in flight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from planning_cases import bundle, cluster, engine_points, workflow
from small_problem import CALLS, RATES, Allocation, allocation, allocations, chosen, problem

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.batch import gpu_hours
from scepsy_hpc.planning.check import checked
from scepsy_hpc.planning.choice import Choice
from scepsy_hpc.planning.choose import choose
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.outline import outline
from scepsy_hpc.planning.pipeline.closed_network import ClosedStage, closed_batch
from scepsy_hpc.planning.pipeline.pipeline import HostedStage
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.simulation.arrivals import Closed
from scepsy_hpc.planning.simulation.run_graph import run_graphs
from scepsy_hpc.planning.targets import STARTUP_S, Deadline, Limits

SHAPES = ((1000.0, 100.0), (4000.0, 200.0), (500.0, 1.0), (2000.0, 400.0))


def makespan_s(found: Allocation, num_tasks: int, in_flight: int, tool_s: float) -> float:
    """A batch in a closed network: the last run starts at the steady rate, then all drain."""
    stages = [
        ClosedStage(Server((1.0,), (RATES[llm][tp],)), replicas, CALLS[llm], 1.0)
        for llm, tp, replicas in found.kinds
    ]
    state = closed_batch(stages, in_flight, 1.0, tool_s)
    return (num_tasks - in_flight) / state.throughput_rps + state.run_s


def every_batch(num_tasks: int, tool_s: float) -> Iterator[tuple[Allocation, int, float]]:
    """Every allocation and number of runs in flight, with its makespan."""
    for found in allocations():
        for in_flight in range(1, num_tasks + 1):
            yield found, in_flight, makespan_s(found, num_tasks, in_flight, tool_s)


def hours_of(choice: Choice) -> float:
    """What is certified."""
    assert choice.certificate is not None
    assert choice.certificate.metric == "gpu_hours"
    return choice.certificate.value


@pytest.mark.parametrize("startup_s", [0.0, 10.0, STARTUP_S])
@pytest.mark.parametrize("deadline_s", [30.0, 45.0, 1e4])
def test_fewest_gpu_hours(deadline_s: float, startup_s: float) -> None:
    """No allocation with any number of runs in flight takes fewer GPU-hours, but for rounding."""
    made = [
        gpu_hours(found.num_gpus, startup_s, time_s)
        for found, _, time_s in every_batch(24, 0.5)
        if time_s <= deadline_s
    ]
    choice = chosen(Deadline(24, deadline_s, startup_s))
    assert hours_of(choice) <= min(made) * 1.005
    assert choice.batch is not None
    time_s = makespan_s(allocation(choice), 24, choice.batch.max_runs_in_flight, 0.5)
    assert time_s <= deadline_s
    gpus = allocation(choice).num_gpus
    assert hours_of(choice) == pytest.approx(gpu_hours(gpus, startup_s, time_s))
    assert choice.certificate is not None
    assert choice.certificate.bound <= min(made) * (1 + 1e-9)


def _batch(target: Deadline, limits: Limits | None = None, **more: object) -> Choice:
    """A batch of one LLM that runs at TP 1 only, without tools."""
    asked = problem(target, limits, llms="a", tool_s=0.0, **more)  # type: ignore[arg-type]
    offers = asked.offers["a"]
    single = tuple(o for o in offers.found if o.curve.kind.tp_degree == 1)
    return choose(replace(asked, offers={"a": replace(offers, found=single)}), target)


@pytest.mark.parametrize(
    ("deadline_s", "gpus", "in_flight"), [(210, 1, 1), (60, 2, 2), (34, 3, 3), (30, 4, 4)]
)
def test_a_tight_deadline_takes_more_gpus(deadline_s: float, gpus: int, in_flight: int) -> None:
    """One LLM at TP 1 without tools: k runs in flight on as many replicas end T tasks in T / k s.

    More GPUs hold the same work for less time, but all of them through the start-up.
    """
    choice = _batch(Deadline(100, float(deadline_s)))
    assert allocation(choice).kinds == (("a", 1, gpus),)
    assert choice.batch is not None
    assert choice.batch.max_runs_in_flight == in_flight
    assert hours_of(choice) == pytest.approx(gpus * (STARTUP_S + 100 / gpus) / 3600)


def test_all_gpus_are_as_cheap_without_start_up() -> None:
    """Without start-up k GPUs for T / k s cost the same for every k: the fewest are taken."""
    choice = _batch(Deadline(60, 1e4, 0.0))
    assert choice.solution.num_gpus == 1
    assert hours_of(choice) == pytest.approx(60 / 3600)


def test_a_batch_of_runs_that_differ() -> None:
    """The drain lasts as long as the longest run in flight, by the lengths of the traced ones.

    20 tasks in 5.7 s: four replicas start the last after 4 s, and 1 s later all is done. Where half
    the runs take 1.9 of the mean the drain of four is 1.8 s; five replicas end after 3 + 1.8 s.
    """
    even, uneven = (_batch(Deadline(20, 5.7), lengths_s=x) for x in ((1.0, 1.0), (0.1, 1.9)))
    assert (even.solution.num_gpus, uneven.solution.num_gpus) == (4, 5)


def test_a_deadline_out_of_reach() -> None:
    """Six replicas end 60 tasks in 10 s; fewer GPUs take longer, and the nearest is named."""
    assert _batch(Deadline(60, 10.6)).solution.num_gpus == 6
    for deadline_s, limits, nearest_s in ((9.0, Limits(), 10), (20.0, Limits(num_gpus=2), 30)):
        with pytest.raises(InfeasibleError) as caught:
            _batch(Deadline(60, deadline_s), limits)
        assert str(caught.value) == (
            f"60 tasks by a deadline of {deadline_s:g} s are out of reach here: the nearest "
            f"feasible deadline that was found is {nearest_s} s (predicted)"
        )


def test_a_batch_keeps_the_limit_on_latency() -> None:
    """A limit holds for the mean run of the batch; below what one run takes it cannot be kept."""
    held = _batch(Deadline(100, 30.0), Limits(latency_limit_s=1.2))
    assert held.batch is not None
    assert held.batch.max_runs_in_flight <= 1.2 * held.solution.num_gpus
    with pytest.raises(InfeasibleError) as caught:
        _batch(Deadline(100, 30.0), Limits(latency_limit_s=0.5))
    assert str(caught.value) == (
        "latency limit 0.5 s is out of reach: the nearest feasible limit that was found is 1 s, "
        "with one run in flight"
    )


def test_a_batch_that_ends_at_its_deadline() -> None:
    """A makespan of exactly the deadline is in time."""
    choice = _batch(Deadline(10, 10.0))
    assert choice.batch is not None
    assert (choice.solution.num_gpus, choice.batch.max_runs_in_flight) == (1, 1)


def _runs() -> list[Span]:
    """Runs of one to six calls of `a`, each graded by `b`."""
    found = []
    for run in range(24):
        clock_s = 0.0
        for number in range(2 * (1 + run % 6)):
            llm, took_s = ("a", 1.0) if number % 2 == 0 else ("b", 0.2)
            found.append(
                Span(
                    run_id=f"r{run}",
                    span_id=f"s{number}",
                    kind="llm",
                    llm=llm,
                    start_s=clock_s,
                    end_s=clock_s + took_s,
                    status="ok",
                    input_tokens=1000 if llm == "a" else 500,
                    output_tokens=100 if llm == "a" else 1,
                )
            )
            clock_s += took_s + 0.1
    return found


def _request(target: Deadline, num_gpus: int) -> PlanRequest:
    flow = workflow("w", {x: Llm(model=f"org/{x}", gpu_shares_pct=(100,)) for x in "ab"})
    bundles = [bundle(engine_points(SHAPES), model=f"org/{x}") for x in "ab"]
    spans = {"w": _runs()}
    return PlanRequest([(flow, None)], bundles, cluster(gpus=num_gpus), target, spans=spans)


def _simulated_s(asked: PlanningProblem, replicas: tuple[int, int], in_flight: int) -> float:
    """Makespan of 300 tasks, simulated."""
    hosted = tuple(
        HostedStage(stage, asked.offers[stage.name].found[0].curve, number)
        for stage, number in zip(asked.pipeline.stages, replicas, strict=True)
    )
    plan = outline(asked.pipeline, hosted, asked.offers)
    graphs = {"w": run_graphs(_runs())}
    found = checked(plan, graphs, hosted, Closed(300, in_flight), max_calls=4000)
    assert found.makespan_s is not None
    return found.makespan_s


def _checked_plan(target: Deadline, num_gpus: int) -> Plan:
    plan = make_plan(_request(target, num_gpus))
    assert plan.simulated is not None
    assert plan.simulated.makespan_s is not None
    return plan


@pytest.mark.parametrize("startup_s", [0.0, 60.0])
def test_fewest_gpu_hours_by_simulation(startup_s: float) -> None:
    """Over a grid of replicas and runs in flight simulation finds no batch of 7% fewer GPU-hours.

    Tasks differ in length by 6, so drains and queues count, and the closed network is only near.
    """
    target = Deadline(300, 1e5, startup_s)
    plan = _checked_plan(target, 4)
    asked = PlanningProblem.of(_request(target, 4).with_demands())
    grid = [
        gpu_hours(sum(replicas), startup_s, _simulated_s(asked, replicas, in_flight))
        for replicas in itertools.product((1, 2, 3), repeat=2)
        if sum(replicas) <= 4
        for in_flight in (8, 32, 64, 128)
    ]
    assert plan.simulated is not None
    assert plan.simulated.makespan_s is not None
    taken = gpu_hours(len(plan.instances), startup_s, plan.simulated.makespan_s)
    assert taken <= 1.07 * min(grid)


def test_a_batch_plan_is_closed_and_its_job_ends_in_time() -> None:
    """No rate, runs in flight, and a time limit of start-up and 95% of the simulated makespans."""
    plan = _checked_plan(Deadline(300, 1e5, 600.0), 4)
    (flow,) = plan.workflows
    assert flow.rate_rps is None
    assert flow.max_runs_in_flight is not None
    assert plan.allocation is not None
    assert plan.simulated is not None
    (limit_min,) = {c.time_min for c in plan.allocation.components}
    assert limit_min is not None
    longest_s = plan.simulated.intervals["makespan_s"][0]
    assert 600 + longest_s <= 60 * limit_min <= 600 + 1.5 * (plan.simulated.makespan_s or 0) + 60


def test_a_deadline_is_met_by_simulation() -> None:
    """A deadline between two simulated makespans is met; the plan's own p95 is below it."""
    free = _checked_plan(Deadline(300, 1e5, 60.0), 4)
    assert free.simulated is not None
    deadline_s = 0.6 * (free.simulated.makespan_s or 0.0)
    held = _checked_plan(Deadline(300, deadline_s, 60.0), 4)
    assert held.simulated is not None
    assert (held.simulated.makespan_s or 0.0) <= deadline_s
    assert len(held.instances) > len(free.instances)
    with pytest.raises(InfeasibleError, match="nearest feasible deadline"):
        make_plan(_request(Deadline(300, 1.0), 4))
