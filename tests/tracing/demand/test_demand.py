"""Demand: hand-computed examples, and equality with a slow reference."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from span_cases import call, run_span

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, to_plain
from scepsy_hpc.formats.plan import DemandSummary, LlmDemand
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.tracing.demand.demand import Demand, Distribution, RoleDemand, demand_of
from scepsy_hpc.tracing.importers import import_agent_traces

TRACES = sorted((Path(__file__).parents[2] / "data" / "agent_traces").glob("*.json"))


def two_runs() -> list[Span]:
    """Run a: reranker 0-2 and 1-3, generator 2-6. Run b: generator 11-12. Run c: nothing."""
    return [
        run_span("a", 0.0, 10.0, workflow="rag"),
        call("a", "reranker", 0.0, 2.0, input_tokens=100, output_tokens=1, role="grade"),
        call("a", "reranker", 1.0, 3.0, input_tokens=300, output_tokens=3),
        call("a", "generator", 2.0, 6.0, input_tokens=1000, output_tokens=50, cached_tokens=10),
        run_span("b", 10.0, 15.0, workflow="rag"),
        call("b", "generator", 11.0, 12.0, status="error_503"),
        run_span("c", 20.0, 23.0, workflow="rag"),
    ]


def test_cpu_seconds_are_the_mean_of_the_runs_that_say() -> None:
    """A run that says nothing is unknown, not idle; without any that says the figure is null."""
    spans = two_runs()
    assert demand_of(spans, "rag").cpu_s is None
    said = [replace(s, cpu_s={"a": 0.5, "c": 0.0}.get(s.run_id)) if s.kind == "run" else s
            for s in spans]  # fmt: skip
    found = demand_of(said, "rag")
    assert found.cpu_s == found.summary().cpu_s == 0.25


def test_a_hand_computed_example() -> None:
    """Every defined figure of a small example equals what the definitions give by hand."""
    found = demand_of(two_runs(), "rag", ["generator", "reranker"])
    generator, reranker = found.llms["generator"], found.llms["reranker"]
    assert found.num_runs == 3
    assert found.num_runs_without_calls == 1
    assert generator.calls_per_run == pytest.approx(2 / 3)
    assert reranker.calls_per_run == pytest.approx(2 / 3)
    assert reranker.parallelism == pytest.approx(4 / 3)  # 4 s of calls in 3 s
    assert generator.parallelism == pytest.approx(1.0)
    # Shares: run a 4/7 and 3/7, run b 1 and 0; run c has none.
    assert generator.share_mean == pytest.approx((4 / 7 + 1) / 2)
    assert reranker.share_mean == pytest.approx(3 / 14)
    assert generator.share_cv == pytest.approx(statistics.stdev([4 / 7, 1]) / ((4 / 7 + 1) / 2))
    # Tool time: run a 10 - 6, run b 5 - 1, run c 3.
    assert found.tool_time_s == pytest.approx((4 + 4 + 3) / 3)
    assert found.overlap == pytest.approx((6 + 1) / (3 + 5))
    assert (found.run_lengths_s, found.run_length_mean_s) == ((10.0, 5.0, 3.0), 6.0)
    assert (reranker.num_calls, reranker.num_failed, generator.num_failed) == (2, 0, 1)
    assert (reranker.input_tokens_mean, reranker.output_tokens_mean) == (200, 2)
    assert (generator.input_tokens.num_known, generator.cached_tokens.mean) == (1, 10)
    assert (generator.cached_tokens_mean, reranker.cached_tokens_mean) == (10, None)
    assert (generator.duration_s.mean, reranker.duration_s.mean) == (2.5, 2.0)
    assert reranker.output_tokens.max == 3
    assert (reranker.burst_sizes, reranker.fan_out) == ({2: 1}, 2.0)
    assert (generator.burst_sizes, generator.fan_out) == ({1: 2}, 1.0)


def test_roles_of_an_llm() -> None:
    """Each role has its own calls, tokens and durations; what has none stands under `-`."""
    spans = [*two_runs(), call("c", "reranker", 21.0, 23.0, role="grade", output_tokens=7)]
    roles = demand_of(spans, "rag").llms["reranker"].roles
    assert list(roles) == ["-", "grade"]
    assert roles["grade"] == RoleDemand(
        num_calls=2,
        calls_per_run=2 / 3,
        input_tokens_mean=100,
        output_tokens_mean=4,
        duration_mean_s=2.0,
    )
    assert roles["-"].calls_per_run == pytest.approx(1 / 3)
    assert list(demand_of(spans, "rag").llms["generator"].roles) == ["-"]


def test_quantiles_of_known_values() -> None:
    """Of 0, 1, ... 20 s the 5th percentile is 1, the median 10, the 95th 19; calls without token
    counts do not count as zero tokens."""
    spans = [call("a", "m", 100.0 * n, 101.0 * n, output_tokens=n or None) for n in range(21)]
    found = demand_of(spans, "w").llms["m"]
    assert found.duration_s == Distribution(21, 10.0, 1.0, 10.0, 19.0, 20.0)
    assert found.output_tokens == Distribution(
        20, 10.5, pytest.approx(1.95), 10.5, pytest.approx(19.05), 20.0
    )
    assert found.output_tokens_mean == 10.5
    assert found.input_tokens == Distribution(0, None, None, None, None, None)


def test_calls_that_outlive_their_run_take_no_tool_time() -> None:
    """Run a is 2 s long with a call of 5 s, run b idle for 4 s: 0 and 4 s of tool time."""
    spans = [run_span("a", 0.0, 2.0), call("a", "m", 0.0, 5.0), run_span("b", 0.0, 4.0)]
    assert demand_of(spans, "w").tool_time_s == 2.0


def test_short_calls_are_as_parallel_as_long_ones() -> None:
    """Two calls of 2 ms in flight for 3 ms together, and one to another LLM inside the last."""
    spans = [call("a", "m", 0.0, 0.002), call("a", "m", 0.001, 0.003), call("a", "n", 0.002, 0.003)]
    found = demand_of(spans, "w")
    assert found.llms["m"].parallelism == pytest.approx(4 / 3)
    assert found.overlap == pytest.approx(3 / 4)


def test_calls_of_no_duration_are_calls() -> None:
    """They are busy for no time, so no share or parallelism can be made of them."""
    found = demand_of([run_span("a", 0.0, 1.0), call("a", "m", 0.5, 0.5)], "w")
    llm = found.llms["m"]
    assert (llm.num_calls, llm.parallelism, llm.share_mean, llm.share_cv) == (1, None, None, None)
    assert (found.overlap, found.tool_time_s, found.num_runs_without_calls) == (None, 1.0, 0)
    assert found.flags[0] == (
        "m: no call of it took any time; its parallelism is unknown and taken as 1"
    )
    assert "inf" not in str(found)
    assert "nan" not in str(found)


def test_the_summary_is_what_a_plan_keeps() -> None:
    """``summary`` has the plan's figures of each LLM and nothing beside them; a plan takes it."""
    summary = demand_of(two_runs(), "rag").summary()
    # Two calls together: 100 and 300 input tokens (28 weigh as one of output), 1 and 3 of output.
    low, high = 100 / 28, 300 / 28 + 2
    apart = (high - low) / (high + low)
    assert check(to_plain(summary), DemandSummary, "plan") == summary
    assert (summary.num_runs, summary.overlap) == (3, pytest.approx(7 / 8))
    assert summary.tool_time_s == pytest.approx(11 / 3)
    assert summary.llms["reranker"] == LlmDemand(
        calls_per_run=2 / 3,
        parallelism=4 / 3,
        share_mean=pytest.approx(3 / 14),
        share_cv=pytest.approx(statistics.stdev([3 / 7, 0]) / (3 / 14)),
        input_tokens_mean=200,
        output_tokens_mean=2,
        cached_tokens_mean=None,
        fan_out=2,
        work_cv=pytest.approx(apart),
        fan_out_work_cv=pytest.approx(apart * math.sqrt(2)),
        fan_out_work_gap=pytest.approx(apart),
    )


