"""Plans made of traced runs of one LLM."""

from __future__ import annotations

import random

from planning_cases import SHAPES, bundle, cluster, engine_points, workflow

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Limits, Target

FLOW = workflow("w", {"a": Llm(model="org/model")})


def spans_of_runs(num_runs: int) -> list[Span]:
    """Runs of one to nine calls of `a`, one after the other."""
    rng = random.Random(1)
    found = []
    for run in range(num_runs):
        clock_s = 0.0
        for call in range(rng.randint(1, 9)):
            found.append(
                Span(
                    run_id=f"r{run}",
                    span_id=f"s{call}",
                    kind="llm",
                    llm="a",
                    start_s=clock_s,
                    end_s=clock_s + 1.0,
                    status="ok",
                    input_tokens=1000,
                    output_tokens=100,
                )
            )
            clock_s += 1.1
    return found


def plan_of_runs(target: Target, limits: Limits | None = None, num_runs: int = 30) -> Plan:
    """The plan for those runs on a node of eight GPUs."""
    bundles, spans = [bundle(engine_points(SHAPES))], {"w": spans_of_runs(num_runs)}
    return make_plan(
        PlanRequest([(FLOW, None)], bundles, cluster(), target, limits or Limits(), spans)
    )


def simulated_p95_s_of(plan: Plan) -> float:
    """The one by which a limit is kept."""
    assert plan.simulated is not None
    assert plan.simulated.latency_p95_s is not None
    return plan.simulated.latency_p95_s


def p95_s_of(plan: Plan) -> float:
    """The predicted one."""
    assert plan.predicted is not None
    assert plan.predicted.latency_p95_s is not None
    return plan.predicted.latency_p95_s
