"""Demand: hand-computed examples, and equality with a slow reference."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check
from scepsy_hpc.formats.plan import DemandSummary
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.tracing.demand.demand import Demand, demand_of
from scepsy_hpc.tracing.importers import import_agent_traces

TRACES = sorted((Path(__file__).parents[2] / "data" / "agent_traces").glob("*.json"))


def call(run: str, llm: str, start_s: float, end_s: float, **more: Any) -> Span:
    more = {"status": "ok", "kind": "llm", **more}
    name = f"{run}-{llm}-{start_s}-{more.pop('n', 0)}"
    return Span(run_id=run, span_id=name, llm=llm, start_s=start_s, end_s=end_s, **more)


def run_span(run: str, start_s: float, end_s: float, **more: Any) -> Span:
    return Span(run_id=run, span_id=run, kind="run", start_s=start_s, end_s=end_s, status="ok",
                **more)  # fmt: skip


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
    assert (reranker.input_tokens.mean, reranker.output_tokens.mean) == (200, 2)
    assert (generator.input_tokens.num_known, generator.cached_tokens.mean) == (1, 10)
    assert {role: r.num_calls for role, r in reranker.roles.items()} == {"grade": 1, "-": 1}
    assert reranker.roles["grade"].input_tokens_mean == 100
    assert generator.num_failed == 1
    assert any("generator: 1 of 2 calls did not end ok" in flag for flag in found.flags)


def test_a_run_without_run_span_lasts_from_first_to_last_span() -> None:
    """Without run spans the tools' spans count for the run's length."""
    spans = [
        Span(run_id="a", span_id="t", kind="tool", name="s", start_s=1.0, end_s=2.0, status="ok"),
        call("a", "m", 2.0, 5.0),
    ]
    found = demand_of(spans, "w")
    assert found.run_length_mean_s == 4.0
    assert found.tool_time_s == 1.0


def test_the_summary_is_what_a_plan_keeps() -> None:
    """``summary`` passes the strict check of a plan's `demand`."""
    summary = demand_of(two_runs(), "rag").summary()
    kept = check(summary, DemandSummary, "plan")
    assert kept.llms["reranker"].input_tokens_mean == 200
    assert kept.overlap == pytest.approx(7 / 8)


def test_an_llm_that_is_never_called_is_flagged() -> None:
    """A declared LLM without a call has zero calls and a flag, and breaks nothing."""
    found = demand_of(two_runs(), "rag", ["generator", "reranker", "judge"])
    judge = found.llms["judge"]
    assert (judge.num_calls, judge.calls_per_run, judge.parallelism) == (0, 0, 1)
    assert (judge.share_mean, judge.share_cv, judge.bursts.num_bursts) == (0, None, 0)
    assert "judge: not called in the spans; its load is taken as zero" in found.flags


def test_runs_without_any_call_have_a_demand() -> None:
    """Spans of runs that call no LLM give zero calls and the whole run as tool time."""
    found = demand_of([run_span("a", 0.0, 4.0), run_span("b", 0.0, 2.0)], "w", ["m"])
    assert (found.tool_time_s, found.overlap, found.num_runs_without_calls) == (3.0, 1.0, 2)
    assert found.llms["m"].calls_per_run == 0


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([call("a", "judge", 0, 1)], "LLM 'judge' is called in the spans and not declared by "
         "workflow 'rag'; it declares: generator"),
        ([call("a", "generator", 5.0, 1.0)], r"run 'a': end_s \(1.0\) is before start_s \(5.0\)"),
        ([run_span("a", 0, 1), run_span("a", 2, 3)], "run 'a': has two run spans"),
        ([run_span("a", 0, 1, workflow="x")], "no run of workflow 'rag' in the spans; they name: x"
         ),
        ([run_span("a", 0, 1, workflow="x"), call("a", "m", 0, 1, workflow="rag")],
         "run 'a': its spans name two workflows, 'x' and 'rag'"),
        ([], "no run of workflow 'rag' in the spans; they name: none"),
    ],
)  # fmt: skip
def test_wrong_spans_are_refused(spans: list[Span], says: str) -> None:
    """What makes demand meaningless is an error that names run, LLM or workflow."""
    with pytest.raises(InputError, match=says):
        demand_of(spans, "rag", ["generator"])


def test_other_workflows_are_left_out() -> None:
    """Runs of other workflows do not count; calls belong to the workflow of their run."""
    spans = [*two_runs(), run_span("z", 0, 100, workflow="other"), call("z", "judge", 0, 100)]
    assert demand_of(spans, "rag").summary() == demand_of(two_runs(), "rag").summary()