def test_an_llm_that_is_never_called_is_flagged() -> None:
    """A declared LLM without a call has zero calls and a flag, and breaks nothing."""
    found = demand_of(two_runs(), "rag", ["generator", "reranker", "judge"])
    judge = found.llms["judge"]
    assert (judge.num_calls, judge.calls_per_run, judge.parallelism) == (0, 0, None)
    assert (judge.share_mean, judge.share_cv, judge.burst_sizes, judge.fan_out) == (
        0,
        None,
        {},
        None,
    )
    assert (judge.roles, judge.repeated_input) == ({}, 0)
    assert [flag for flag in found.flags if flag.startswith("judge")] == [
        "judge: not called in the spans; its load is taken as zero"
    ]


def test_runs_without_any_call_have_a_demand() -> None:
    """Spans of runs that call no LLM give zero calls and the whole run as tool time."""
    found = demand_of([run_span("a", 0.0, 4.0), run_span("b", 0.0, 2.0)], "w", ["m"])
    assert (found.tool_time_s, found.overlap, found.num_runs_without_calls) == (3.0, None, 2)
    assert found.llms["m"].calls_per_run == 0


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([run_span("a", 0, 1, workflow="x")], "no run of workflow 'rag' in the spans; they name: x"
         ),
        ([run_span("a", 0, 1, workflow="x"), call("a", "m", 0, 1, workflow="rag")],
         "run 'a': its spans name two workflows, 'x' and 'rag'"),
        ([], "no run of workflow 'rag' in the spans; they name: none"),
        ([call("a", "judge", 0, 1)], "LLM 'judge' is called in the spans and not declared"),
    ],
)  # fmt: skip
def test_wrong_spans_are_refused(spans: list[Span], says: str) -> None:
    """What makes demand meaningless is an error that names run, LLM or workflow."""
    with pytest.raises(InputError, match=says):
        demand_of(spans, "rag", ["generator"])


