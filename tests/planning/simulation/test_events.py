"""Discrete-event simulation of traced runs on a plan."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.engines.simulated.batching import RunningBatch, Sequence
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, to_plain
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import Deployment, Instance, Plan, PlanWorkflow
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.simulation.events import simulate_plan, simulate_timeline
from scepsy_hpc.planning.simulation.flows import Closed, Open, sampled
from scepsy_hpc.planning.simulation.hosts import closed_load_rps, engine_on, mean_sizes, size_of
from scepsy_hpc.planning.simulation.percentiles import bootstrap_intervals
from scepsy_hpc.planning.simulation.replicas import (
    ContinuousBatching,
    Engine,
    ProcessorSharing,
    Size,
)
from scepsy_hpc.planning.simulation.results import Timeline, result_of

MODEL = EngineModel(
    step_s=0.01,
    prefill_token_s=5e-5,
    sequence_s=2e-4,
    context_token_s=3e-7,
    max_num_batched_tokens=512,
    max_num_seqs=16,
    kv_tokens=6000.0,
)
ONE = Size(1.0, 10, 10, 10)


def curve(
    concurrency: tuple[float, ...] = (1.0,),
    rates: tuple[float, ...] = (1.0,),
    tokens: TokenLengths | None = None,
    ttft_s: tuple[float, ...] | None = None,
) -> Curve:
    """A curve; by default one call per second whatever the load."""
    return Curve(
        kind=Parallelism("h100_sxm", None, 1, 100),
        tokens=tokens or TokenLengths(10.0, 10.0),
        server=Server(concurrency, rates),
        ttft_s=ttft_s or (math.nan,) * len(rates),
        flags=(),
        bundle_sha256="0",
        memory_gib=78.0,
    )


UNLIMITED = curve((1.0, 64.0), (1.0, 64.0))
"""A call takes 1 s, whoever else is there."""


def plan_of(*names: str, num_replicas: int = 1, **more: Any) -> Plan:
    """A plan with one deployment for each name."""
    one = Deployment(
        model="m",
        engine="vllm",
        gpu_type="h100_sxm",
        tp_degree=1,
        gpu_share_pct=100,
        num_replicas=num_replicas,
    )
    return Plan(llms=dict.fromkeys(names, one), **more)


def call(run: str, span_id: str, start_s: float, end_s: float, **more: Any) -> Span:
    """A call of `a` with ten input and ten output tokens."""
    known = {"llm": "a", "input_tokens": 10, "output_tokens": 10, "status": "ok", **more}
    return Span(run_id=run, span_id=span_id, kind="llm", start_s=start_s, end_s=end_s, **known)


def run_span(run: str, start_s: float, end_s: float, status: str = "ok") -> Span:
    """The span of a whole run."""
    return Span(run_id=run, span_id="run", kind="run", start_s=start_s, end_s=end_s, status=status)


def single_calls(number: int) -> list[Span]:
    """Runs of one call of a second each, without any gap."""
    return [call(f"r{i}", "s", 0.0, 1.0) for i in range(number)]


def times(timeline: Timeline) -> list[tuple[float, float]]:
    """Start and end of each run."""
    return list(zip(timeline.run_start_s, timeline.run_end_s, strict=True))


def test_processor_sharing_by_hand() -> None:
    """Two calls of size 1 at half a second's distance share one call per second: 1.5 s and 2 s."""
    replica = ProcessorSharing(Server((1.0,), (1.0,)))
    replica.add(1, ONE, 0.0)
    assert replica.end_s == 1.0
    replica.add(2, ONE, 0.5)
    assert replica.end_s == 1.5
    assert replica.pop() == [1]
    assert replica.end_s == 2.0
    assert replica.pop() == [2]
    assert (replica.end_s, replica.in_flight) == (math.inf, 0)


