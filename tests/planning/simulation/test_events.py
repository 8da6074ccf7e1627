"""Discrete-event simulation of traced runs on a plan."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from simulation_cases import (
    MODEL,
    UNLIMITED,
    call,
    curve,
    mixed_spans,
    plan_of,
    run_span,
    simulate_plan,
    single_calls,
    times,
)

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import PlanWorkflow
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.simulation.arrivals import Closed, Open
from scepsy_hpc.planning.simulation.events import simulate_timeline
from scepsy_hpc.planning.simulation.results import result_of


def test_one_run_at_a_time_repeats_the_trace() -> None:
    """On a server whose calls take as long as they did, one run at a time lasts as it did."""
    spans = [
        run_span("r1", 5.0, 12.0),
        call("r1", "a", 6.0, 7.0),
        call("r1", "b", 7.5, 8.5),
        call("r1", "c", 7.5, 8.5),
        call("r1", "d", 9.5, 10.5),
        run_span("r2", 0.0, 3.0),
        call("r2", "a", 1.0, 2.0),
    ]
    timeline = simulate_timeline(plan_of("a"), {"w": spans}, {"a": UNLIMITED}, Closed(2, 1))
    assert times(timeline) == [(0.0, 7.0), (7.0, 10.0)]
    # A call's work has rounding in it: input and output parts of a mean call add up to 1.
    starts = [1.0, 2.5, 2.5, 4.5, 8.0]
    assert timeline.call_start_s == pytest.approx(starts)
    assert timeline.call_end_s == pytest.approx([s + 1.0 for s in starts])


def test_fork_and_join_on_a_full_server() -> None:
    """Two calls of a fan-out share one server: each takes 2 s, and the join starts after them."""
    spans = [call("r", "a", 0.0, 1.0), call("r", "b", 0.0, 1.0), call("r", "c", 1.0, 2.0)]
    timeline = simulate_timeline(plan_of("a"), {"w": spans}, {"a": curve()}, Closed(1, 1))
    assert timeline.call_end_s == pytest.approx([2.0, 2.0, 3.0])
    two = simulate_timeline(
        plan_of("a", num_replicas=2), {"w": spans}, {"a": curve()}, Closed(1, 1)
    )
    assert two.call_end_s == pytest.approx([1.0, 1.0, 2.0])


def test_closed_batch_keeps_its_room_full() -> None:
    """Four tasks of 1 s, two at a time on an unlimited server: two waves; on one server 4 s."""
    spans = single_calls(4)
    waves = simulate_timeline(plan_of("a"), {"w": spans}, {"a": UNLIMITED}, Closed(4, 2))
    assert waves.run_start_s == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert waves.run_end_s == pytest.approx([1.0, 1.0, 2.0, 2.0])
    result = simulate_plan(plan_of("a"), {"w": spans}, {"a": curve()}, Closed(4, 2))
    assert result.makespan_s == pytest.approx(4.0)
    assert result.throughput_rps == pytest.approx(1.0)
    assert result.latency_mean_s == pytest.approx(2.0)
    assert result.per_llm["a"].utilisation == pytest.approx(1.0)
    assert result.per_llm["a"].calls_in_flight_mean == pytest.approx(2.0)


def test_fewest_in_flight_then_longest_ago() -> None:
    """Idle replicas take turns; a loaded one gets no call while another has fewer."""
    spans = [
        *(call("r", f"s{i}", 2.0 * i, 2.0 * i + 1.0) for i in range(3)),
        call("r", "long", 6.0, 16.0, output_tokens=100, input_tokens=100),
        call("r", "x", 7.0, 8.0, parents=("s2",)),
        call("r", "y", 9.0, 10.0, parents=("x",)),
    ]
    plan = plan_of("a", num_replicas=2)
    timeline = simulate_timeline(plan, {"w": spans}, {"a": UNLIMITED}, Closed(1, 1))
    assert timeline.call_replica == [0, 1, 0, 1, 0, 0]


def test_single_server_queue_agrees_with_its_closed_form() -> None:
    """Poisson calls on one processor-sharing server: mean latency is E[S] / (1 - load)."""
    rng = random.Random(4)
    spans = [
        call(f"r{i}", "s", 0.0, 1.0, input_tokens=0, output_tokens=1 + int(rng.expovariate(0.01)))
        for i in range(2000)
    ]
    outputs = float(np.mean([s.output_tokens or 0 for s in spans]))
    server = curve((1.0,), (1.0,), TokenLengths(0.0, outputs), ttft_s=(0.0,))
    for load in (0.5, 0.8):
        timeline = simulate_timeline(
            plan_of("a"), {"w": spans}, {"a": server}, Open(30_000, load), seed=1
        )
        latency_s = np.subtract(timeline.run_end_s, timeline.run_start_s)
        batches = latency_s[1000:].reshape(29, 1000).mean(axis=1)
        error_s = batches.std(ddof=1) / math.sqrt(len(batches))
        assert abs(batches.mean() - 1.0 / (1.0 - load)) < 3.0 * error_s
        assert error_s < 0.1 / (1.0 - load)


@pytest.mark.parametrize("with_engine", [False, True])
def test_nothing_is_lost(with_engine: bool) -> None:
    """Every call is sent once and ends; runs keep their room and order; Little's law holds."""
    spans = mixed_spans(40)
    shape = curve((1.0, 8.0, 16.0), (1.0, 4.0, 5.0), TokenLengths(150.0, 40.0))
    timeline = simulate_timeline(
        plan_of("a", "b", num_replicas=2),
        {"w": spans},
        {"a": shape, "b": shape},
        Closed(40, 7),
        engine_models={"a": MODEL, "b": MODEL} if with_engine else None,
    )
    calls = [span for span in spans if span.kind == "llm"]
    assert len(timeline.call_run) == len(calls)
    assert timeline.call_deployment.count("a") == sum(span.llm == "a" for span in calls)
    start_s, end_s = np.array(timeline.call_start_s), np.array(timeline.call_end_s)
    assert np.all(end_s > start_s)
    run_start_s, run_end_s = np.array(timeline.run_start_s), np.array(timeline.run_end_s)
    of_run = np.array(timeline.call_run)
    assert np.all(start_s >= run_start_s[of_run])
    assert np.all(end_s <= run_end_s[of_run])
    moments = np.concatenate([run_start_s, run_end_s - 1e-9])
    in_flight = [(run_start_s <= t).sum() - (run_end_s <= t).sum() for t in moments]
    assert max(in_flight) == 7
    result = result_of(timeline)
    figures = result.per_workflow["w"]
    assert figures.num_failed == sum(s.kind == "run" and s.status == "error" for s in spans)
    assert figures.makespan_s >= (run_end_s - run_start_s).max()
    for llm in result.per_llm.values():
        assert llm.latency_mean_s is not None
        in_flight_mean = llm.num_calls / result.makespan_s * llm.latency_mean_s
        assert llm.calls_in_flight_mean == pytest.approx(in_flight_mean)


