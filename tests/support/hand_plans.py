"""A plan of one LLM whose figures can be worked out by hand."""

from __future__ import annotations

from planning_cases import bundle, calls, demand, point

from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow

BUNDLES = [bundle([point(1, 1.0), point(4, 4.0), point(8, 4.0)])]
DEPLOYMENT = Deployment(
    model="org/model",
    engine="vllm",
    gpu_type="h100_sxm",
    tp_degree=1,
    gpu_share_pct=100,
    num_replicas=1,
)
PLAN = Plan(
    workflows=(PlanWorkflow(name="w", llms={"a": "a"}, max_runs_in_flight=4),),
    llms={"a": DEPLOYMENT},
)
NEEDS = {"w": demand({"a": calls(1.0)}, tool_time_s=0.0)}