def test_other_workflows_are_left_out() -> None:
    """Runs of other workflows do not count; calls belong to the workflow of their run."""
    spans = [*two_runs(), run_span("z", 0, 100, workflow="other"), call("z", "judge", 0, 100)]
    assert demand_of(spans, "rag") == demand_of(two_runs(), "rag")


def test_calls_that_failed_or_have_no_tokens_are_flagged() -> None:
    """In a line for each LLM that has some, and in none for the others."""
    assert demand_of(two_runs(), "rag").flags[:1] == (
        "generator: 1 of 2 calls did not end ok (failed, retried, cut off); calls_per_run "
        "counts them",
    )
    silent = [call("a", "m", 0.0, 1.0), call("a", "n", 0.0, 1.0, input_tokens=1)]
    assert demand_of(silent, "w").flags == (
        "m: no call has token counts; its load cannot be predicted",
    )


def _shares(*pairs: tuple[float, float]) -> Demand:
    """Runs of one call to `a` and then one to `b`, of these durations."""
    spans = []
    for i, (a, b) in enumerate(pairs):
        spans += [call(f"r{i:03}", "a", 0, a, input_tokens=1)]
        spans += [call(f"r{i:03}", "b", a, a + b, input_tokens=1)]
    return demand_of(spans, "w")


def test_a_share_that_swings_is_flagged_with_the_runs_it_needs() -> None:
    """The flag asks for more runs than there are, says that they are enough, or neither where two
    runs cannot tell; a steady share is not flagged."""
    wild = _shares((1, 9), (9, 1), (2, 8), (8, 2), (1, 9), (9, 1))
    needed = wild.llms["a"].num_runs_needed
    assert needed is not None
    assert 100 < needed < 400  # normal approximation: (1.96 * cv / 0.1)^2 with cv 0.72 to 0.79
    cv = statistics.stdev([1, 9, 2, 8, 1, 9]) / 5
    says = f"a: its share of LLM time varies from run to run (cv {cv:.2f})"
    assert wild.flags[0] == f"{says}; about {needed} runs would tell its mean within 10%, not 6"
    cv = statistics.stdev([3, 7] * 70) / 5
    assert _shares(*[(3, 7), (7, 3)] * 70).flags[0] == (
        f"a: its share of LLM time varies from run to run (cv {cv:.2f}); 140 runs are enough to "
        "know its mean within 10%"
    )
    two = _shares((1, 9), (9, 1))
    assert two.flags[0] == "a: its share of LLM time varies from run to run (cv 1.13)"
    calm = _shares((5.0, 5.0), (5.1, 4.9), (4.9, 5.1), (5.0, 5.0))
    assert calm.flags == ()
    assert calm.llms["a"].num_runs_needed == 2


def _continued(tokens: int, input_tokens: int | None, cached: int | None = None) -> Span:
    """A call that repeats so many tokens of an earlier prompt."""
    made = call("a", "m", 1.0, 2.0, n=tokens, input_tokens=input_tokens, cached_tokens=cached)
    return replace(made, prefix_of=Prefix(span_id="x", tokens=tokens))


def _first(input_tokens: int = 5) -> Span:
    """The call whose prompt ``_continued`` repeats."""
    return replace(call("a", "m", 0.0, 1.0, input_tokens=input_tokens), span_id="x")


def test_repeated_prompts_are_told_not_assumed() -> None:
    """Input that repeats a prompt is named where no engine said what it cached, never counted: 30
    of 40 tokens here; a call of unknown input adds none."""
    first = _first()
    spans = [first, _continued(20, 25), _continued(10, 10), _continued(7, None)]
    silent = demand_of(spans, "w")
    assert silent.llms["m"].repeated_input == pytest.approx(30 / 40)
    assert silent.llms["m"].cached_tokens_mean is None
    assert silent.flags == (
        "m: 75% of its input repeats an earlier prompt (prefix_of); plans count it as cached, "
        "though no cached_tokens were recorded",
    )
    told = demand_of([first, _continued(15, 20, cached=0)], "w")
    assert (told.flags, told.llms["m"].repeated_input) == ((), 0)


