"""What each LLM may run on, and what is refused and why."""

from __future__ import annotations

from collections.abc import Sequence

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
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.offers import offers_for, shelf_for
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.targets import Rate

TOKENS = TokenLengths(1000.0, 100.0)


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


def _offered(flow: Workflow, bundles: Sequence[Bundle], topology: Topology) -> dict[str, set[int]]:
    """Shares offered to each LLM of a workflow."""
    needs = demand({alias: calls(1.0) for alias in flow.llms})
    request = PlanRequest([(flow, 0.1)], bundles, topology, Rate(), demands={flow.name: needs})
    return {
        name: {offer.curve.kind.gpu_share_pct for offer in offers.found}
        for name, offers in PlanningProblem.of(request).offers.items()
    }


def test_derived_shares_only_where_whole_gpus_do_not_do() -> None:
    """Two LLMs on two GPUs: whole ones. On one GPU: slices nobody measured, and each says why."""
    flow = workflow("w", {"a": Llm(model="org/model"), "b": Llm(model="org/small")})
    assert _offered(flow, two_bundles(), cluster(gpus=2)) == {"a": {100}, "b": {100}}
    assert _offered(flow, two_bundles(), cluster(gpus=1)) == {
        "a": {25, 50, 100},
        "b": {25, 50, 100},
    }
    one = make_plan(request_for(Rate(), flow, topology=cluster(gpus=1)))
    assert one.predicted is not None
    assert any("no plan on whole GPUs holds every LLM once" in f for f in one.predicted.flags)


def test_measured_and_declared_shares_are_always_considered() -> None:
    """A share with points, or one that the workflow declares, needs no other reason."""
    points = [*engine_points(SHAPES), *engine_points(SHAPES, gpu_share_pct=30)]
    measured = [bundle(points), two_bundles()[1]]
    declared = Llm(model="org/small", gpu_shares_pct=(40, 100))
    flow = workflow("w", {"a": Llm(model="org/model"), "b": declared})
    assert _offered(flow, measured, cluster()) == {"a": {30, 100}, "b": {40, 100}}


def test_slices_of_a_gpu_promise_no_more_than_the_gpu() -> None:
    """Whatever is offered as derived: all slices of a GPU together do at most what it does."""
    flow = workflow("w", {"a": Llm(model="org/model"), "b": Llm(model="org/small")})
    needs = demand({alias: calls(1.0) for alias in flow.llms})
    tight = PlanRequest([(flow, 0.1)], two_bundles(), cluster(gpus=1), Rate(), demands={"w": needs})
    for offers in PlanningProblem.of(tight).offers.values():
        whole = next(o.curve for o in offers.found if o.curve.kind.gpu_share_pct == 100)
        slices = [o.curve for o in offers.found if o.curve.kind.gpu_share_pct < 100]
        assert len(slices) == 2
        for curve in slices:
            number = 100 / curve.kind.gpu_share_pct
            assert number * curve.capacity_rps <= whole.capacity_rps * (1.0 + 1e-9)


def test_the_workflow_selects_engine_version_and_precision() -> None:
    """Unstated: the newest measured version; stated: that one, or an error with what there is."""
    bundles = [
        bundle(engine_points(SHAPES), engine_version="0.20.0"),
        bundle(engine_points(SHAPES), engine_version="0.9.0"),
        bundle(engine_points(SHAPES), engine_version="0.9.0", precision="fp8"),
    ]

    def version(llm: Llm) -> tuple[str, str]:
        found = offers_for("a", llm, TOKENS, shelf_for(bundles, cluster()), cluster()).found
        header = found[0].bundle.header
        return header.engine_version, header.precision

    assert version(Llm(model="org/model")) == ("0.20.0", "bf16")
    assert version(Llm(model="org/model", engine_version="0.9.0")) == ("0.9.0", "bf16")
    assert version(Llm(model="org/model", engine="vllm", precision="fp8")) == ("0.9.0", "fp8")
    with pytest.raises(InputError, match=r"engine_version 0\.7.*as the workflow states"):
        version(Llm(model="org/model", engine_version="0.7"))


def test_engine_arguments_part_bundles_and_matching_ones_go_first() -> None:
    """Profiles with other arguments or memory are other bodies of evidence, never one curve."""
    plain = bundle(engine_points(SHAPES))
    eager = bundle(engine_points(SHAPES, concurrency=(1, 2, 4, 8)), engine_args={"eager": True})
    small = bundle(engine_points(SHAPES, concurrency=(1, 3)), gpu_memory_gib=64.0)
    shelf = shelf_for([plain, eager, small], cluster())
    assert [len(e.bundles) for e in shelf.evidence("org/model", "h100_sxm")] == [1, 1, 1]
    wants = Llm(model="org/model", engine_args={"eager": True})
    found = offers_for("a", wants, TOKENS, shelf, cluster()).found
    assert found[0].bundle.header.engine_args == {"eager": True}
    assert not any("engine_args" in flag for flag in found[0].curve.flags)
