"""Bundles, workflows and demand with known answers, for the tests of planning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.bundle import Bundle, BundleHeader
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import DemandSummary, LlmDemand, Plan
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.topology import Domain, Node, Topology, check_topology
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import evidence_for
from scepsy_hpc.planning.curves.making import make_curve
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Rate, Target

HEADER = BundleHeader(
    model="org/model",
    engine="vllm",
    engine_version="0.20.0",
    engine_args={},
    precision="bf16",
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    how="measured",
    source="a test",
    licence="Apache-2.0",
    date="2026-01-01",
    points_sha256="0",
    weights_gib=10.0,
    kv_bytes_per_token=100_000.0,
)

ENGINE = EngineModel(step_s=0.01, prefill_token_s=2e-5, sequence_s=1e-4, context_token_s=2e-8)
"""A made-up engine, so that points of any shape are known exactly."""


SHAPES = ((1000.0, 100.0), (4000.0, 200.0), (500.0, 1.0), (2000.0, 400.0))
"""Token lengths from which an engine model can be fitted."""


def point(concurrency: float, throughput_rps: float, **changes: Any) -> Point:
    """A closed point that keeps Little's law."""
    made = Point(
        tp_degree=1,
        gpu_share_pct=100,
        load="closed",
        concurrency=concurrency,
        throughput_rps=throughput_rps,
        latency_mean_s=concurrency / throughput_rps,
        input_tokens_mean=1000.0,
        output_tokens_mean=100.0,
    )
    return replace(made, **changes)


def open_point(rate_rps: float, throughput_rps: float, latency_s: float, **changes: Any) -> Point:
    """A point under Poisson arrivals."""
    made = replace(point(1, throughput_rps), load="open", concurrency=None)
    return replace(made, arrival_rate_rps=rate_rps, latency_mean_s=latency_s, **changes)


def engine_points(
    shapes: Iterable[tuple[float, float]],
    concurrency: Sequence[float] = (1, 4, 16, 64),
    engine: EngineModel = ENGINE,
    **changes: Any,
) -> tuple[Point, ...]:
    """Points of ``ENGINE`` at several token shapes."""
    made = []
    for inputs, outputs in shapes:
        for k in concurrency:
            state = engine.closed_loop(k, inputs, outputs)
            made.append(
                point(
                    float(k),
                    state.throughput_rps,
                    input_tokens_mean=inputs,
                    output_tokens_mean=outputs,
                    ttft_mean_s=state.ttft_s,
                    **changes,
                )
            )
    return tuple(made)


def bundle(points: Iterable[Point], **header: Any) -> Bundle:
    """A bundle in memory; its digest is made of what it says."""
    made = replace(HEADER, **header)
    found = tuple(points)
    name = f"{made.model}-{made.engine}-{made.engine_version}-{made.gpu_type}-{len(found)}"
    return Bundle(replace(made, points_sha256=name), found, Path("profiles") / name)


def curve_of(
    made: Bundle, share: int = 100, tp: int = 1, tokens: TokenLengths | None = None, **more: float
) -> Curve:
    """The curve of a bundle, by default at the tokens of ``point`` on a whole GPU."""
    evidence = next(evidence_for(made.header.model, made.header.gpu_type, [made]))
    link = None if tp == 1 else "nvlink"
    return make_curve(
        evidence,
        Parallelism(made.header.gpu_type, link, tp, share),
        tokens or TokenLengths(1000.0, 100.0),
        **more,
    )


@lru_cache(maxsize=64)
def _flat_curve(rate_rps: float) -> Curve:
    return curve_of(bundle([point(1, rate_rps)]))


@lru_cache(maxsize=100_000)
def flat_group_s(rate_rps: float, replicas: int, load_rps: float) -> float:
    """Latency of a call that comes alone to a group whose replicas do so many calls a second."""
    return _flat_curve(rate_rps).latency_s(load_rps, replicas)


def has_flag(curve: Curve, flag: str) -> bool:
    """Whether one of the curve's flags begins so."""
    return any(text.startswith(flag) for text in curve.flags)


def cluster(num_nodes: int = 1, gpus: int = 8, **changes: Any) -> Topology:
    """Equal H100 nodes of one NVLink domain."""
    domain = Domain(gpus=tuple(range(gpus)), link="nvlink")
    nodes = [
        replace(
            Node(name=f"n{i}", gpu_type="h100_sxm", gpu_memory_gib=80.0, domains=(domain,)),
            **changes,
        )
        for i in range(num_nodes)
    ]
    return check_topology(tuple(nodes), "test")


def workflow(name: str, llms: dict[str, Llm]) -> Workflow:
    """A workflow without an agent."""
    return Workflow(name, llms, None, Path(f"{name}.yaml"))


def calls(per_run: float, parallelism: float = 1.0, **changes: Any) -> LlmDemand:
    """Demand for one LLM at the tokens of ``point``."""
    made = LlmDemand(
        calls_per_run=per_run,
        parallelism=parallelism,
        share_mean=0.5,
        input_tokens_mean=1000.0,
        output_tokens_mean=100.0,
    )
    return replace(made, **changes)


def demand(
    llms: dict[str, LlmDemand], overlap: float = 1.0, tool_time_s: float = 0.0, **more: Any
) -> WorkflowDemand:
    """Demand of a workflow with ten runs."""
    summary = DemandSummary(num_runs=10, tool_time_s=tool_time_s, overlap=overlap, llms=llms)
    return WorkflowDemand(summary, **more)


MODELS = {"a": "org/model", "b": "org/small"}
FLOW = workflow("w", {alias: Llm(model=model) for alias, model in MODELS.items()})
NEEDS = demand({"a": calls(3.0, parallelism=1.5), "b": calls(2.0)}, tool_time_s=1.0)
"""Two LLMs, the second four times as fast: a workflow that ``two_bundles`` can host."""


def two_bundles() -> list[Bundle]:
    """Profiles of both models at TP 1 and 2."""
    found = []
    for model, factor in (("org/model", 1.0), ("org/small", 4.0)):
        points = []
        for tp, gain in ((1, 1.0), (2, 1.6)):
            for p in engine_points(SHAPES, tp_degree=tp):
                rate = p.throughput_rps * factor * gain
                points.append(
                    replace(p, throughput_rps=rate, latency_mean_s=(p.concurrency or 1.0) / rate)
                )
        found.append(bundle(points, model=model, link="nvlink"))
    return found


def request_for(target: Target, flow: Workflow = FLOW, **changes: Any) -> PlanRequest:
    """A request for that workflow on a node of eight GPUs, at one run per second if at a rate."""
    rate = 1.0 if target == Rate() else None
    asked = PlanRequest(
        [(flow, rate)], two_bundles(), cluster(), target, demands={flow.name: NEEDS}
    )
    return replace(asked, **changes)


def gpus_of_plan(plan: Plan) -> int:
    """GPUs that its instances stand on."""
    return len({(i.node, gpu) for i in plan.instances for gpu in i.gpus})