def test_processor_sharing_follows_the_curve() -> None:
    """k calls that start together end together after k / X(k), sizes stretch their own time."""
    server = Server((1.0, 4.0), (1.0, 2.5))
    for k in (1, 2, 3, 4, 9):
        replica = ProcessorSharing(server)
        for index in range(k):
            replica.add(index, ONE, 0.0)
        assert replica.end_s == pytest.approx(k / float(server.rate_rps(k)))
    replica = ProcessorSharing(Server((1.0, 64.0), (1.0, 64.0)))
    replica.add(1, Size(2.5, 10, 10, 10), 0.0)
    assert replica.end_s == 2.5


def test_steps_equal_those_of_the_engine() -> None:
    """Jumping over steps gives each call the end that the simulated engine's own steps give it."""
    rng = random.Random(1)
    for _ in range(30):
        budget, seats = rng.choice([256, 2048]), rng.choice([4, 64])
        growth_s, cache = rng.choice([0.0, 3e-7]), rng.choice([None, 3000.0])
        model = EngineModel(0.01, 5e-5, 2e-4, growth_s, budget, seats, cache)
        now_s, jobs = 0.0, []
        for _ in range(40):
            now_s += rng.choice([0.0, rng.expovariate(2.0), rng.expovariate(20.0)])
            jobs.append((now_s, rng.randint(1, 1500), rng.choice([1, rng.randint(1, 200)])))
        assert ends_of(model, jobs) == pytest.approx(ends_in_engine(model, jobs), abs=1e-9)


Jobs = list[tuple[float, int, int]]


def ends_of(model: EngineModel, jobs: Jobs) -> list[float]:
    """When each call (arrival, input, output tokens) ends in a replica."""
    replica, found = ContinuousBatching(Engine(model)), [0.0] * len(jobs)

    def pop() -> None:
        end_s = replica.end_s
        for ended in replica.pop():
            found[ended] = end_s

    for index, (now_s, inputs, outputs) in enumerate(jobs):
        while replica.end_s <= now_s:
            pop()
        replica.add(index, Size(1.0, inputs, inputs, outputs), now_s)
    while replica.end_s < math.inf:
        pop()
    assert replica.in_flight == 0
    return found


def ends_in_engine(model: EngineModel, jobs: Jobs) -> list[float]:
    """The same in the simulated engine's batch."""
    window_s = Engine(model).join_window_s
    batch = RunningBatch(model, max_num_seqs=model.max_num_seqs or 256, join_window_s=window_s)
    sequences = []
    for now_s, inputs, outputs in jobs:
        batch.advance(now_s)
        sequences.append(Sequence(inputs, outputs))
        batch.add(sequences[-1], now_s)
    while batch.step_end_s is not None:
        batch.advance(batch.step_end_s)
    return [sequence.finished_s or math.nan for sequence in sequences]


def test_lone_call_takes_its_steps() -> None:
    """A call alone takes its prefill step and a decode step per further token, exactly."""
    (end_s,) = ends_of(MODEL, [(1.0, 300, 4)])
    prefill_s = 0.01 + 300 * 5e-5
    decodes_s = sum(0.01 + 2e-4 + 3e-7 * context for context in (301, 302, 303))
    assert end_s == pytest.approx(1.0 + prefill_s + decodes_s)


def test_engine_is_held_to_the_curve() -> None:
    """Whatever the fit says, a closed load of the profiled calls reaches the curve's throughput."""
    rng = random.Random(2)
    lengths = [(rng.randint(50, 400), rng.randint(1, 120)) for _ in range(100)]
    mean = np.mean(lengths, axis=0)
    slow = curve((1.0, 4.0, 8.0), (1.1, 3.5, 5.0), TokenLengths(float(mean[0]), float(mean[1])))
    traced = [size_of(slow, inputs, outputs, None) for inputs, outputs in lengths]
    for sizes in (traced, mean_sizes(slow)):
        engine = engine_on(MODEL, slow, sizes)
        for k in (1, 4, 8):
            found_rps = closed_load_rps(engine, sizes, k)
            assert found_rps == pytest.approx(float(slow.server.rate_rps(k)), rel=0.02)
        assert len(engine.stretch) == 9
        assert max(engine.stretch) / min(engine.stretch) > 1.05
    outputs = [size.output_tokens for size in mean_sizes(slow)]
    assert np.mean(outputs) == pytest.approx(mean[1], abs=0.04)
    assert max(outputs) - min(outputs) <= 1


