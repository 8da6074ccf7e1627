"""Placement: what is placed keeps every limit, and what can be placed is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.plan import Instance
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search.placement import num_gpus, place
from scepsy_hpc.planning.search.problem import Option


def option(
    llm: str, replicas: int, tp: int = 1, share: int = 100, link: Link | None = None
) -> Option:
    """An option on GPU type ``a`` whose cost and throughput do not matter."""
    return Option(llm, "a", link if tp == 1 else link or "nvlink", tp, share, replicas, 1.0, 1.0)


def cluster(*nodes: list[list[int]], free: dict[int, tuple[int, ...]] | None = None) -> Topology:
    """Nodes given as lists of NVLink domains; ``free`` overrides the free GPUs by node number."""
    made = (
        Node(
            name=f"n{i}",
            gpu_type="a",
            gpu_memory_gib=80,
            domains=tuple(Domain(gpus=tuple(gpus), link="nvlink") for gpus in domains),
            free_gpus=(free or {}).get(i),
        )
        for i, domains in enumerate(nodes)
    )
    return Topology(tuple(made))


def check(instances: tuple[Instance, ...], options: list[Option], topology: Topology) -> None:
    """Every replica once, on free GPUs of one domain of its link, no GPU above 100%."""
    wanted = {o.llm: o for o in options}
    load: Counter[tuple[str, int]] = Counter()
    for instance in instances:
        node, asked = topology.node(instance.node), wanted[instance.llm]
        homes = [d for d in node.domains if set(instance.gpus) <= set(node.free_in(d))]
        assert len(homes) == 1
        assert asked.link in (None, homes[0].link)
        assert len(set(instance.gpus)) == len(instance.gpus) == asked.tp_degree
        assert instance.gpu_share_pct == asked.gpu_share_pct
        load.update({(instance.node, gpu): instance.gpu_share_pct for gpu in instance.gpus})
    assert max(load.values()) <= 100
    assert Counter(i.llm for i in instances) == {o.llm: o.num_replicas for o in options}
    assert len({i.id for i in instances}) == len(instances)


def random_cluster(rng: np.random.Generator) -> Topology:
    """Fragmented nodes with domains of 1 to 8 GPUs."""
    nodes = []
    for _ in range(rng.integers(1, 6)):
        sizes = rng.integers(1, 9, size=rng.integers(1, 3)).tolist()
        starts = np.cumsum([0, *sizes]).tolist()
        nodes.append([list(range(s, s + n)) for s, n in zip(starts, sizes, strict=False)])
    free = {
        i: tuple(g for domain in domains for g in domain if rng.random() < 0.8)
        for i, domains in enumerate(nodes)
    }
    return cluster(*nodes, free=free)


def filling(
    rng: np.random.Generator, topology: Topology, tps: list[int], shares: list[int]
) -> list[Option]:
    """Options cut out of the free GPUs themselves, so that a placement exists."""
    counts: Counter[tuple[int, int]] = Counter()
    for node in topology.nodes:
        for domain in node.domains:
            left = len(node.free_in(domain))
            while left:
                tp = int(rng.choice([t for t in tps if t <= left]))
                left -= tp
                room = 100
                while room >= min(shares):
                    share = int(rng.choice([s for s in shares if s <= room])) if tp == 1 else 100
                    room -= share
                    counts[tp, share] += rng.random() < 0.9
    kept = [(tp, share, n) for (tp, share), n in counts.items() if n]
    return [option(f"m{i}", int(n), tp, share) for i, (tp, share, n) in enumerate(kept)]


SIZES = {
    "divisible": ([1, 2, 4, 8], [25, 50, 100]),
    "odd shares": ([1, 2, 4], [30, 40, 60, 100]),
    "odd groups": ([1, 2, 3, 5, 6], [50, 100]),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(25))
def test_whatever_fits_is_placed_in_any_order(sizes: str, seed: int) -> None:
    """Replicas cut out of the holes are placed again, however options and nodes are ordered."""
    rng = np.random.default_rng([seed, len(sizes)])
    topology = random_cluster(rng)
    options = filling(rng, topology, *SIZES[sizes])
    if not options:
        options = [option("m", 1)]
    used = set()
    for _ in range(3):
        nodes = tuple(topology.nodes[i] for i in rng.permutation(len(topology.nodes)))
        mixed = [options[i] for i in rng.permutation(len(options))]
        instances = place(mixed, Topology(nodes))
        assert instances is not None
        check(instances, mixed, topology)
        used.add(num_gpus(instances))
    assert len(used) == 1, "the number of GPUs must not depend on the order"


@pytest.mark.parametrize("seed", range(25))
def test_shares_take_the_fewest_gpus(seed: int) -> None:
    """Where sizes divide each other, no GPU is touched beyond the sum of all shares, rounded up."""
    rng = np.random.default_rng(seed)
    topology = cluster(*[[list(range(8))] for _ in range(4)])
    options = [
        option(f"m{i}", int(rng.integers(1, 9)), share=int(rng.choice([25, 50]))) for i in range(5)
    ] + [option("wide", int(rng.integers(1, 4)), tp=4)]
    instances = place(options, topology)
    assert instances is not None
    check(instances, options, topology)
    units = sum(o.num_replicas * o.tp_degree * o.gpu_share_pct for o in options)
    assert num_gpus(instances) == -(-units // 100)


def test_odd_shares_are_packed_exactly() -> None:
    """50 + 50 and twice 30 + 30 + 40 fill three GPUs; largest first would need a fourth."""
    topology = cluster([[0, 1, 2]])
    options = [option("a", 2, share=50), option("b", 4, share=30), option("c", 2, share=40)]
    instances = place(options, topology)
    assert instances is not None
    check(instances, options, topology)
    assert num_gpus(instances) == 3


def test_no_placement_is_refused_exactly() -> None:
    """Two groups of 2 do not fit 3 + 1 free GPUs, though 4 are free."""
    topology = cluster([[0, 1, 2, 3]], [[0, 1]], free={0: (0, 1, 3), 1: (1,)})
    assert place([option("a", 2, tp=2)], topology) is None
    assert place([option("a", 1, tp=2), option("b", 2)], topology) is not None


def test_max_gpus_is_kept() -> None:
    """Five halves need three GPUs: two are refused, three are used."""
    topology = cluster([[0, 1, 2, 3]])
    assert place([option("a", 5, share=50)], topology, max_gpus=2) is None
    instances = place([option("a", 5, share=50)], topology, max_gpus=3)
    assert instances is not None
    assert num_gpus(instances) == 3


def test_group_shares_each_of_its_gpus_once() -> None:
    """Three groups of 2 on halves fit 3 GPUs only crosswise; no group gets one GPU twice."""
    topology = cluster([[0, 1, 2]])
    options = [option("a", 3, tp=2, share=50)]
    instances = place(options, topology)
    assert instances is not None
    check(instances, options, topology)
    assert {i.gpus for i in instances} == {(0, 1), (0, 2), (1, 2)}


def test_replicas_are_spread_over_the_nodes_that_are_used() -> None:
    """Four replicas beside four of another LLM: each node carries two of each."""
    topology = cluster([[0, 1, 2, 3]], [[0, 1, 2, 3]])
    instances = place([option("a", 4), option("b", 4)], topology)
    assert instances is not None
    assert Counter((i.llm, i.node) for i in instances) == {
        ("a", "n0"): 2,
        ("a", "n1"): 2,
        ("b", "n0"): 2,
        ("b", "n1"): 2,
    }


def test_no_node_is_taken_needlessly() -> None:
    """Four replicas on four nodes of four GPUs stay on one node."""
    topology = cluster(*[[[0, 1, 2, 3]] for _ in range(4)])
    instances = place([option("a", 4)], topology)
    assert instances is not None
    assert len({i.node for i in instances}) == 1


def test_link_and_gpu_type_are_kept() -> None:
    """A group asks for NVLink and does not get PCIe; another GPU type is not used."""
    pcie = Node(
        name="p", gpu_type="a", gpu_memory_gib=80, domains=(Domain(gpus=(0, 1), link="pcie"),)
    )
    assert place([option("a", 1, tp=2)], Topology((pcie,))) is None
    assert place([option("a", 1, tp=2, link="pcie")], Topology((pcie,))) is not None
    other = Node(
        name="o", gpu_type="b", gpu_memory_gib=80, domains=(Domain(gpus=(0, 1), link="nvlink"),)
    )
    assert place([option("a", 1, tp=2)], Topology((other,))) is None


def test_mig_instances_are_a_type_of_their_own() -> None:
    """An option for the whole GPU does not fit a MIG instance; one for the slice does, at TP 1."""
    sliced = Node(
        name="m",
        gpu_type="a",
        gpu_memory_gib=40,
        domains=(Domain(gpus=(0, 1), link="nvlink"),),
        mig="3g.40gb",
    )
    topology = Topology((sliced,))
    assert place([option("a", 1)], topology) is None
    assert place([Option("a", "a:3g.40gb", None, 1, 100, 2, 1.0, 1.0)], topology) is not None
    assert place([Option("a", "a:3g.40gb", "nvlink", 2, 100, 1, 1.0, 1.0)], topology) is None