def test_the_seed_decides() -> None:
    """The same seed gives the same figures, another seed others; a plan changes no arrival."""
    spans = mixed_spans(20)
    shape = curve((1.0, 8.0), (1.0, 4.0), TokenLengths(150.0, 40.0))
    curves = {"a": shape, "b": shape}

    def at(seed: int, num_replicas: int = 1) -> Figures:
        plan = plan_of("a", "b", num_replicas=num_replicas)
        return simulate_plan(plan, {"w": spans}, curves, Open(50, 0.1), seed=seed)

    assert at(1) == at(1)
    assert at(1).makespan_s != at(2).makespan_s
    timelines = [
        simulate_timeline(
            plan_of("a", "b", num_replicas=n), {"w": spans}, curves, Open(50, 0.1), seed=1
        )
        for n in (1, 3)
    ]
    assert timelines[0].run_start_s == timelines[1].run_start_s
    assert timelines[0].run_traced == timelines[1].run_traced
    assert timelines[0].run_end_s != timelines[1].run_end_s


def test_workflows_share_a_deployment() -> None:
    """Two workflows of different aliases on one server slow each other down."""
    workflows = (
        PlanWorkflow(name="v", llms={"a": "shared"}),
        PlanWorkflow(name="w", llms={"b": "shared"}),
    )
    plan = plan_of("shared", workflows=workflows)
    spans = {"v": [call("r", "s", 0.0, 1.0)], "w": [call("r", "s", 0.0, 1.0, llm="b")]}
    both = {"v": Closed(3, 1), "w": Open(1, 1e9)}
    result = simulate_plan(plan, spans, {"shared": curve()}, both)
    # w takes half the server while v's first run and half of its second pass.
    assert result.per_workflow["w"].latency_mean_s == pytest.approx(2.0)
    assert result.per_workflow["v"].makespan_s == pytest.approx(4.0)
    assert result.per_llm["shared"].num_calls == result.num_runs == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": {}}, "has no spans to simulate"),
        ({"spans": {"w": []}}, "workflow w: has no spans"),
        ({"curves": {}}, "a: has no curve"),
        ({"plan": plan_of("b")}, "run r0 calls 'a', which the plan does not host; known: b"),
        (
            {"plan": plan_of("a", workflows=(PlanWorkflow(name="v", llms={"a": "a"}),))},
            "workflow w: is not in the plan; known: v",
        ),
        (
            {
                "plan": plan_of(
                    "a", workflows=tuple(PlanWorkflow(name=n, llms={"a": "a"}) for n in "wv")
                ),
                "spans": {"w": single_calls(1), "v": single_calls(1)},
            },
            "a batch of several workflows (w, v) needs its number of runs",
        ),
        ({"arrivals": {"v": Closed(1, 1)}}, "arrivals: are for v; spans are for w"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    """What cannot be simulated is refused by one line."""
    given = {
        "plan": plan_of("a"),
        "spans": {"w": single_calls(1)},
        "curves": {"a": curve()},
        "arrivals": Closed(1, 1),
        **change,
    }
    with pytest.raises(InputError) as caught:
        simulate_plan(given["plan"], given["spans"], given["curves"], given["arrivals"])
    assert message in str(caught.value)