def test_sizes() -> None:
    """Work is 1 for a mean call, split as TTFT says; cached tokens need none; unknown is mean."""
    known = curve((1.0,), (0.5,), TokenLengths(100.0, 11.0), ttft_s=(0.5,))
    assert size_of(known, 100, 11, None) == Size(1.0, 100, 100, 11)
    assert size_of(known, None, None, None) == Size(1.0, 100, 100, 11)
    assert size_of(known, 200, 11, 100) == Size(1.0, 100, 200, 11)
    assert size_of(known, 300, 1, None).work == pytest.approx(0.75)
    assert size_of(known, 100, 31, None).work == pytest.approx(0.25 + 0.75 * 3.0)
    prompts = curve((1.0,), (0.5,), TokenLengths(100.0, 1.0))
    assert size_of(prompts, 250, 1, None).work == 2.5


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


def test_unlimited_open_arrivals_are_poisson() -> None:
    """Arrivals come at the rate, with gaps as dispersed as an exponential's."""
    timeline = simulate_timeline(
        plan_of("a"), {"w": single_calls(1)}, {"a": UNLIMITED}, Open(4000, 5.0), seed=3
    )
    gaps_s = np.diff(timeline.run_start_s)
    assert gaps_s.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps_s.std() == pytest.approx(0.2, rel=0.1)


def mixed_spans(num_runs: int) -> list[Span]:
    """Runs with fan-outs of `a`, a call of `b`, tools and failures, all by a fixed seed."""
    rng, found = random.Random(9), []
    for i in range(num_runs):
        now_s = 100.0 * i
        found.append(run_span(f"r{i}", now_s, now_s + 60.0, rng.choice(["ok", "ok", "error"])))
        for j in range(rng.randint(1, 5)):
            ends = []
            for k in range(rng.randint(1, 4)):
                end_s = now_s + rng.uniform(0.1, 2.0)
                llm = rng.choice(["a", "b"])
                lengths = {"input_tokens": rng.randint(1, 300), "output_tokens": rng.randint(1, 80)}
                found.append(call(f"r{i}", f"{j}.{k}", now_s, end_s, llm=llm, **lengths))
                ends.append(end_s)
            now_s = max(ends) + rng.uniform(0.0, 1.0)
    return found


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
    result = result_of(timeline, seed=0)
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


def test_which_runs_are_run() -> None:
    """In file order while they last; beyond that every traced run equally often, but for one."""
    chance = np.random.default_rng(0)
    assert sampled(5, 3, chance) == [0, 1, 2]
    drawn = sampled(5, 23, chance)
    counts = np.bincount(drawn, minlength=5)
    assert sorted(counts.tolist()) == [4, 4, 5, 5, 5]
    assert drawn != sorted(drawn)


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


def test_open_arrivals_keep_the_mix() -> None:
    """One rate for two workflows is split as the plan's rates are, and so are the runs."""
    workflows = (
        PlanWorkflow(name="v", llms={"a": "a"}, rate_rps=3.0),
        PlanWorkflow(name="w", llms={"a": "a"}, rate_rps=1.0),
    )
    spans = {"v": single_calls(1), "w": single_calls(1)}
    plan = plan_of("a", workflows=workflows)
    result = simulate_plan(plan, spans, {"a": UNLIMITED}, Open(4000, 8.0))
    assert [result.per_workflow[name].num_runs for name in ("v", "w")] == [3000, 1000]
    for name, rate in (("v", 6.0), ("w", 2.0)):
        assert result.per_workflow[name].throughput_rps == pytest.approx(rate, rel=0.1)


def test_instances_say_how_many_replicas() -> None:
    """A plan written by hand with instances alone hosts as many replicas as it lists."""
    instances = tuple(
        Instance(id=f"a{i}", llm="a", node="n", gpus=(i,), gpu_share_pct=100) for i in range(2)
    )
    result = simulate_plan(
        Plan(instances=instances), {"w": single_calls(2)}, {"a": curve()}, Closed(2, 2)
    )
    assert result.per_llm["a"].num_replicas == 2
    assert result.makespan_s == pytest.approx(1.0)


