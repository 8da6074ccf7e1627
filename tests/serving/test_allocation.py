"""From logical to real nodes and GPUs."""

import re
from dataclasses import replace

import fake_nvml
import numpy as np
import pytest

from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.plan import Deployment, Instance, Plan
from scepsy_hpc.serving.allocation import (
    GrantedNode,
    PlacedInstance,
    granted_gpus,
    local_nodes,
    place_anew,
    place_on,
    pretended_nodes,
    this_node,
)


def plan_of(*instances):
    """A plan of instances given as (id, node, gpus)."""
    made = tuple(
        Instance(id=name, llm=f"llm{len(gpus)}", node=node, gpus=gpus, gpu_share_pct=50)
        for name, node, gpus in instances
    )
    llms = {
        i.llm: Deployment(
            model="m",
            engine="simulated",
            gpu_type="h100_sxm",
            tp_degree=len(i.gpus),
            gpu_share_pct=50,
            num_replicas=1,
        )
        for i in made
    }
    return Plan(llms=llms, instances=made)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_STEP_GPUS": "0,1"}, ("2", "3")),
        ({"SLURM_STEP_GPUS": "0-2"}, ("0", "1", "2")),
        ({"SLURM_JOB_GPUS": "1,3"}, ("1", "3")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}, ("GPU-aa", "GPU-bb")),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({}, ()),
    ],
)
def test_what_slurm_says_it_gave(environment, expected):
    """CUDA_VISIBLE_DEVICES first, then the step's and the job's GPUs; ranges are spelled out."""
    assert granted_gpus(environment) == expected


def test_gpus_of_a_list_are_taken_one_by_one():
    """Blanks do not matter, ranges stand beside single GPUs, an empty variable says nothing."""
    assert granted_gpus({"CUDA_VISIBLE_DEVICES": " 0, 2-3 ,5 "}) == ("0", "2", "3", "5")
    assert granted_gpus({"CUDA_VISIBLE_DEVICES": " ", "SLURM_STEP_GPUS": "4"}) == ("4",)