def test_what_repeats_in_blocks_is_kept_by_the_plan() -> None:
    """Of 40 tokens that repeat a cache has 32, of 33 in an input of 33 it has 32, of 5 none."""
    first = _first()
    assert demand_of([first], "w").llms["m"].prefix_tokens_mean is None
    spans = [first, _continued(40, 60), _continued(33, 33), _continued(5, 40)]
    kept = demand_of(spans, "w").summary().llms["m"]
    assert (kept.prefix_tokens_mean, kept.cached_tokens_mean) == ((0 + 32 + 32 + 0) / 4, None)


def test_a_zero_that_an_engine_left_out_is_a_zero() -> None:
    """One of two calls says 30: the other, with a usage, found nothing; one that failed says no
    more than before."""
    spans = [_continued(40, 60, cached=30), _first(60)]
    found = demand_of([*spans, call("a", "m", 3.0, 4.0, status="error_500")], "w").llms["m"]
    assert (found.cached_tokens_mean, found.cached_tokens.num_known) == (15.0, 2)
    assert found.repeated_input == 0


def plain_reference(spans: list[Span]) -> dict[str, Any]:
    """The contract's definitions, written down without arrays."""
    by_run = defaultdict(list)
    for span in spans:
        by_run[span.run_id].append(span)
    names = sorted({s.llm for s in spans if s.llm})
    tools, any_total, busy_total = [], 0.0, dict.fromkeys(names, 0.0)
    durations, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    shares: dict[str, list[float]] = {name: [] for name in names}
    for members in by_run.values():
        told = [s for s in members if s.kind == "run"] or members
        length = max(s.end_s for s in told) - min(s.start_s for s in told)
        calls = [s for s in members if s.kind == "llm"]
        any_busy = union(calls)
        busy = {n: union([c for c in calls if c.llm == n]) for n in names}
        for span in calls:
            durations[str(span.llm)] += span.end_s - span.start_s
            counts[str(span.llm)] += 1
        tools.append(max(length - any_busy, 0.0))
        any_total += any_busy
        for name in names:
            busy_total[name] += busy[name]
            if sum(busy.values()) > 0:
                shares[name].append(busy[name] / sum(busy.values()))
    return {
        "num_runs": len(by_run),
        "tool_time_s": statistics.mean(tools),
        "overlap": any_total / sum(busy_total.values()),
        "llms": {
            n: (counts[n] / len(by_run), durations[n] / busy_total[n], statistics.mean(shares[n]),
                statistics.stdev(shares[n]) / statistics.mean(shares[n]))
            for n in names
        },
    }  # fmt: skip


def union(calls: list[Span]) -> float:
    total, end = 0.0, float("-inf")
    for span in sorted(calls, key=lambda s: s.start_s):
        total += max(span.end_s - max(span.start_s, end), 0.0)
        end = max(end, span.end_s)
    return total


def assert_equal_to_reference(spans: list[Span], workflow: str, rel: float = 1e-9) -> None:
    found, wanted = demand_of(spans, workflow), plain_reference(spans)
    assert found.num_runs == wanted["num_runs"]
    assert found.tool_time_s == pytest.approx(wanted["tool_time_s"], rel=rel)
    assert found.overlap == pytest.approx(wanted["overlap"], rel=rel)
    assert set(found.llms) == set(wanted["llms"])
    for name, llm in found.llms.items():
        figures = (llm.calls_per_run, llm.parallelism, llm.share_mean, llm.share_cv)
        assert figures == pytest.approx(wanted["llms"][name], rel=rel), name


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset_s", [0.0, 1.7e9])
def test_equals_the_reference_on_random_spans(seed: int, offset_s: float) -> None:
    """Runs with and without run spans, calls that overlap, nest, touch and take no time: the arrays
    give what plain loops give, in relative time and in Unix seconds."""
    chance = random.Random(seed)
    spans = []
    for r in range(40):
        begin = offset_s + chance.uniform(0, 1e4)
        if chance.random() < 0.5:
            spans.append(run_span(f"r{r}", begin, begin + 200))
        for n in range(chance.choice([0, 1, 2, 30]) or (spans[-1:] == [])):
            start = begin + round(chance.uniform(0, 100), chance.choice([0, 3]))
            duration = chance.choice([0.0, 1.0, chance.expovariate(0.2)])
            spans.append(call(f"r{r}", chance.choice("xyz"), start, start + duration, n=n))
    chance.shuffle(spans)
    assert_equal_to_reference(spans, "w", rel=1e-9 if offset_s == 0 else 1e-6)


def test_equals_the_reference_on_real_traces() -> None:
    """On real sessions of coding agents, imported, arrays and plain loops agree."""
    assert_equal_to_reference(import_agent_traces(TRACES), "agent_traces")
