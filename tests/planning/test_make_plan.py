"""Plans from spans, profiles and topology: targets, limits, refusals, what the plan says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planning_cases import bundle, calls, cluster, demand, engine_points, point, workflow

from scepsy_hpc.errors import InfeasibleError, InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.plan import Plan, load_plan, save_plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.baselines import equal_split
from scepsy_hpc.planning.make_plan import make_plan, one_each, plan_for
from scepsy_hpc.planning.pipeline.of_plan import predict_plan
from scepsy_hpc.planning.targets import Deadline, Limits, MaxThroughput, Rate, Target

SHAPES = ((1000.0, 100.0), (4000.0, 200.0), (500.0, 1.0), (2000.0, 400.0))
_MODELS = {"a": "org/model", "b": "org/small"}
FLOW = workflow("w", {alias: Llm(model=model) for alias, model in _MODELS.items()})
NEEDS = demand({"a": calls(3.0, parallelism=1.5), "b": calls(2.0)}, tool_time_s=1.0)


def _bundles() -> list[Bundle]:
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


def _plan(target: Target, limits: Limits | None = None, topology: Topology | None = None) -> Plan:
    return plan_for([(FLOW, None)], {"w": NEEDS}, _bundles(), topology or cluster(), target, limits)


def _gpus(plan: Plan) -> int:
    return len({(i.node, gpu) for i in plan.instances for gpu in i.gpus})


def test_lowest_latency_at_a_rate(tmp_path: Path) -> None:
    """A plan at a rate is whole: certified, placed, predicted, explained, and reads back."""
    plan = _plan(Rate(1.0))
    assert plan.certificate is not None
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert plan.predicted is not None
    assert plan.predicted.latency_mean_s == pytest.approx(plan.certificate.value)
    assert sum(f.share_of_latency or 0 for f in plan.predicted.per_llm.values()) < 1.0
    assert len(plan.instances) == sum(d.num_replicas for d in plan.llms.values())
    assert plan.allocation is not None
    assert plan.allocation.components[0].gpus_per_node == _gpus(plan)
    assert plan.workflows[0].llms == {"a": "a", "b": "b"}
    assert [line.split(":")[0] for line in plan.explanation[:2]] == ["a", "b"]
    save_plan(tmp_path / "plan.yaml", plan)
    assert load_plan(tmp_path / "plan.yaml") == plan


def test_prediction_of_the_plan_is_its_own() -> None:
    """Predicting an emitted plan from its file gives the figures it was emitted with."""
    plan = _plan(Rate(1.0))
    again = predict_plan(plan, {"w": NEEDS}, _bundles())
    assert plan.predicted is not None
    assert again.latency_mean_s == pytest.approx(plan.predicted.latency_mean_s)
    assert again.throughput_rps == pytest.approx(plan.predicted.throughput_rps)


def test_more_gpus_never_hurt() -> None:
    """The lowest latency falls, or stays, as GPUs are allowed."""
    found = [_plan(Rate(1.0), Limits(num_gpus=n)).predicted for n in (2, 3, 4, 6, 8)]
    latencies = [f.latency_mean_s for f in found if f is not None and f.latency_mean_s is not None]
    assert len(latencies) == 5
    assert latencies == sorted(latencies, reverse=True)


def test_no_replica_above_95_percent() -> None:
    """The highest rate leaves every replica at or under 95%, the busiest of them at it."""
    plan = _plan(MaxThroughput())
    assert plan.predicted is not None
    busy = [f.utilisation or 0.0 for f in plan.predicted.per_llm.values()]
    assert max(busy) == pytest.approx(0.95, rel=1e-6)
    assert max(busy) <= 0.95 + 1e-9
    assert plan.certificate is not None
    assert plan.certificate.metric == "throughput_rps"
    assert plan.certificate.value == pytest.approx(plan.predicted.throughput_rps)
    assert plan.workflows[0].rate_rps == pytest.approx(0.95 * plan.certificate.value, rel=1e-6)


def test_highest_rate_under_a_latency_limit() -> None:
    """With a latency limit the highest rate keeps it, and a little more would not."""
    free = _plan(MaxThroughput())
    idle = _plan(Rate(0.01)).predicted
    assert idle is not None
    assert idle.latency_mean_s is not None
    limit_s = 1.2 * idle.latency_mean_s
    held = _plan(MaxThroughput(), Limits(latency_limit_s=limit_s))
    assert held.predicted is not None
    assert held.predicted.latency_mean_s is not None
    assert held.predicted.latency_mean_s <= limit_s
    rate = held.workflows[0].rate_rps
    assert rate is not None
    assert rate < (free.workflows[0].rate_rps or 0.0)
    with pytest.raises(InfeasibleError, match="nearest feasible limit"):
        _plan(Rate(1.01 * rate), Limits(latency_limit_s=limit_s))


def test_within_uses_fewer_gpus() -> None:
    """Within 10% of the best mean latency: fewer GPUs, no more than 10% slower, said so."""
    best, few = _plan(Rate(1.0)), _plan(Rate(1.0), Limits(within_pct=10.0))
    assert best.predicted is not None
    assert few.predicted is not None
    assert _gpus(few) < _gpus(best)
    assert few.predicted.latency_mean_s is not None
    assert few.predicted.latency_mean_s <= 1.1 * (best.predicted.latency_mean_s or 0.0) + 1e-9
    assert any(line.startswith("within 10%") for line in few.explanation)


def test_infeasible_rate_names_the_nearest() -> None:
    """A rate out of reach ends with exit code 3 and a rate that is then feasible."""
    with pytest.raises(InfeasibleError, match="nearest feasible rate") as caught:
        _plan(Rate(1000.0))
    assert caught.value.exit_code == 3
    words = str(caught.value).split()
    nearest = float(words[words.index("is", words.index("nearest")) + 2])
    assert _plan(Rate(nearest * 0.999)).predicted is not None


def test_infeasible_limits_name_the_nearest() -> None:
    """A latency limit no rate keeps names one that holds; too few GPUs, how many would do."""
    with pytest.raises(InfeasibleError, match="rate of nearly zero") as caught:
        _plan(MaxThroughput(), Limits(latency_limit_s=1.01))
    nearest_s = float(str(caught.value).partition("feasible limit is ")[2].split()[0])
    assert _plan(MaxThroughput(), Limits(latency_limit_s=1.01 * nearest_s)).certificate is not None
    best = _plan(Rate(1.0), Limits(num_gpus=8)).certificate
    assert best is not None
    with pytest.raises(InfeasibleError, match=r"GPUs, not 2, would reach it") as caught:
        _plan(Rate(1.0), Limits(num_gpus=2, latency_limit_s=1.05 * best.value))
    enough = int(str(caught.value).rpartition("; ")[2].split()[0])
    assert _plan(Rate(1.0), Limits(num_gpus=enough, latency_limit_s=1.05 * best.value)).instances


def test_the_frontier_is_drawn() -> None:
    """The explanation plots latency by GPUs in at most eight bars, this plan's marked."""
    plan = _plan(Rate(1.0), topology=cluster(num_nodes=4))
    first = next(i for i, line in enumerate(plan.explanation) if line.startswith("frontier"))
    bars = [line for line in plan.explanation[first + 1 :] if "\u2588" in line]
    assert 4 <= len(bars) <= 8
    lengths = [line.count("\u2588") for line in bars]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]
    marked = [line for line in bars if line.startswith(">")]
    assert [int(line.split()[1]) for line in marked] == [_gpus(plan)]


