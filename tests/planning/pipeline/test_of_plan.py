"""Plans, also those written by hand, back to pipelines; what of them is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_plans import BUNDLES, DEPLOYMENT, NEEDS, PLAN
from planning_cases import bundle, point, workflow

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Instance, Plan
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.pipeline.of_plan import check_complete, complete, predict_plan


def test_closed_steady_state_without_tasks() -> None:
    """A plan without a rate is predicted at its runs in flight, without a makespan."""
    found = predict_plan(PLAN, NEEDS, BUNDLES)
    assert found.throughput_rps == pytest.approx(4.0)
    assert found.makespan_s is None


def test_open_rate_goes_before() -> None:
    """A rate asked for makes it open arrivals: M/M/4 at 50%."""
    found = predict_plan(PLAN, NEEDS, BUNDLES, rate_rps=2.0)
    assert found.latency_mean_s == pytest.approx(1.0 + 4 / 23 * 0.5, rel=1e-6)
    assert found.throughput_rps == pytest.approx(4.0)


def test_by_hand_with_llms_only() -> None:
    """A plan of `llms` only takes its workflows from the command line."""
    flow = workflow("w", {"a": Llm(model="org/model")})
    plan = complete(Plan(llms={"a": DEPLOYMENT}), [flow], BUNDLES)
    assert predict_plan(plan, NEEDS, BUNDLES, rate_rps=1.0).latency_mean_s == pytest.approx(
        1.0, rel=0.02
    )
    with pytest.raises(InputError, match="nothing hosts 'b'"):
        complete(plan_without(plan), [workflow("w", {"b": Llm(model="org/model")})], BUNDLES)


def test_what_a_plan_by_hand_lacks_or_has_too_much() -> None:
    """An LLM that the workflow given does not call; what `simulate` needs in the plan itself."""
    flow = workflow("w", {"a": Llm(model="org/model")})
    with pytest.raises(InputError, match=r"llms\.idle: no workflow uses it; they use: a"):
        complete(Plan(llms={"a": DEPLOYMENT, "idle": DEPLOYMENT}), [flow], BUNDLES)
    with pytest.raises(InputError, match=r"add, .*: `workflows: \[{name: NAME, llms: {a: a}}\]`"):
        check_complete(Plan(llms={"a": DEPLOYMENT}))
    with pytest.raises(InputError, match="llms: missing; add each LLM with model"):
        check_complete(Plan(workflows=PLAN.workflows))
    check_complete(PLAN)


def plan_without(plan: Plan) -> Plan:
    """The plan without its workflows."""
    return replace(plan, workflows=())


def test_by_hand_with_instances_only() -> None:
    """A plan of `instances` only: model by alias, GPU type from the profiles, replicas counted."""
    flow = workflow("w", {"a": Llm(model="org/model")})
    instances = tuple(
        Instance(id=f"a-{i}", llm="a", node="n0", gpus=(i,), gpu_share_pct=100) for i in range(2)
    )
    plan = complete(Plan(instances=instances), [flow], BUNDLES)
    assert plan.llms["a"].num_replicas == 2
    assert predict_plan(plan, NEEDS, BUNDLES, rate_rps=1.0).throughput_rps == pytest.approx(8.0)
    mixed = (instances[0], replace(instances[1], gpu_share_pct=50))
    with pytest.raises(InputError, match="differ"):
        complete(Plan(instances=mixed), [flow], BUNDLES)
    other = [*BUNDLES, bundle([point(1, 1.0)], gpu_type="a100_sxm")]
    with pytest.raises(InputError, match="gpu_type"):
        complete(Plan(instances=instances), [flow], other)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(PLAN, llms={"a": replace(DEPLOYMENT, tp_degree=2, gpu_share_pct=50)}), "TP 2"),
        (replace(PLAN, llms={"a": replace(DEPLOYMENT, model="org/none")}), "org/none: no profile"),
        (replace(PLAN, workflows=(replace(PLAN.workflows[0], llms={"z": "a"}),)), "'z'"),
        (replace(PLAN, workflows=(replace(PLAN.workflows[0], name="v"),)), "workflow v"),
        (
            replace(
                PLAN,
                instances=(Instance(id="i", llm="a", node="n", gpus=(0,), gpu_share_pct=100),),
                llms={"a": replace(DEPLOYMENT, num_replicas=2)},
            ),
            "num_replicas",
        ),
    ],
)
def test_bad_plans_are_refused(plan: Plan, message: str) -> None:
    """A plan that the profiles or the demand cannot answer for is refused with what is wrong."""
    with pytest.raises(InputError, match=message):
        predict_plan(plan, NEEDS, BUNDLES, rate_rps=1.0)


def test_no_rate_at_all() -> None:
    """Neither rate nor runs in flight: the error says what to give."""
    plan = replace(PLAN, workflows=(replace(PLAN.workflows[0], max_runs_in_flight=None),))
    with pytest.raises(InputError, match="give --rate"):
        predict_plan(plan, NEEDS, BUNDLES)
    with pytest.raises(InputError, match="greater than 0"):
        predict_plan(plan, NEEDS, BUNDLES, rate_rps=-1.0)


def test_another_precision_is_refused() -> None:
    """A plan of a precision that nobody measured gets no figures of another one."""
    known = BUNDLES[0].header.precision
    for precision, fits in ((known, True), ("fp9", False)):
        llm = replace(DEPLOYMENT, precision=precision)
        plan = replace(PLAN, llms={"a": llm})
        if fits:
            assert predict_plan(plan, NEEDS, BUNDLES, rate_rps=2.0).latency_mean_s
        else:
            with pytest.raises(InputError, match=r"llms\.a\.precision: no profile"):
                predict_plan(plan, NEEDS, BUNDLES, rate_rps=2.0)
