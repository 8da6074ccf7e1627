"""Traced runs as dependency graphs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from simulation_cases import length_s

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.simulation.run_graph import RunGraph, graph_flags, run_graphs


def num_calls(graph: RunGraph) -> int:
    """LLM calls that load an engine."""
    return sum(node.llm is not None for node in graph.nodes)


def span(span_id: str, start_s: float, end_s: float, kind: str = "llm", **more: Any) -> Span:
    """A span of run r1; LLM calls are of `a` and used ten tokens."""
    known: dict[str, Any] = {"run_id": "r1", "status": "ok"}
    if kind == "llm":
        known |= {"llm": "a", "input_tokens": 10, "output_tokens": 10}
    known |= more
    return Span(span_id=span_id, kind=kind, start_s=start_s, end_s=end_s, **known)  # type: ignore[arg-type]


def graph_of(*spans: Span) -> RunGraph:
    """The only run's graph."""
    (graph,) = run_graphs(spans)
    return graph


def edges(graph: RunGraph) -> dict[str, set[str]]:
    """Parents by span id; the run's end is `end`."""
    ids = [node.span_id for node in graph.nodes]
    found = {node.span_id: {ids[p] for p in node.parents} for node in graph.nodes}
    return {**found, "end": {ids[p] for p in graph.end_parents}}


def traced(graph: RunGraph) -> list[float]:
    """The durations that were traced."""
    return [node.traced_s for node in graph.nodes]


def test_fork_and_join() -> None:
    """A fan-out waits for what came before, the join for all of it; gaps and tail are kept."""
    graph = graph_of(
        span("run", 10.0, 20.0, "run"),
        span("ask", 11.0, 12.0),
        span("b", 12.5, 14.0),
        span("c", 12.25, 15.0),
        span("join", 15.5, 19.0),
    )
    assert edges(graph) == {
        "ask": set(),
        "b": {"ask"},
        "c": {"ask"},
        "join": {"b", "c"},
        "end": {"join"},
    }
    gaps = {node.span_id: node.gap_s for node in graph.nodes}
    assert gaps == {"ask": 1.0, "b": 0.5, "c": 0.25, "join": 0.5}
    assert graph.tail_s == 1.0
    assert graph.inferred
    assert length_s(graph, [1.0, 2.75, 1.5, 3.5]) == graph.traced_s == 10.0
    # With b twice as long the join waits for b instead of c.
    assert length_s(graph, [1.0, 2.75, 4.0, 3.5]) == pytest.approx(1 + 1 + 0.5 + 4 + 0.5 + 3.5 + 1)


def test_reduction_equals_brute_force() -> None:
    """On random runs the edges are those of `a ended before b began` that no other edge implies."""
    rng = random.Random(5)
    for _ in range(100):
        times = [(rng.randrange(20), rng.randrange(1, 6)) for _ in range(rng.randrange(1, 14))]
        spans = [span(f"s{i}", float(t), float(t + d)) for i, (t, d) in enumerate(times)]
        before = {b.span_id: {a.span_id for a in spans if a.end_s <= b.start_s} for b in spans}
        want = {b: mine - {a for c in mine for a in before[c]} for b, mine in before.items()}
        found = edges(graph_of(*spans))
        del found["end"]
        assert found == want


def test_traced_durations_give_the_traced_run() -> None:
    """With every call as long as it was, a run is as long as it was, instants included."""
    rng = random.Random(6)
    for _ in range(100):
        spans = [span("run", 0.0, 30.0, "run")]
        for i in range(rng.randrange(1, 30)):
            start_s = float(rng.randrange(25))
            end_s = start_s + rng.choice([0.0, 0.0, rng.random() * 5, 2.0])
            kind = "tool" if rng.random() < 0.3 else "llm"
            spans.append(span(f"s{i}", start_s, end_s, kind))
        graph = graph_of(*spans)
        assert all(p < i for i, node in enumerate(graph.nodes) for p in node.parents)
        assert length_s(graph, traced(graph)) == pytest.approx(30.0)


def test_explicit_parents_win() -> None:
    """A call that names its parents waits for them alone, whatever ended before it began."""
    graph = graph_of(
        span("run", 0.0, 10.0, "run"),
        span("a", 0.0, 1.0, parents=("run",)),
        span("b", 0.0, 4.0, parents=()),
        span("c", 5.0, 9.0, parents=("a",)),
    )
    assert edges(graph) == {"a": set(), "b": set(), "c": {"a"}, "end": {"b", "c"}}
    assert not graph.inferred
    assert graph_flags([graph]) == ()
    by_id = {node.span_id: node for node in graph.nodes}
    assert by_id["c"].gap_s == 4.0