def test_shares_that_do_not_divide_stay_where_the_search_put_them() -> None:
    """Shares of 30, 40 and 60%: the plan's GPUs and allocation are those of the search."""
    odd = (30, 40, 60)
    flow = workflow("w", {x: Llm(model=m, gpu_shares_pct=odd) for x, m in _MODELS.items()})
    plan = plan_for([(flow, 1.0)], {"w": NEEDS}, _bundles(), cluster(), Rate(), Limits(num_gpus=2))
    load: dict[tuple[str, int], int] = {}
    for instance in plan.instances:
        for gpu in instance.gpus:
            load[instance.node, gpu] = load.get((instance.node, gpu), 0) + instance.gpu_share_pct
    assert len(load) == _gpus(plan) <= 2
    assert max(load.values()) <= 100
    assert plan.allocation is not None
    assert plan.allocation.components[0].gpus_per_node == _gpus(plan)


def test_deadline_takes_the_fewest_gpus() -> None:
    """A batch in time: on the fewest GPUs that make it, with the runs in flight it takes."""
    easy, hard = _plan(Deadline(1000, 3600.0)), _plan(Deadline(1000, 50.0))
    for plan, limit_s in ((easy, 3600.0), (hard, 50.0)):
        assert plan.predicted is not None
        assert plan.predicted.makespan_s is not None
        assert plan.predicted.makespan_s <= limit_s
        assert plan.workflows[0].max_runs_in_flight is not None
    assert _gpus(easy) < _gpus(hard)
    with pytest.raises(InfeasibleError, match="deadline"):
        _plan(Deadline(1000, 50.0), Limits(num_gpus=_gpus(hard) - 1))
    with pytest.raises(InfeasibleError, match="nearest feasible deadline"):
        _plan(Deadline(1000, 5.0))


