"""How fast the simulator is: calls by CPU-minute, for each kind of replica. No figure is asserted.

    python bench/simulator.py [--json FILE]

Cases: calls of exponential size on a processor-sharing replica; four such replicas; an engine's
steps at half load and near capacity; conversations of ten turns on engines with prefix caches,
under either routing rule. Every case is simulated by `planning.check`, Poisson arrivals, one seed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow, Routing
from scepsy_hpc.formats.spans import Prefix, Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.check import checked
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Stage
from scepsy_hpc.planning.simulation.arrivals import Open
from scepsy_hpc.planning.simulation.run_graph import run_graphs

ENGINE = EngineModel(0.008, 4e-5, 1e-4, 1e-7, 8192, 256, 400_000.0)


@dataclass(frozen=True, slots=True)
class SpeedCase:
    """What is simulated; ``load`` is a part of capacity, of processor sharing or of an engine."""

    name: str
    spans: Sequence[Span]
    num_replicas: int
    rate_rps: float
    tokens: TokenLengths
    engine: EngineModel | None = None
    rule: str = "least_in_flight"


def singles() -> list[Span]:
    """Runs of one call of exponential output length."""
    rng = random.Random(1)
    return [_call(f"r{i}", 0, 0.0, 1, 1 + round(rng.expovariate(0.01))) for i in range(2000)]


def chats(num_turns: int = 10) -> list[Span]:
    """Conversations: each turn repeats all before and adds 300 tokens; answers of 150."""
    rng, found = random.Random(2), []
    for i in range(200):
        inputs, before = 1500, None
        for turn in range(num_turns):
            outputs = max(round(rng.gauss(150, 40)), 10)
            found.append(_call(f"r{i}", turn, 4.0 * turn, inputs, outputs, before))
            before = Prefix(span_id=str(turn), tokens=inputs + outputs)
            inputs += outputs + 300
    return found


def _call(
    run: str, index: int, start_s: float, inputs: int, outputs: int, before: Prefix | None = None
) -> Span:
    return Span(
        run_id=run,
        span_id=str(index),
        kind="llm",
        llm="a",
        status="ok",
        start_s=start_s,
        end_s=start_s + 2.0,
        input_tokens=inputs,
        output_tokens=outputs,
        prefix_of=before,
    )


def cases() -> list[SpeedCase]:
    """All of them."""
    plain, talk = singles(), chats()
    mean = sum(s.output_tokens or 0 for s in plain) / len(plain)
    short, long = TokenLengths(1.0, mean), TokenLengths(3500.0, 150.0, 2900.0)
    return [
        SpeedCase("processor sharing, 1 replica, 80%", plain, 1, 0.8, short),
        SpeedCase("processor sharing, 4 replicas, 80%", plain, 4, 3.2, short),
        SpeedCase("engine steps, 4 replicas, 40%", plain, 4, 80.0, short, ENGINE),
        SpeedCase("engine steps, 4 replicas, 80%", plain, 4, 160.0, short, ENGINE),
        SpeedCase("prefix caches, 4 replicas", talk, 4, 1.5, long, ENGINE),
        SpeedCase("prefix caches, sticky", talk, 4, 1.5, long, ENGINE, "sticky_prefix"),
    ]


def measure(case: SpeedCase, max_calls: int) -> dict[str, object]:
    """Simulate one case; calls a CPU-minute and what came out."""
    deployment = Deployment(
        model="m",
        engine="vllm",
        gpu_type="h100_sxm",
        tp_degree=1,
        gpu_share_pct=100,
        num_replicas=case.num_replicas,
    )
    plan = Plan(
        workflows=(PlanWorkflow(name="w", llms={"a": "a"}),),
        llms={"a": deployment},
        routing=Routing(rule=case.rule),  # type: ignore[arg-type]
    )
    graphs = {"w": run_graphs(case.spans)}
    stage = Stage("a", Llm(model="m"), ())
    hosted = [HostedStage(stage, _curve(case), case.num_replicas)]
    num_runs = max_calls * len(graphs["w"]) // len(case.spans)
    started_s = time.process_time()
    found = checked(plan, graphs, hosted, Open(None, case.rate_rps), num_runs=num_runs)
    cpu_s = time.process_time() - started_s
    calls = found.per_llm["a"].num_calls or 0
    return {
        "case": case.name,
        "calls": calls,
        "cpu_s": round(cpu_s, 2),
        "calls_per_cpu_minute": round(60.0 * calls / cpu_s),
        "latency_mean_s": found.latency_mean_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _curve(case: SpeedCase) -> Curve:
    points: tuple[tuple[float, ...], tuple[float, ...]] = ((1.0,), (1.0,))
    if case.engine is not None:
        at = (1.0, 4.0, 16.0, 64.0)
        tokens = (case.tokens.inputs, case.tokens.outputs, case.tokens.cached)
        points = (at, tuple(case.engine.closed_loop(k, *tokens).throughput_rps for k in at))
    return Curve(
        kind=Parallelism("h100_sxm", None, 1, 100),
        tokens=case.tokens,
        server=Server(*points),
        ttft_s=(math.nan,) * len(points[0]),
        flags=(),
        bundle_sha256="0",
        memory_gib=78.0,
        engine=case.engine,
    )


def main() -> None:
    """Print every case; write them with the commit they were measured at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300_000, help="calls of each case")
    parser.add_argument("--json", type=Path, help="file to write")
    given = parser.parse_args()
    rows = []
    for case in cases():
        rows.append(measure(case, given.calls))
        speed = float(str(rows[-1]["calls_per_cpu_minute"])) / 1e6
        print(f"{case.name:40} {speed:6.2f} million calls a CPU-minute", flush=True)
    if given.json is not None:
        line = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
        given.json.write_text(json.dumps({"commit": commit, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
