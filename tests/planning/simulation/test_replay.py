"""Replay of traced runs with call latencies drawn at a load."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulation_cases import length_s

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import RunFigures
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.curves.bursts import Bursts
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.pipeline.pipeline import GroupLoad
from scepsy_hpc.planning.simulation.replay import Replay
from scepsy_hpc.planning.simulation.run_graph import run_graphs

MEAN = TokenLengths(100.0, 11.0)
NAMES = {"w": {"a": "A", "b": "B"}}


def curve(concurrency: tuple[float, ...], rates: tuple[float, ...], ttft_s: float = 0.25) -> Curve:
    """A curve for calls of 100 input and 11 output tokens with one TTFT at every load."""
    return Curve(
        kind=Parallelism("h100_sxm", None, 1, 100),
        tokens=MEAN,
        server=Server(concurrency, rates),
        ttft_s=(ttft_s,) * len(rates),
        flags=(),
        bundle_sha256="0",
        memory_gib=78.0,
    )


UNLIMITED = curve((1.0, 1000.0), (1.0, 1000.0))
"""A call of mean length takes 1 s at any load, a quarter of it its prompt."""


def call(run: str, span_id: str, start_s: float, end_s: float, **more: Any) -> Span:
    """A call of `a` of mean length."""
    known = {"llm": "a", "input_tokens": 100, "output_tokens": 11, "status": "ok", **more}
    return Span(run_id=run, span_id=span_id, kind="llm", start_s=start_s, end_s=end_s, **known)


def random_spans(num_runs: int) -> list[Span]:
    """Runs of overlapping calls and tools."""
    rng, found = random.Random(3), []
    for i in range(num_runs):
        for j in range(rng.randint(1, 25)):
            start_s = rng.uniform(0.0, 20.0)
            one = call(f"r{i}", f"s{j}", start_s, start_s + rng.uniform(0.0, 4.0))
            tool = replace(one, kind="tool", llm=None)
            found.append(tool if rng.random() < 0.2 else replace(one, llm=rng.choice("ab")))
    return found


def test_all_runs_at_once_equal_each_run_alone() -> None:
    """The vectorised pass gives every run the length that its own graph gives it."""
    graphs = run_graphs(random_spans(50))
    replay = Replay.of({"w": graphs}, NAMES)
    found = replay.run_lengths_s(replay.traced_s)
    assert sorted(found) == pytest.approx(sorted(graph.traced_s for graph in graphs))
    # Twice as long calls, in both of two columns.
    twice = np.stack([replay.traced_s, 2.0 * replay.traced_s], axis=1)
    slow = [length_s(graph, [2.0 * node.traced_s for node in graph.nodes]) for graph in graphs]
    both = replay.run_lengths_s(twice)
    assert sorted(both[:, 0]) == pytest.approx(sorted(found))
    assert sorted(both[:, 1]) == pytest.approx(sorted(slow))


def test_fixed_latencies_give_exact_figures() -> None:
    """Where load changes nothing, a chain and a fork-join last as long as arithmetic says."""
    spans = [
        call("chain", "a", 0.5, 1.0),
        call("chain", "b", 2.0, 2.5),
        call("fork", "a", 0.0, 1.0),
        call("fork", "long", 0.0, 1.0, output_tokens=31),
        call("fork", "join", 1.0, 2.0),
    ]
    spans.insert(0, Span(run_id="chain", span_id="r", kind="run", start_s=0, end_s=3, status="ok"))
    replay = Replay.of({"w": run_graphs(spans)}, NAMES)
    lengths_s = replay.draw({"A": GroupLoad(UNLIMITED, 0.5)}, seed=0, num_draws=20)
    # 0.5 + 1 + 1 + 1 + 0.5 tail; the long call takes 0.25 + 0.75 x 30 / 10, then the join.
    assert lengths_s.shape == (2, 20)
    assert np.allclose(lengths_s[0], 4.0)
    assert np.allclose(lengths_s[1], 0.25 + 2.25 + 1.0)
    figures = replay.figures({"A": GroupLoad(UNLIMITED, 0.5)})["w"]
    assert figures.num_runs == 2
    assert figures.latency_mean_s == pytest.approx(3.75)
    assert figures.latency_p99_s == pytest.approx(4.0)


def test_draws_follow_the_load() -> None:
    """Single calls have the mean latency of the curve at the load."""
    server = curve((1.0, 4.0), (1.0, 2.0))
    replay = Replay.of({"w": run_graphs([call("r", "s", 0.0, 1.0)])}, NAMES)
    means = []
    for load_rps, bursts in ((0.2, Bursts()), (1.5, Bursts()), (1.5, Bursts(3.0))):
        loads = {"A": GroupLoad(server, load_rps, 1, bursts)}
        drawn = replay.draw(loads, seed=1, num_draws=40_000)[0]
        assert drawn.mean() == pytest.approx(server.latency_s(load_rps, 1, bursts), rel=0.02)
        means.append(drawn.mean())
    assert means == sorted(means)


def test_candidates_meet_the_same_luck() -> None:
    """With one seed a faster candidate is no slower in any draw; another seed draws anew."""
    replay = Replay.of({"w": run_graphs(random_spans(10))}, NAMES)
    slow, fast = curve((1.0, 4.0), (1.0, 2.0)), curve((1.0, 4.0), (1.1, 2.2))

    def draw(one: Curve, seed: int) -> np.ndarray:
        load = GroupLoad(one, 1.2)
        return replay.draw({"A": load, "B": load}, seed, 50)

    assert np.all(draw(fast, 1) <= draw(slow, 1) + 1e-12)
    assert np.any(draw(fast, 1) < draw(slow, 1))
    assert np.array_equal(draw(slow, 1), draw(slow, 1))
    assert not np.array_equal(draw(slow, 1), draw(slow, 2))


def test_unknown_ttft_splits_by_tokens() -> None:
    """Without a TTFT a mean call still takes its latency, and a longer output takes longer."""
    blind = curve((1.0, 1000.0), (1.0, 1000.0), ttft_s=math.nan)
    spans = [call("r", "s", 0.0, 1.0), call("q", "s", 0.0, 1.0, output_tokens=21)]
    replay = Replay.of({"w": run_graphs(spans)}, NAMES)
    lengths_s = replay.draw({"A": GroupLoad(blind, 0.1)}, seed=0, num_draws=1)[:, 0]
    assert lengths_s[0] == pytest.approx(1.0)
    assert 1.5 < lengths_s[1] < 2.0


def test_overload_is_unknown() -> None:
    """At a load that a replica cannot keep up with there are no figures."""
    replay = Replay.of({"w": run_graphs([call("r", "s", 0.0, 1.0)])}, NAMES)
    figures = replay.figures({"A": GroupLoad(curve((1.0,), (1.0,)), 1.0)})["w"]
    assert (figures.latency_mean_s, figures.latency_p95_s) == (None, None)
    assert figures == RunFigures(num_runs=figures.num_runs)


def test_failed_runs_and_runs_without_calls() -> None:
    """Failed runs are left out; a run without calls keeps its length."""
    spans = [
        Span(run_id="bad", span_id="r", kind="run", start_s=0.0, end_s=9.0, status="error"),
        Span(run_id="idle", span_id="r", kind="run", start_s=0.0, end_s=3.0, status="ok"),
        call("busy", "s", 0.0, 1.0),
    ]
    replay = Replay.of({"w": run_graphs(spans)}, NAMES)
    lengths_s = replay.draw({"A": GroupLoad(UNLIMITED, 0.1)}, seed=0, num_draws=2)
    assert lengths_s == pytest.approx(np.array([[1.0, 1.0], [3.0, 3.0]]))


@pytest.mark.parametrize(
    ("names", "loads", "draws", "message"),
    [
        ({"w": {}}, {}, 10, "run r calls 'a', which no deployment hosts"),
        (NAMES, {}, 10, "A: has no load"),
        (NAMES, {"A": GroupLoad(UNLIMITED, 0.1)}, 0, "num_draws (0) must be at least 1"),
    ],
)
def test_bad_input(names: Any, loads: Any, draws: int, message: str) -> None:
    """What cannot be replayed is refused by one line."""
    graphs = {"w": run_graphs([call("r", "s", 0.0, 1.0)])}
    with pytest.raises(InputError) as caught:
        Replay.of(graphs, names).figures(loads, num_draws=draws)
    assert message in str(caught.value)


def test_no_runs() -> None:
    """Without a successful run there is nothing to replay."""
    with pytest.raises(InputError, match="no successful runs"):
        Replay.of({"w": []}, NAMES)