def test_two_workflows_share_the_gpus() -> None:
    """Two workflows: the shared model has one deployment, and both reach their rates."""
    other = workflow("v", {"x": Llm(model="org/small")})
    needs = {"w": NEEDS, "v": demand({"x": calls(4.0)})}
    flows: list[tuple[Workflow, float | None]] = [(FLOW, 1.0), (other, 2.0)]
    plan = plan_for(flows, needs, _bundles(), cluster(), Rate())
    assert set(plan.llms) == {"a", "b"}
    assert {w.name: w.llms for w in plan.workflows} == {
        "w": {"a": "a", "b": "b"},
        "v": {"x": "b"},
    }
    assert plan.predicted is not None
    for name, rate in (("w", 1.0), ("v", 2.0)):
        assert (plan.predicted.per_workflow[name].throughput_rps or 0.0) > rate
    most = plan_for(flows, needs, _bundles(), cluster(), MaxThroughput())
    rates = {w.name: w.rate_rps or 0.0 for w in most.workflows}
    assert rates["v"] == pytest.approx(2 * rates["w"])


def test_engine_filter_and_unknown_models() -> None:
    """An engine that no profile has, or a model without profiles, is refused with what there is."""
    with pytest.raises(InputError, match=r"org/model: no profile .* engine sglang.*vllm 0\.20\.0"):
        plan_for([(FLOW, 1.0)], {"w": NEEDS}, _bundles(), cluster(), Rate(), engine="sglang")
    with pytest.raises(InputError, match="profiles there are: none"):
        plan_for([(FLOW, 1.0)], {"w": NEEDS}, [], cluster(), Rate())


def test_declared_parallelism_is_kept() -> None:
    """What the workflow declares bounds the plan: TP 2 and whole GPUs only."""
    only = Llm(model="org/model", tp_degrees=(2,), gpu_shares_pct=(100,))
    flow = workflow("w", {"a": only, "b": Llm(model="org/small", gpu_shares_pct=(50,))})
    plan = plan_for([(flow, 1.0)], {"w": NEEDS}, _bundles(), cluster(), Rate())
    assert (plan.llms["a"].tp_degree, plan.llms["a"].gpu_share_pct) == (2, 100)
    assert plan.llms["b"].gpu_share_pct == 50
    assert any("derived" in flag and flag.startswith("b:") for flag in plan.predicted.flags)  # type: ignore[union-attr]


def test_other_engine_args_are_flagged() -> None:
    """Arguments that the profile was not measured under reach the engine, and are flagged."""
    args: dict[str, str | int | float | bool | tuple[str, ...]] = {"max_num_seqs": 8}
    flow = workflow("w", {"a": Llm(model="org/model", engine_args=args), "b": FLOW.llms["b"]})
    plan = plan_for([(flow, 1.0)], {"w": NEEDS}, _bundles(), cluster(), Rate())
    assert plan.llms["a"].engine_args == args
    assert plan.predicted is not None
    flagged = [flag for flag in plan.predicted.flags if "engine_args max_num_seqs" in flag]
    assert [flag.split(":")[0] for flag in flagged] == ["a"]