def test_a_node_reports_its_gpus_by_link(monkeypatch):
    """Four GPUs in two NVLink pairs are two domains, of which only granted GPUs are offered."""
    fake_nvml.install(monkeypatch, 4, [{0, 2}, {1, 3}])
    whole = this_node(2, "h", {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert whole == GrantedNode(rank=2, host="h", domains=(("0", "2"), ("1", "3")))
    assert whole.gpus == ("0", "2", "1", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert this_node(0, "h").domains == (("0", "2"), ("1",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert this_node(0, "h").domains == (("1", "3"),)


def test_a_tensor_parallel_group_stays_where_the_links_are(monkeypatch):
    """Whichever pairs NVLink joins, a pair of the plan gets one of them, not GPUs in order."""
    plan = plan_of(("single", "x", (0,)), ("pair", "x", (1, 2)))
    for links in ([{0, 2}, {1, 3}], [{0, 3}, {1, 2}]):
        fake_nvml.install(monkeypatch, 4, links)
        node = this_node(0, "h", {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
        assert {int(gpu) for gpu in placed_on(plan, node)["pair"]} in links


@pytest.mark.parametrize("granted", ["4,5", "1,2", "GPU-aa,GPU-bb", "0,GPU-bb"])
def test_gpus_that_nvml_cannot_match_are_one_domain(monkeypatch, granted):
    """Under a device cgroup NVML numbers anew; a UUID is no index. Then the grant is believed."""
    fake_nvml.install(monkeypatch, 2)
    node = this_node(0, "h", {"CUDA_VISIBLE_DEVICES": granted})
    assert node.domains == (tuple(granted.split(",")),)


def test_without_nvml_the_grant_is_one_domain_and_no_grant_is_none(monkeypatch):
    """No driver: what Slurm gave counts; without GPUs a node offers none."""
    fake_nvml.install(monkeypatch, 0)
    assert this_node(0, "h", {"CUDA_VISIBLE_DEVICES": "0,1"}).domains == (("0", "1"),)
    assert this_node(0, "h", {}).domains == ()


def test_one_machine_offers_its_own_gpus_to_real_engines_only(monkeypatch):
    """vLLM gets the GPUs that are visible, by link; simulated engines what the plan wants."""
    fake_nvml.install(monkeypatch, 4, [{0, 1}, {2, 3}])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    simulated = plan_of(("a", "x", (7,)))
    assert local_nodes(simulated, "h") == pretended_nodes(simulated, "h")
    real = replace(simulated, llms={"llm1": replace(simulated.llms["llm1"], engine="vllm")})
    assert local_nodes(real, "h") == (grant(0, "h", "01", "23"),)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,3")
    assert local_nodes(real, "h") == (grant(0, "h", "1", "23"),)
    fake_nvml.install(monkeypatch, 0)
    with pytest.raises(InputError, match="no GPU"):
        local_nodes(real, "h")


def grant(rank, host, *domains):
    """A node whose GPUs have one-letter names."""
    return GrantedNode(rank=rank, host=host, domains=tuple(tuple(d) for d in domains))


def placed_on(plan, *nodes):
    """GPUs by instance."""
    return {p.instance.id: p.gpus for p in place_on(plan, nodes)}


def test_shared_gpus_stay_shared():
    """Two instances that share a logical GPU share a real one, and others do not join them."""
    plan = plan_of(("a", "x", (0,)), ("b", "x", (0,)), ("c", "x", (1,)))
    found = placed_on(plan, grant(0, "h", "47"))
    assert found == {"a": ("4",), "b": ("4",), "c": ("7",)}


def test_a_chain_of_shared_gpus_stays_together():
    """Pairs 0-1 and 2-3, and one across them: four GPUs of one domain or none."""
    plan = plan_of(("a", "x", (0, 1)), ("b", "x", (2, 3)), ("c", "x", (1, 2)))
    found = placed_on(plan, grant(0, "h", "pq", "wxyz"))
    assert found == {"a": ("w", "x"), "b": ("y", "z"), "c": ("x", "y")}
    with pytest.raises(RunError, match="plan node x needs 4 GPUs"):
        place_on(plan, (grant(0, "h", "ab", "cd"),))


def test_large_groups_go_first_and_into_the_tightest_domain():
    """A single GPU leaves the pair of GPUs whole; a pair leaves the domain of three whole."""
    plan = plan_of(("single", "x", (0,)), ("pair", "x", (1, 2)))
    assert placed_on(plan, grant(0, "h", "ab", "c")) == {"pair": ("a", "b"), "single": ("c",)}
    found = placed_on(plan, grant(0, "h", "abc", "de"))
    assert found == {"pair": ("d", "e"), "single": ("a",)}


def test_equal_groups_take_gpus_in_the_plans_order():
    """Lower logical GPUs get the GPUs named first; a group keeps its own order."""
    plan = plan_of(("late", "x", (3, 2)), ("early", "x", (0, 1)))
    found = placed_on(plan, grant(0, "h", "wxyz"))
    assert found == {"late": ("z", "y"), "early": ("w", "x")}
    crossed = plan_of(("inner", "x", (1, 2)), ("outer", "x", (0, 3)))
    assert placed_on(crossed, grant(0, "h", "wxyz"))["outer"] == ("w", "x")


def test_the_larger_plan_node_gets_the_smallest_real_node_that_fits():
    """Logical names mean nothing, sizes decide; equal ones go by name and rank."""
    plan = plan_of(("big", "node2", (0, 1)), ("small", "node1", (0,)), ("other", "node3", (0,)))
    nodes = (grant(2, "wide", "abcd"), grant(1, "tiny", "e"), grant(0, "mid", "fg"))
    hosts = {p.instance.id: (p.host, p.rank) for p in place_on(plan, nodes)}
    assert hosts == {"big": ("mid", 0), "small": ("tiny", 1), "other": ("wide", 2)}
    twins = plan_of(("b", "n2", (0,)), ("a", "n1", (0,)))
    ranks = {
        p.instance.id: p.rank for p in place_on(twins, (grant(1, "h", "x"), grant(0, "g", "y")))
    }
    assert ranks == {"a": 0, "b": 1}


def test_a_group_passes_over_a_node_whose_domains_are_too_small():
    """Four GPUs in pairs do not hold three that belong together; a domain of three does."""
    plan = plan_of(("three", "x", (0, 1, 2)))
    nodes = (grant(0, "pairs", "ab", "cd"), grant(1, "quad", "efghi"))
    assert [p.host for p in place_on(plan, nodes)] == ["quad"]


def test_too_small_a_grant_is_said_before_anything_runs():
    """The message names what is needed and what is there."""
    plan = plan_of(("pair", "x", (0, 1)), ("one", "x", (2,)))
    says = (
        "plan node x needs 3 GPUs (largest group 2 in one link domain), which no node left offers; "
        "left, as GPUs by domain: i: [1], h: [1, 1, 1]. Nothing was run"
    )
    with pytest.raises(RunError, match=re.escape(says)):
        place_on(plan, (grant(0, "h", "a", "b", "c"), grant(1, "i", "d")))
    with pytest.raises(RunError, match="GPUs by domain: none"):
        place_on(plan, ())


def test_random_grants_keep_every_invariant():
    """On random plans and grants: real GPUs exist, groups stay together, none is used twice."""
    chance = np.random.default_rng(7)
    for _ in range(200):
        sizes = chance.choice([1, 1, 2, 4], size=chance.integers(1, 4))
        instances, first = [], 0
        for number, size in enumerate(sizes):
            instances.append((f"i{number}", "x", tuple(range(first, first + int(size)))))
            first += int(size)
        labels = [str(g) for g in chance.permutation(8)]
        node = GrantedNode(rank=0, host="h", domains=(tuple(labels[:4]), tuple(labels[4:])))
        try:
            placed = place_on(plan_of(*instances), (node,))
        except RunError:
            assert sum(sizes) > 8
            continue
        used = [gpu for p in placed for gpu in p.gpus]
        assert len(used) == len(set(used))
        for p in placed:
            assert any(set(p.gpus) <= set(domain) for domain in node.domains)


def test_pretended_nodes_offer_what_the_plan_wants():
    """On one machine the logical nodes stand for themselves."""
    plan = plan_of(("a", "x", (0, 3)), ("b", "y", (1,)))
    nodes = pretended_nodes(plan, "here")
    assert nodes == (grant(0, "here", "03"), grant(1, "here", "1"))
    assert len(place_on(plan, nodes)) == 2


def instance_on(rank, name, llm, *gpus):
    """An instance on GPUs of one rank."""
    logical = tuple(range(len(gpus)))
    one = Instance(id=name, llm=llm, node="n", gpus=logical, gpu_share_pct=100)
    return PlacedInstance(instance=one, rank=rank, host=f"h{rank}", gpus=gpus)


def node_of(rank, *domains):
    return GrantedNode(rank=rank, host=f"h{rank}", domains=domains)


def test_what_a_lost_node_hosted_moves_to_free_gpus():
    """What lives stays where it is; what moved says in which term; GPUs in use are not touched."""
    before = (instance_on(0, "a0", "a", "0", "1"), instance_on(1, "b0", "b", "1"))
    after = place_anew(before, [node_of(1, ("0", "1"), ("2", "3"))], term=3)
    assert after[0] == before[1]
    (moved,) = after[1:]
    assert (moved.instance, moved.rank, moved.host) == (before[0].instance, 1, "h1")
    assert (moved.gpus, moved.term) == (("2", "3"), 3)


def test_where_room_is_short_an_llm_without_replica_goes_first():
    """One free GPU: the second replica of `a` is left out, the only one of `b` is not."""
    before = (
        instance_on(0, "a0", "a", "0"),
        instance_on(0, "b0", "b", "1"),
        instance_on(1, "a1", "a", "0"),
    )
    after = place_anew(before, [node_of(1, ("0", "1"))], term=1)
    assert [(one.instance.id, one.gpus) for one in after] == [("a1", ("0",)), ("b0", ("1",))]


def test_without_room_nothing_moves():
    """A group of two does not fit into two domains with a free GPU each."""
    before = (instance_on(0, "a0", "a", "0", "1"), instance_on(1, "b0", "b", "0"))
    assert place_anew(before, [node_of(1, ("0", "1"), ("2",))], term=1) == before[1:]
