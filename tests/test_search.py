"""The search against brute force: every choice, packed by backtracking."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from scepsy_hpc.cluster.topology import Domain, Link, Node, Topology
from scepsy_hpc.planning.options import Kind
from scepsy_hpc.planning.search import Option, Problem, Solution, solve, tables_of

Room = tuple[tuple[str, str, tuple[int, ...]], ...]  # holes: GPU type, link, room in % per GPU


def random_topology(rng: np.random.Generator, num_gpus: int, mixed: bool) -> Topology:
    """Fragmented nodes of one or two domains; where mixed, of two GPU types and two links."""
    nodes: list[Node] = []
    while sum(len(n.free) for n in nodes) < num_gpus:
        gpu_type = str(rng.choice(["a", "b"])) if mixed else "a"
        links: list[Link] = ["nvlink", "pcie"] if mixed else ["nvlink"]
        sizes = rng.integers(1, 5, size=rng.integers(1, 3)).tolist()
        starts = np.cumsum([0, *sizes])
        domains = tuple(
            Domain(gpus=tuple(range(start, start + size)), link=links[rng.integers(len(links))])
            for start, size in zip(starts.tolist(), sizes, strict=False)
        )
        free = tuple(g for g in range(sum(sizes)) if rng.random() < 0.8)
        nodes.append(
            Node(
                name=f"n{len(nodes)}",
                gpu_type=gpu_type,
                gpu_memory_gib=80,
                domains=domains,
                free_gpus=free,
            )
        )
    return Topology(tuple(nodes))


def random_options(
    rng: np.random.Generator, num_llms: int, shares: list[int], tps: list[int], mixed: bool
) -> list[Option]:
    """A few options per LLM; sharing and odd sizes as the arguments allow."""
    options = []
    for llm in range(num_llms):
        for _ in range(rng.integers(3, 9)):
            tp = int(rng.choice(tps))
            share = int(rng.choice(shares)) if tp == 1 or rng.random() < 0.4 else 100
            link = str(rng.choice(["nvlink", "pcie"])) if mixed else "nvlink"
            options.append(
                Option(
                    llm=f"m{llm}",
                    gpu_type=str(rng.choice(["a", "b"])) if mixed else "a",
                    link=None if tp == 1 and rng.random() < 0.7 else link,  # type: ignore[arg-type]
                    tp_degree=tp,
                    gpu_share_pct=share,
                    num_replicas=int(rng.integers(1, 5)),
                    cost_s=float(np.round(rng.uniform(1, 10), 3)),
                    throughput_rps=float(np.round(rng.uniform(1, 5), 1)),
                )
            )
    return options


def room_of(topology: Topology) -> Room:
    """All holes, empty."""
    return tuple(
        (node.gpu_type, domain.link, (100,) * len(node.free_in(domain)))
        for node in topology.nodes
        for domain in node.domains
    )


@cache
def fewest_gpus(items: tuple[Kind, ...], room: Room) -> float:
    """Fewest GPUs on which the items fit, by trying every place for the first; inf if none."""
    if not items:
        return sum(r < 100 for _, _, gpus in room for r in gpus)
    (gpu_type, link, tp, share), rest = items[0], items[1:]
    best = math.inf
    for number, (hole_type, hole_link, gpus) in enumerate(room):
        if hole_type != gpu_type or link not in (None, hole_link):
            continue
        for taken in {
            tuple(sorted(gpus[i] for i in group)): group
            for group in itertools.combinations(range(len(gpus)), tp)
            if all(gpus[i] >= share for i in group)
        }.values():
            left = tuple(sorted(r - share * (i in taken) for i, r in enumerate(gpus)))
            after = (*room[:number], (hole_type, hole_link, left), *room[number + 1 :])
            best = min(best, fewest_gpus(rest, tuple(sorted(after))))
    return best


def kinds_of(options: tuple[Option, ...]) -> tuple[Kind, ...]:
    """One kind per replica, sorted so that equal loads are looked up."""
    return tuple(sorted((o.kind for o in options for _ in range(o.num_replicas)), key=str))


def all_choices(problem: Problem, options: list[Option]) -> list[tuple[Option, ...]]:
    """Every choice of one option per LLM that can be placed within the GPU limit."""
    groups = [[o for o in options if o.llm == llm] for llm in problem.llms]
    room = room_of(problem.topology)
    limit = 10**6 if problem.max_gpus is None else problem.max_gpus
    total = sum(len(gpus) for _, _, gpus in room)
    fitting = []
    for choice in itertools.product(*groups):
        if sum(o.num_replicas * o.tp_degree * o.gpu_share_pct for o in choice) > 100 * total:
            continue
        if fewest_gpus(kinds_of(choice), tuple(sorted(room))) <= limit:
            fitting.append(choice)
    return fitting


def cost(choice: tuple[Option, ...]) -> float:
    return math.fsum(o.cost_s for o in choice)


def rate(choice: tuple[Option, ...]) -> float:
    return min(o.throughput_rps for o in choice)


def check_placed(solution: Solution, problem: Problem) -> None:
    """What is emitted is the choice, on free GPUs, within shares, domains and the GPU limit."""
    load: dict[tuple[str, int], int] = {}
    for instance in solution.instances:
        option = solution.chosen[instance.llm]
        node = problem.topology.node(instance.node)
        domain = next(d for d in node.domains if instance.gpus[0] in d.gpus)
        assert set(instance.gpus) <= set(node.free_in(domain))
        assert len(set(instance.gpus)) == option.tp_degree
        assert node.gpu_type == option.gpu_type
        assert option.link in (None, domain.link)
        for gpu in instance.gpus:
            load[node.name, gpu] = load.get((node.name, gpu), 0) + instance.gpu_share_pct
    assert all(share <= 100 for share in load.values())
    for llm, option in solution.chosen.items():
        assert sum(i.llm == llm for i in solution.instances) == option.num_replicas
    assert solution.num_gpus == len(load)
    assert problem.max_gpus is None or len(load) <= problem.max_gpus


CASES = {
    "divisible": ([25, 50, 100], [1, 2, 4], False),
    "mixed": ([25, 50, 100], [1, 2, 4], True),
    "odd shares": ([30, 40, 60, 100], [1, 2], False),
    "odd groups": ([50, 100], [1, 2, 3], False),
    "shared groups, mixed": ([30, 50, 100], [1, 2, 3], True),
}


def random_problem(case: str, seed: int) -> tuple[Problem, list[Option]]:
    shares, tps, mixed = CASES[case]
    rng = np.random.default_rng([seed, *map(ord, case)])
    topology = random_topology(rng, int(rng.integers(2, 7)), mixed)
    options = random_options(rng, int(rng.integers(1, 4)), shares, tps, mixed)
    limit = int(rng.integers(1, topology.num_gpus + 1)) if rng.random() < 0.4 else None
    problem = Problem(tables_of(options), topology, max_gpus=limit, time_limit_s=20)
    return problem, options


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(40))
def test_least_cost_equals_brute_force(case: str, seed: int) -> None:
    """On random small clusters the cost is the least of all choices that reach the target."""
    problem, options = random_problem(case, seed)
    problem = replace(problem, min_throughput_rps=float(seed % 3))
    good = [c for c in all_choices(problem, options) if rate(c) >= problem.min_throughput_rps]
    solution = solve(problem)
    assert solution.is_feasible == bool(good)
    if good:
        assert solution.value == pytest.approx(min(map(cost, good)), rel=1e-7)
        assert solution.gap <= 1e-7
        check_placed(solution, problem)
    else:
        assert solution.proved_infeasible
        assert solution.refused


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(40))
def test_most_throughput_equals_brute_force(case: str, seed: int) -> None:
    """The throughput is the largest there is under the limit on cost, at the least cost."""
    problem, options = random_problem(case, seed)
    limit = 9.0 if seed % 2 else None
    problem = replace(problem, objective="max_throughput", max_cost_s=limit)
    good = [c for c in all_choices(problem, options) if limit is None or cost(c) <= limit]
    solution = solve(problem)
    assert solution.is_feasible == bool(good)
    if good:
        best = max(map(rate, good))
        assert solution.value == best
        assert solution.bound == best
        assert solution.cost_s == pytest.approx(min(cost(c) for c in good if rate(c) == best))
        check_placed(solution, problem)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("objective", ["min_cost", "max_throughput"])
def test_within_takes_the_fewest_gpus(case: str, seed: int, objective: str) -> None:
    """Within 30% of the best no choice needs fewer GPUs than the one returned."""
    problem, options = random_problem(case, seed)
    problem = replace(problem, objective=objective, within_pct=30.0)  # type: ignore[arg-type]
    good = all_choices(problem, options)
    solution = solve(problem)
    assert solution.is_feasible == bool(good)
    if not good:
        return
    room = tuple(sorted(room_of(problem.topology)))
    if objective == "min_cost":
        near = [c for c in good if cost(c) <= 1.3 * min(map(cost, good)) + 1e-9]
    else:
        near = [c for c in good if rate(c) >= 0.7 * max(map(rate, good)) - 1e-9]
    assert solution.num_gpus == min(fewest_gpus(kinds_of(c), room) for c in near)
    check_placed(solution, problem)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(20))
def test_frontier_brackets_brute_force(case: str, seed: int) -> None:
    """At every number of GPUs the frontier's bound is not above, its value not below the best."""
    problem, options = random_problem(case, seed)
    solution = solve(problem)
    for point in solution.frontier:
        good = all_choices(replace(problem, max_gpus=point.num_gpus), options)
        best = min(map(cost, good), default=math.inf)
        assert point.bound <= best + 1e-9
        if point.value is not None:
            assert point.value >= best - 1e-9
        if case == "divisible" and point.value == point.bound:
            assert point.value == pytest.approx(best)