def test_nothing_fits() -> None:
    """Weights above every GPU's memory: infeasible, and each refusal says why."""
    big = [bundle(engine_points(SHAPES), weights_gib=500.0), *_bundles()[1:]]
    with pytest.raises(InfeasibleError, match="weights do not fit"):
        plan_for([(FLOW, 1.0)], {"w": NEEDS}, big, cluster(), Rate())


@pytest.mark.parametrize(
    ("target", "rate", "message"),
    [
        (Rate(), None, "has no rate"),
        (Rate(), -1.0, "greater than 0"),
        (Rate(float("nan")), None, "greater than 0"),
        (Deadline(0, 10.0), None, "at least 1"),
        (Deadline(10, 0.0), None, "greater than 0"),
    ],
)
def test_bad_targets(target: Target, rate: float | None, message: str) -> None:
    """Targets without sense are refused by value."""
    with pytest.raises(InputError, match=message):
        plan_for([(FLOW, rate)], {"w": NEEDS}, _bundles(), cluster(), target)


def test_from_spans() -> None:
    """Spans alone carry the demand: two runs of one call a second apart are one call a run."""
    flow = workflow("w", {"a": Llm(model="org/model")})
    spans = [
        Span(
            run_id=f"r{i}",
            span_id=f"s{i}",
            kind="llm",
            llm="a",
            start_s=float(i),
            end_s=i + 0.5,
            status="ok",
            input_tokens=1000,
            output_tokens=100,
        )
        for i in range(2)
    ]
    plan = make_plan([(flow, 1.0)], {"w": spans}, _bundles(), cluster(), Rate())
    assert plan.demand["w"].num_runs == 2
    assert plan.demand["w"].llms["a"].calls_per_run == 1.0
    with pytest.raises(InputError, match="no spans"):
        make_plan([(flow, 1.0)], {}, _bundles(), cluster(), Rate())


def test_one_each_for_tracing() -> None:
    """Before anything is known: one smallest instance per LLM, whole GPUs, placed apart."""
    plan = one_each(FLOW, _bundles(), cluster())
    assert {name: d.num_replicas for name, d in plan.llms.items()} == {"a": 1, "b": 1}
    assert all(d.tp_degree == 1 and d.gpu_share_pct == 100 for d in plan.llms.values())
    with pytest.raises(InfeasibleError, match="does not fit"):
        one_each(FLOW, _bundles(), cluster(gpus=1))


def test_equal_split_is_no_better() -> None:
    """Equal GPUs for each LLM: placed, predicted without a certificate, never a lower latency."""
    best = _plan(Rate(1.0))
    split = equal_split([(FLOW, 1.0)], {"w": NEEDS}, _bundles(), cluster(), Rate())
    assert {name: d.num_replicas for name, d in split.llms.items()} == {"a": 4, "b": 4}
    assert len(split.instances) == 8
    assert split.certificate is None
    assert split.predicted is not None
    assert best.predicted is not None
    assert (split.predicted.latency_mean_s or 0.0) >= (best.predicted.latency_mean_s or 0.0)
    with pytest.raises(InfeasibleError, match="equal split"):
        equal_split([(FLOW, 1.0)], {"w": NEEDS}, _bundles(), cluster(gpus=1), Rate())


def test_components_by_equal_nodes() -> None:
    """Nodes that need equally many GPUs are one component of the allocation, others another."""
    plan = _plan(MaxThroughput(), topology=cluster(num_nodes=3, gpus=4))
    assert plan.allocation is not None
    parts = plan.allocation.components
    assert sum(p.num_nodes * p.gpus_per_node for p in parts) == _gpus(plan)
    assert len({(p.gpu_type, p.gpus_per_node) for p in parts}) == len(parts)


def test_smaller_memory_here_than_profiled() -> None:
    """The GPUs at hand bound the memory: a profile of 80 GiB says nothing of 16."""
    small = cluster(gpu_memory_gib=16.0)
    plan = _plan(Rate(0.5), topology=small)
    assert plan.llms["a"].memory_gib is not None
    assert plan.llms["a"].memory_gib <= 14.0
    flow = workflow("w", {"a": Llm(model="m")})
    one = [bundle([point(1, 1.0)], model="m", weights_gib=20.0)]
    with pytest.raises(InfeasibleError, match="do not fit"):
        plan_for([(flow, 0.1)], {"w": demand({"a": calls(1.0)})}, one, small, Rate())
