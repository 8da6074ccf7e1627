"""What each LLM may run on, and what is refused and why."""

from __future__ import annotations

import pytest
from planning_cases import (
    SHAPES,
    bundle,
    calls,
    cluster,
    demand,
    engine_points,
    point,
    request_for,
    two_bundles,
    workflow,
)

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Rate


def test_engine_filter_and_unknown_models() -> None:
    """An engine that no profile has, or a model without profiles, is refused with what there is."""
    with pytest.raises(InputError, match=r"org/model: no profile .* engine sglang.*vllm 0\.20\.0"):
        make_plan(request_for(Rate(), engine="sglang"))
    with pytest.raises(InputError, match="profiles there are: none"):
        make_plan(request_for(Rate(), bundles=[]))


def test_declared_parallelism_is_kept() -> None:
    """What the workflow declares bounds the plan: TP 2 and whole GPUs only."""
    only = Llm(model="org/model", tp_degrees=(2,), gpu_shares_pct=(100,))
    flow = workflow("w", {"a": only, "b": Llm(model="org/small", gpu_shares_pct=(50,))})
    plan = make_plan(request_for(Rate(), flow))
    assert (plan.llms["a"].tp_degree, plan.llms["a"].gpu_share_pct) == (2, 100)
    assert plan.llms["b"].gpu_share_pct == 50
    assert any("derived" in flag and flag.startswith("b:") for flag in plan.predicted.flags)  # type: ignore[union-attr]


def test_nothing_fits() -> None:
    """Weights above every GPU's memory: infeasible, and each refusal says why."""
    big = [bundle(engine_points(SHAPES), weights_gib=500.0), *two_bundles()[1:]]
    with pytest.raises(InfeasibleError, match="weights do not fit"):
        make_plan(request_for(Rate(), bundles=big))


def test_smaller_memory_here_than_profiled() -> None:
    """The GPUs at hand bound the memory: a profile of 80 GiB says nothing of 16."""
    small = cluster(gpu_memory_gib=16.0)
    plan = make_plan(request_for(Rate(0.5), topology=small))
    assert plan.llms["a"].memory_gib is not None
    assert plan.llms["a"].memory_gib <= 14.0
    flow = workflow("w", {"a": Llm(model="m")})
    one = [bundle([point(1, 1.0)], model="m", weights_gib=20.0)]
    with pytest.raises(InfeasibleError, match="do not fit"):
        make_plan(
            PlanRequest([(flow, 0.1)], one, small, Rate(), demands={"w": demand({"a": calls(1.0)})})
        )
