"""Plans, curves and traced runs whose simulation can be worked out by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.simulation.events import simulate_timeline
from scepsy_hpc.planning.simulation.results import Timeline, result_of
from scepsy_hpc.planning.simulation.run_graph import RunGraph

MODEL = EngineModel(
    step_s=0.01,
    prefill_token_s=5e-5,
    sequence_s=2e-4,
    context_token_s=3e-7,
    max_num_batched_tokens=512,
    max_num_seqs=16,
    kv_tokens=6000.0,
)


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
    """A plan with one deployment for each name, which workflow `w` calls by that name."""
    one = Deployment(
        model="m",
        engine="vllm",
        gpu_type="h100_sxm",
        tp_degree=1,
        gpu_share_pct=100,
        num_replicas=num_replicas,
    )
    workflows = (PlanWorkflow(name="w", llms={name: name for name in names}),)
    return Plan(llms=dict.fromkeys(names, one), **{"workflows": workflows, **more})


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


def times(timeline: Timeline) -> list[tuple[float, float]]:
    """Start and end of each run."""
    return list(zip(timeline.run_start_s, timeline.run_end_s, strict=True))


def length_s(graph: RunGraph, durations_s: Sequence[float]) -> float:
    """Length of a run if its nodes took this long, worked out node by node."""
    ends: list[float] = []
    for node, duration_s in zip(graph.nodes, durations_s, strict=True):
        ready_s = max((ends[p] for p in node.parents), default=0.0)
        ends.append(ready_s + node.gap_s + duration_s)
    return max((ends[p] for p in graph.end_parents), default=0.0) + graph.tail_s


def simulate_plan(*given: Any, **more: Any) -> Figures:
    """Figures of ``simulate_timeline``."""
    return result_of(simulate_timeline(*given, **more))