def test_a_parent_under_way_passes_on_what_it_waited_for() -> None:
    """A child that began before its parent ended waits for the parent's own parents."""
    graph = graph_of(
        span("a", 0.0, 1.0, parents=()),
        span("stream", 2.0, 6.0, parents=("a",)),
        span("b", 3.0, 4.0, parents=("stream",)),
    )
    assert edges(graph)["b"] == {"a"}
    assert next(node for node in graph.nodes if node.span_id == "b").gap_s == 2.0


def test_a_sub_agent_is_as_long_as_its_calls() -> None:
    """A tool around LLM calls ends after them: shorter calls make it shorter."""
    graph = graph_of(
        span("ask", 0.0, 1.0, parents=()),
        span("agent", 1.0, 9.0, "tool", parents=("ask",)),
        span("inner", 2.0, 8.0, parents=("agent",)),
        span("after", 9.5, 10.0, parents=("agent",)),
    )
    assert edges(graph) == {
        "ask": set(),
        "inner": {"ask"},
        "agent": {"inner"},
        "after": {"agent"},
        "end": {"after"},
    }
    assert traced(graph)[2] == 0.0
    assert length_s(graph, traced(graph)) == 10.0
    assert length_s(graph, [1.0, 1.0, 0.0, 0.5]) == 5.0


def test_a_tool_of_its_own_keeps_its_time() -> None:
    """A tool without LLM calls inside is a fixed time, and so is a call that used no tokens."""
    graph = graph_of(
        span("search", 0.0, 2.0, "tool"),
        span("lost", 2.0, 3.0, status="error", output_tokens=None),
        span("answer", 3.0, 4.0),
    )
    assert [node.llm for node in graph.nodes] == [None, None, "a"]
    assert traced(graph) == [2.0, 1.0, 1.0]
    assert num_calls(graph) == 1


def test_what_outlives_the_run_does_not_hold_it() -> None:
    """A call still under way at the run's end is sent but not waited for."""
    graph = graph_of(span("run", 0.0, 3.0, "run"), span("a", 0.0, 2.0), span("behind", 2.0, 8.0))
    assert edges(graph) == {"a": set(), "behind": {"a"}, "end": {"a"}}
    assert length_s(graph, [2.0, 60.0]) == 3.0


def test_runs_stand_in_file_order() -> None:
    """Spans of several runs may be mixed; runs keep the order of their first span."""
    spans = [
        span("a", 5.0, 6.0, run_id="late"),
        span("a", 0.0, 1.0, run_id="early"),
        span("b", 6.0, 7.0, run_id="late"),
        span("run", 0.0, 1.0, "run", run_id="early", status="error"),
    ]
    graphs = run_graphs(spans)
    assert [(g.run_id, num_calls(g), g.is_ok) for g in graphs] == [
        ("late", 2, True),
        ("early", 1, False),
    ]
    inferred, failed = graph_flags(graphs)
    assert inferred.startswith("inferred: in 2 of 2 runs")
    assert failed.startswith("failed_runs: 1 of 2")


def test_a_run_without_calls() -> None:
    """A run of nothing but its own span lasts as long as it did."""
    graph = graph_of(span("run", 1.0, 4.0, "run"))
    assert (graph.nodes, graph.tail_s, num_calls(graph)) == ((), 3.0, 0)
    assert not graph.inferred


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([span("a", 2.0, 1.0)], "run r1: span a: end_s (1.0) is before start_s (2.0)"),
        ([span("a", 0.0, 1.0), span("a", 1.0, 2.0)], "run r1: span a: stands twice"),
        ([span("a", 0.0, 1.0, parents=("x",))], "span a: parents: 'x' is no span of the run"),
        (
            [span("a", 0.0, 1.0, parents=("b",)), span("b", 0.0, 3.0, parents=("a",))],
            "run r1: parents: spans wait for each other in a circle: ",
        ),
        (
            [span("a", 0.0, 1.0, parents=("b",)), span("b", 2.0, 3.0)],
            "span a: parents: 'b' starts after it (2.0 > 0.0)",
        ),
        (
            [span("r", 0.0, 1.0, "run"), span("q", 0.0, 1.0, "run")],
            "run r1: has 2 run spans (r, q)",
        ),
    ],
)
def test_bad_spans(spans: list[Span], message: str) -> None:
    """Each bad span is refused by a line that names run and span."""
    with pytest.raises(InputError) as caught:
        run_graphs(spans)
    assert message in str(caught.value)