def test_bursts_are_calls_that_start_together() -> None:
    """Four calls sent at once are one burst; a call that starts when one of them has ended, one
    that starts late into them and one of another run are not in it."""
    spans = [call("a", "m", 0.01 * n, 1.0 + n, n=n) for n in range(4)]
    spans += [call("a", "m", 1.0, 2.0, n=9)]  # the first ended at 1.0: joins only what is later
    spans += [call("a", "m", 1.9, 3.0, n=8), call("b", "m", 0.0, 1.5, n=7)]
    found = demand_of(spans, "w").llms["m"].bursts
    assert found.sizes == {1: 3, 4: 1}
    assert (found.num_bursts, found.size_max, found.size_mean) == (4, 4, 7 / 4)
    assert found.size_of_a_call == pytest.approx((16 + 1 + 1 + 1) / 7)


def test_stability_tells_how_many_runs_would_do() -> None:
    """A share that swings asks for more runs than there are; more of the same runs ask for about
    the same number; a steady share asks for few and is not flagged."""

    def shares(pairs: list[tuple[float, float]]) -> Demand:
        spans = []
        for i, (a, b) in enumerate(pairs):
            spans += [call(f"r{i}", "a", 0, a, input_tokens=1)]
            spans += [call(f"r{i}", "b", a, a + b, input_tokens=1)]
        return demand_of(spans, "w")

    wild = shares([(1, 9), (9, 1), (2, 8), (8, 2), (1, 9), (9, 1)])
    more = shares([(1, 9), (9, 1), (2, 8), (8, 2), (1, 9), (9, 1)] * 10)
    calm = shares([(5.0, 5.0), (5.1, 4.9), (4.9, 5.1), (5.0, 5.0)])
    needed = wild.llms["a"].num_runs_needed
    assert needed is not None
    assert 100 < needed < 400  # normal approximation: (1.96 * cv / 0.1)^2 with cv 0.72 to 0.79
    assert more.llms["a"].num_runs_needed == pytest.approx(needed, rel=0.25)
    assert any(f"about {needed} runs would tell its mean within 10%, not 6" in f
               for f in wild.flags)  # fmt: skip
    assert calm.flags == ()
    assert calm.llms["a"].num_runs_needed == 2


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


def test_imported_traces_keep_calls_roles_and_prefixes() -> None:
    """Each trace is one run with all its calls; sub-agents' calls have their type as role and lie
    inside the run; prefixes point to earlier calls; think time is tool time before its call."""
    spans = import_agent_traces(TRACES, aliases={"claude-opus-4-5-20251101": "main"})
    runs = [s for s in spans if s.kind == "run"]
    calls = {s.span_id: s for s in spans if s.kind == "llm"}
    assert [r.run_id for r in runs] == ["trace_0277", "trace_0332", "trace_0360"]
    found = demand_of(spans, "agent_traces")
    assert set(found.llms) == {"main", "claude-haiku-4-5-20251001"}
    nested = [c for c in calls.values() if c.run_id == "trace_0277" and c.role]
    assert len(nested) == 44
    for span in calls.values():
        if span.prefix_of is not None:
            assert calls[span.prefix_of.span_id].start_s <= span.start_s
            assert span.prefix_of.tokens <= (span.input_tokens or 0)
    for span in (s for s in spans if s.kind == "tool"):
        assert calls[span.span_id.removesuffix(".think")].start_s == span.end_s
    # The second call of the first session's first sub-agent, by hand: the sub-agent starts at
    # 79.224, the call 6 s later; it takes 1.88 s, and the answer before it came at 81.384.
    second = calls["trace_0277.2"]
    assert (second.start_s, second.end_s) == pytest.approx((85.224, 87.104))
    assert (second.role, second.parents) == ("Explore", ("trace_0277.1",))
    think = next(s for s in spans if s.span_id == "trace_0277.2.think")
    assert think.start_s == pytest.approx(81.384)


def test_calls_without_duration_are_estimated_and_say_so(tmp_path: Path) -> None:
    """A stream that was cut off has status `unfinished` and ends no later than the next call."""
    path = tmp_path / "t.json"
    path.write_text(
        """{"id": "t", "requests": [
        {"t": 0, "type": "n", "model": "m", "in": 5, "out": 10, "api_time": 2.0, "id": 0},
        {"t": 4, "type": "s", "model": "m", "in": 5, "out": 10, "think_time": 2.0, "id": 1},
        {"t": 5, "type": "s", "model": "m", "in": 5, "out": 10, "think_time": 3.0, "id": 2}]}"""
    )
    spans = [s for s in import_agent_traces([path]) if s.kind == "llm"]
    assert [(s.start_s, s.end_s, s.status) for s in spans] == [
        (0.0, 2.0, "ok"), (4.0, 5.0, "unfinished"), (5.0, 7.0, "unfinished")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "line 1: not JSON"), ('{"id": "a"}', "not an agent trace: KeyError 'requests'"),
     ('{"id": "a", "requests": []}', "has no calls"), ("[]", "not an agent trace")],
)  # fmt: skip
def test_files_that_are_no_agent_traces_are_refused(tmp_path: Path, text: str, says: str) -> None:
    """A wrong file is named with what is missing."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=says):
        import_agent_traces([tmp_path / "x.json"])