def test_figures_say_what_they_rest_on() -> None:
    """The record survives the way through a file and names inferred order, resampling, few runs."""
    spans = mixed_spans(6)
    shape = curve((1.0, 8.0), (1.0, 4.0), TokenLengths(150.0, 40.0))
    result = simulate_plan(
        plan_of("a", "b"),
        {"w": spans},
        {"a": shape, "b": shape},
        Closed(10, 3),
        engine_models={"a": MODEL},
    )
    plain = json.loads(json.dumps(to_plain(result)))
    assert check(plain, Figures, "result") == result
    assert plain["how"] == "simulated"
    kinds = [flag.split(":")[1].strip() for flag in result.flags if flag.startswith("w:")]
    assert kinds == ["inferred", "failed_runs", "resampled"]
    assert any(flag.startswith("few_runs: w") for flag in result.flags)
    servers = {name: llm.server for name, llm in result.per_llm.items()}
    assert servers == {"a": "continuous_batching", "b": "processor_sharing"}


def test_beyond_what_is_known() -> None:
    """More calls in flight on a replica than the curve knows, or fewer, are said."""
    known = curve((2.0, 3.0), (1.0, 1.2))
    result = simulate_plan(plan_of("a"), {"w": single_calls(4)}, {"a": known}, Closed(4, 4))
    mine = [flag for flag in result.flags if flag.startswith("a: ")]
    assert mine == [
        "a: below_first_concurrency: latency is held flat below 2",
        "a: extrapolated: a replica had up to 4 calls in flight, known are 3; throughput is held "
        "beyond",
    ]
    models = {"a": MODEL}
    result = simulate_plan(
        plan_of("a"), {"w": single_calls(3)}, {"a": known}, Closed(3, 3), engine_models=models
    )
    assert not any(flag.startswith("a: ") for flag in result.flags)


def test_bootstrap_intervals() -> None:
    """Intervals hold the figures, tighten with more runs, and are absent for a single run."""
    chance = np.random.default_rng(3)
    few, many = chance.exponential(size=30), chance.exponential(size=3000)
    widths = []
    for values in (few, many):
        found = bootstrap_intervals(values, seed=0)
        low, high = found["latency_mean_s"]
        assert low < values.mean() < high
        low95, high95 = found["latency_p95_s"]
        assert low95 <= np.percentile(values, 95) <= high95
        widths.append(high - low)
    # 95% of a normal: 2 x 1.96 standard errors of the mean.
    assert widths[1] == pytest.approx(2 * 1.96 * many.std() / math.sqrt(3000), rel=0.15)
    assert widths[0] > 3 * widths[1]
    assert bootstrap_intervals(few[:1], seed=0) == {}


def test_failed_runs_load_but_do_not_count() -> None:
    """A failed run takes its time on the server and no part in throughput and latency."""
    spans = [
        run_span("bad", 0.0, 1.0, "error"),
        call("bad", "s", 0.0, 1.0),
        call("good", "s", 0.0, 1.0),
    ]
    result = simulate_plan(plan_of("a"), {"w": spans}, {"a": curve()}, Closed(2, 2))
    figures = result.per_workflow["w"]
    assert (figures.num_runs, figures.num_failed) == (2, 1)
    assert figures.throughput_rps == pytest.approx(0.5)
    assert figures.latency_mean_s == pytest.approx(2.0)
    assert figures.intervals == {}


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
            {"spans": {"w": single_calls(1), "v": single_calls(1)}},
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Closed(0, 1), "num_runs (0)"),
        (lambda: Closed(1, 0), "max_in_flight (0)"),
        (lambda: Open(0, 1.0), "num_runs (0)"),
        (lambda: Open(1, math.nan), "rate_rps (nan)"),
        (lambda: Open(1, -1.0), "rate_rps (-1.0)"),
    ],
)
def test_bad_arrivals(make: Any, message: str) -> None:
    """Arrivals that make no sense repeat the value they refuse."""
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
