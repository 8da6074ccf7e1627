"""Groups of replicas under load: what the package predicts, and what a slow simulation finds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from simulation_cases import plan_of, simulate_plan
from slow_group import simulate

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline, Stage, WorkflowLoad
from scepsy_hpc.planning.simulation.arrivals import Open
from scepsy_hpc.planning.simulation.tails import Tails
from scepsy_hpc.tracing.demand.demand import demand_of

RATES: dict[str, Callable[[int], float]] = {
    "prefill": lambda k: 1.4 * k / (k + 0.4),
    "decode": lambda k: min(k, 16) / (1.0 + min(k, 16) / 16.0),
}
"""X(k) of two replicas: prompts fill the GPU at once; outputs share a batch of up to 16."""
SIZES = ("equal", "exponential", "lognormal 1.5")
_NUM_TRACED = 400
_TOKENS = 500  # of a mean call: so many tokens are as good as any real number of them


@dataclass(frozen=True)
class Case:
    """One group: X, replicas, calls of a fan-out, fan-outs of a run, sizes, part of capacity."""

    curve: str
    replicas: int
    fan_out: int
    rounds: int
    sizes: str
    utilisation: float

    @property
    def traced(self) -> list[list[list[int]]]:
        """Tokens of the calls of each round of each traced run."""
        chance = random.Random(f"{self.fan_out} {self.rounds} {self.sizes}")
        sigma = math.sqrt(math.log(1 + 1.5**2))
        draw: dict[str, Callable[[], float]] = {
            "equal": lambda: 1.0,
            "exponential": lambda: chance.expovariate(1.0),
            "lognormal 1.5": lambda: chance.lognormvariate(-sigma * sigma / 2, sigma),
        }
        return [
            [
                [max(round(_TOKENS * draw[self.sizes]()), 1) for _ in range(self.fan_out)]
                for _ in range(self.rounds)
            ]
            for _ in range(_NUM_TRACED)
        ]

    @property
    def runs_rps(self) -> float:
        """Runs per second that load the group so."""
        calls_rps = self.utilisation * self.replicas * LIMITS_AT_END[self.curve]
        return calls_rps / (self.fan_out * self.rounds)


LIMITS_AT_END = {name: rate(4096) for name, rate in RATES.items()}


@dataclass(frozen=True)
class Figures:
    """Mean latency of a call and 95th percentile of a run (s), with half-widths where sampled."""

    call_s: float
    run_p95_s: float
    call_half_s: float = 0.0
    run_p95_half_s: float = 0.0


def spans_of(case: Case) -> list[Span]:
    """The traced runs: one round after the other, each as long as its longest call."""
    found = []
    for run, rounds in enumerate(case.traced):
        now_s = 0.0
        for stage, tokens in enumerate(rounds):
            for place, number in enumerate(tokens):
                prompt, output = (number, 1) if case.curve == "prefill" else (1, number + 1)
                found.append(
                    Span(
                        run_id=f"r{run}",
                        span_id=f"{stage}.{place}",
                        kind="llm",
                        llm="a",
                        start_s=now_s,
                        end_s=now_s + 1.0,
                        status="ok",
                        input_tokens=prompt,
                        output_tokens=output,
                        parents=tuple(f"{stage - 1}.{i}" for i in range(len(rounds[0])))
                        if stage
                        else (),
                    )
                )
            now_s += 1.0
    return found


def curve_of_case(case: Case) -> Curve:
    """The curve of its replicas at its mean tokens; a prompt of one token is no work."""
    numbers = [n for run in case.traced for stage in run for n in stage]
    mean = sum(numbers) / len(numbers)
    tokens = TokenLengths(mean, 1.0) if case.curve == "prefill" else TokenLengths(1.0, mean + 1.0)
    known = tuple(range(1, 17)) if case.curve == "decode" else (*range(1, 33), 64, 256, 1024, 4096)
    rate = RATES[case.curve]
    server = Server(tuple(map(float, known)), tuple(rate(k) for k in known))
    ttft = (math.nan if case.curve == "prefill" else 0.0,) * len(known)
    return Curve(Parallelism("h100_sxm", None, 1, 100), tokens, server, ttft, (), "0", 78.0)


def hosted(case: Case) -> tuple[Pipeline, HostedStage]:
    """The case as a pipeline of one stage."""
    demand = WorkflowDemand.of(demand_of(spans_of(case), "w", ["a"]))
    stage = Stage("A", Llm(model="m"), (demand.use("w", "a"),))
    load = WorkflowLoad("w", case.runs_rps, demand.summary.overlap, 0.0)
    return Pipeline((load,), (stage,)), HostedStage(stage, curve_of_case(case), case.replicas)


def predicted(case: Case) -> Figures:
    """By the pipeline and by replay."""
    pipeline, host = hosted(case)
    tails = Tails.of({"w": spans_of(case)}).figures(pipeline, [host], with_intervals=False)
    p95_s = tails["w"].latency_p95_s
    assert p95_s is not None
    return Figures(host.load(pipeline.rates_rps).latency_s, p95_s)


def reference(case: Case, num_calls: int, seed: int = 1) -> Figures:
    """By the slow simulation, with 95% intervals from 10 batches."""
    numbers = [n for run in case.traced for stage in run for n in stage]
    mean = sum(numbers) / len(numbers)
    works = [[[n / mean for n in stage] for stage in run] for run in case.traced]
    found = simulate(RATES[case.curve], case.replicas, works, case.runs_rps, num_calls, seed)
    call_s, call_half_s = _with_half(found.calls_s, np.mean)
    p95_s, p95_half_s = _with_half(found.runs_s, lambda x: np.percentile(x, 95))
    return Figures(call_s, p95_s, call_half_s, p95_half_s)


def _with_half(values: list[float], figure: Callable[..., object]) -> tuple[float, float]:
    batches = np.array([float(figure(part)) for part in np.array_split(np.array(values), 10)])  # type: ignore[arg-type]
    return float(figure(np.array(values))), 2.262 * float(batches.std(ddof=1)) / math.sqrt(10)  # type: ignore[arg-type]


def simulated(case: Case, num_runs: int, seed: int = 1) -> float:
    """Mean latency of a call (s) by the package's simulator."""
    plan = plan_of("a", num_replicas=case.replicas)
    curves = {"a": curve_of_case(case)}
    figures = simulate_plan(
        plan, {"w": spans_of(case)}, curves, Open(num_runs, case.runs_rps), seed=seed
    )
    latency_s = figures.per_llm["a"].latency_mean_s
    assert latency_s is not None
    return latency_s
