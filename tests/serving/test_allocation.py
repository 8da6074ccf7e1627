"""From logical to real nodes and GPUs."""

import numpy as np
import pytest

from scepsy_hpc.errors import RunError
from scepsy_hpc.formats.plan import Deployment, Instance, Plan
from scepsy_hpc.serving.allocation import GrantedNode, granted_gpus, place_on, pretended_nodes


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


def test_shared_gpus_stay_shared():
    """Two instances that share a logical GPU share a real one, and others do not join them."""
    plan = plan_of(("a", "x", (0,)), ("b", "x", (0,)), ("c", "x", (1,)))
    placed = {
        p.instance.id: p.gpus
        for p in place_on(plan, (GrantedNode(rank=0, host="h", domains=(("4", "7"),)),))
    }
    assert placed["a"] == placed["b"] != placed["c"]


def test_a_tensor_parallel_group_stays_inside_one_domain():
    """A group of two does not straddle domains though indices in order would."""
    plan = plan_of(("single", "x", (0,)), ("pair", "x", (1, 2)))
    node = GrantedNode(rank=0, host="h", domains=(("0", "1"), ("2", "3")))
    placed = {p.instance.id: p.gpus for p in place_on(plan, (node,))}
    assert set(placed["pair"]) in ({"0", "1"}, {"2", "3"})
    assert placed["single"][0] not in placed["pair"]


def test_the_larger_plan_node_gets_the_larger_real_node():
    """Logical names mean nothing; sizes decide."""
    plan = plan_of(("big", "node1", (0, 1)), ("small", "node2", (0,)))
    nodes = (
        GrantedNode(rank=0, host="tiny", domains=(("0",),)),
        GrantedNode(rank=1, host="wide", domains=(("0", "1"),)),
    )
    hosts = {p.instance.id: (p.host, p.rank) for p in place_on(plan, nodes)}
    assert hosts == {"big": ("wide", 1), "small": ("tiny", 0)}


def test_too_small_a_grant_is_said_before_anything_runs():
    """The message names what is needed and what is there."""
    plan = plan_of(("pair", "x", (0, 1)))
    with pytest.raises(RunError, match=r"needs 2 GPUs.*Nothing was run"):
        place_on(plan, (GrantedNode(rank=0, host="h", domains=(("0",), ("1",))),))


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
    assert [(n.rank, n.gpus) for n in nodes] == [(0, ("0", "3")), (1, ("1",))]
    assert len(place_on(plan, nodes)) == 2
