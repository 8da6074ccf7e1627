"""The search against brute force: every choice, packed by backtracking."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest

from scepsy_hpc.formats.parallelism import Link, Parallelism
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.planning.search import cp_sat
from scepsy_hpc.planning.search.problem import (
    Option,
    OptionTable,
    SearchProblem,
    Solution,
    tables_of,
)
from scepsy_hpc.planning.search.search import best_choices, solve

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
    rng: np.random.Generator, topology: Topology, num_llms: int, shares: list[int], tps: list[int]
) -> list[Option]:
    """Options for the holes there are. More GPUs cost less, so that the best want to be large."""
    places = [(n.gpu_type, d.link) for n in topology.nodes for d in n.domains]
    options = []
    for llm in range(num_llms):
        for _ in range(rng.integers(4, 10)):
            gpu_type, link = places[rng.integers(len(places))]
            tp = int(rng.choice(tps))
            share = int(rng.choice(shares)) if tp == 1 or rng.random() < 0.4 else 100
            num_replicas = int(rng.integers(1, 5 if share < 100 else 4))
            size = (tp * share * num_replicas / 100) ** 0.7
            options.append(
                Option(
                    llm=f"m{llm}",
                    gpu_type=gpu_type,
                    link=None if tp == 1 and rng.random() < 0.7 else link,
                    tp_degree=tp,
                    gpu_share_pct=share,
                    num_replicas=num_replicas,
                    cost_s=float(np.round(rng.uniform(3, 5) / size, 3)),
                    throughput_rps=float(np.round(rng.uniform(1, 2) * size, 1)),
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
def fewest_gpus(items: tuple[Parallelism, ...], room: Room) -> float:
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


def kinds_of(options: tuple[Option, ...]) -> tuple[Parallelism, ...]:
    """One kind per replica, sorted so that equal loads are looked up."""
    return tuple(sorted((o.kind for o in options for _ in range(o.num_replicas)), key=str))


def all_choices(problem: SearchProblem, options: list[Option]) -> list[tuple[Option, ...]]:
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


def check_placed(solution: Solution, problem: SearchProblem) -> None:
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
    "divisible": ([25, 50, 100], [1, 2, 2, 4], False),
    "mixed": ([25, 50, 100], [1, 2, 4], True),
    "odd shares": ([30, 40, 60, 100], [1, 2], False),
    "odd groups": ([50, 100], [1, 2, 3], False),
    "shared groups, mixed": ([30, 50, 100], [1, 2, 3], True),
    "thirds and halves": ([30, 45, 100], [1, 2, 4], False),
    "thirds and halves, mixed": ([30, 45, 100], [1, 1, 2], True),
    "many shares": ([20, 30, 45, 100], [1, 1, 2], False),
}


def random_problem(case: str, seed: int) -> tuple[SearchProblem, list[Option]]:
    shares, tps, mixed = CASES[case]
    rng = np.random.default_rng([seed, *map(ord, case)])
    topology = random_topology(rng, int(rng.integers(3, 8)), mixed)
    options = random_options(rng, topology, int(rng.integers(1, 4)), shares, tps)
    limit = int(rng.integers(2, topology.num_gpus + 1)) if rng.random() < 0.4 else None
    problem = SearchProblem(tables_of(options), topology, max_gpus=limit)
    return problem, options


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(30))
def test_least_cost_equals_brute_force(case: str, seed: int) -> None:
    """On random small clusters the cost is the least of all choices that reach the target."""
    problem, options = random_problem(case, seed)
    problem = replace(problem, min_throughput_rps=float(seed % 3) / 2)
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
@pytest.mark.parametrize("seed", range(30))
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
@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("within_pct", [0.0, 30.0])
@pytest.mark.parametrize("objective", ["min_cost", "max_throughput"])
def test_within_takes_the_fewest_gpus(
    case: str, seed: int, objective: Literal["min_cost", "max_throughput"], within_pct: float
) -> None:
    """Within 0 or 30% of the best no choice needs fewer GPUs than the one returned.

    The percentage is of the cost and what all choices have in common.
    """
    problem, options = random_problem(case, seed)
    constant = float(seed % 3)
    problem = replace(problem, objective=objective, within_pct=within_pct, constant_s=constant)
    good = all_choices(problem, options)
    solution = solve(problem)
    assert solution.is_feasible == bool(good)
    if not good:
        return
    room = tuple(sorted(room_of(problem.topology)))
    if objective == "min_cost":
        best = min(map(cost, good))
        near = [c for c in good if cost(c) - best <= within_pct / 100 * (best + constant) + 1e-9]
        given_up_pct = 100 * (solution.value - best) / (best + constant)
    else:
        best = max(map(rate, good))
        near = [c for c in good if rate(c) >= (1 - within_pct / 100) * best - 1e-9]
        given_up_pct = 100 * (best - solution.value) / best
    assert solution.num_gpus == min(fewest_gpus(kinds_of(c), room) for c in near)
    assert solution.best_value == pytest.approx(best, rel=1e-7)
    assert solution.given_up_pct == pytest.approx(given_up_pct, rel=1e-6, abs=1e-6)
    assert solution.given_up_pct <= within_pct + 1e-6
    assert solution.proved
    assert solution.proved_fewest
    check_placed(solution, problem)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(15))
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


@pytest.mark.parametrize("seed", range(15))
def test_further_choices_can_be_placed_and_cost_more(seed: int) -> None:
    """The best comes first, each further choice is another one, placed, with the same bound."""
    problem, _ = random_problem("divisible", seed)
    solutions = best_choices(problem, 4)
    if not solutions[0].is_feasible:
        assert len(solutions) == 1
        return
    assert solutions[0].value == pytest.approx(solve(problem).value)
    assert [s.value for s in solutions] == sorted(s.value for s in solutions)
    assert len({tuple(sorted(map(str, s.chosen.values()))) for s in solutions}) == len(solutions)
    for solution in solutions:
        check_placed(solution, problem)
        assert solution.bound == solutions[0].bound
        assert solution.gap == pytest.approx(solution.value / solution.bound - 1, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("objective", ["min_cost", "max_throughput"])
@pytest.mark.parametrize("work", [1e-9, 1e-2])
def test_running_out_moves_no_bound(
    case: str,
    seed: int,
    objective: Literal["min_cost", "max_throughput"],
    work: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With next to no work the answer may be worse or missing; what is said of it stays true."""
    monkeypatch.setattr(cp_sat, "LEAST", 1e-9)
    problem, options = random_problem(case, seed)
    limit = 9.0 if seed % 2 else None
    problem = replace(problem, objective=objective, max_cost_s=limit, work_limit=work)
    good = [c for c in all_choices(problem, options) if limit is None or cost(c) <= limit]
    solution = solve(problem)
    if not solution.is_feasible:
        assert not solution.proved_infeasible or not good
        assert solution.proved_infeasible or "not proved" in str(solution.refused)
        return
    check_placed(solution, problem)
    if objective == "min_cost":
        best = min(map(cost, good))
        assert solution.bound <= best * (1 + 1e-9)
        assert solution.value >= best * (1 - 1e-9)
    else:
        best = max(map(rate, good))
        assert solution.bound >= best
        assert solution.value <= best
    if solution.proved:
        assert solution.value == pytest.approx(best, rel=1e-5)


def test_work_that_runs_out_leaves_things_unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the problems above some end unproved without work, and all are proved with the default."""
    unproved = 0
    for seed in range(20):
        problem, _ = random_problem("shared groups, mixed", seed)
        with monkeypatch.context() as patch:
            patch.setattr(cp_sat, "LEAST", 1e-9)
            hasty = solve(replace(problem, work_limit=1e-9))
        unproved += not (hasty.proved or hasty.proved_infeasible)
        full = solve(problem)
        assert full.proved or full.proved_infeasible
    assert unproved > 0


def one_llm(topology: Topology, **limits: Any) -> SearchProblem:
    """One LLM of up to 8 whole GPUs: n replicas give n runs a second and cost 8/n seconds."""
    options = [Option("m", "a", None, 1, 100, n, 8 / n, float(n)) for n in range(1, 9)]
    return SearchProblem(tables_of(options), topology, **limits)


FOUR_GPUS = Topology(
    (
        Node(
            name="n",
            gpu_type="a",
            gpu_memory_gib=80,
            domains=(Domain(gpus=(0, 1, 2, 3), link="nvlink"),),
        ),
    )
)


def test_target_out_of_reach_says_what_is_feasible() -> None:
    """Five runs a second on four GPUs are refused with the four that are feasible."""
    solution = solve(one_llm(FOUR_GPUS, min_throughput_rps=5.0))
    assert not solution.is_feasible
    assert solution.proved_infeasible
    assert solution.nearest_throughput_rps == 4.0
    assert solution.nearest_num_gpus is None
    assert "5 runs/s" in str(solution.refused)


def test_gpu_limit_that_forbids_the_target_says_how_many_would_do() -> None:
    """Three runs a second on two GPUs are refused: two runs, or three GPUs, are feasible."""
    solution = solve(one_llm(FOUR_GPUS, min_throughput_rps=3.0, max_gpus=2))
    assert not solution.is_feasible
    assert solution.nearest_throughput_rps == 2.0
    assert solution.nearest_num_gpus == 3


def test_cost_limit_out_of_reach_says_the_least_cost() -> None:
    """One second is refused where the least is two, with and without a limit on GPUs."""
    solution = solve(one_llm(FOUR_GPUS, max_cost_s=1.0))
    assert not solution.is_feasible
    assert solution.proved_infeasible
    assert solution.nearest_cost_s == 2.0
    limited = solve(one_llm(FOUR_GPUS, max_cost_s=3.0, max_gpus=2))
    assert limited.nearest_cost_s == 4.0
    assert limited.nearest_num_gpus == 3


def test_frontier_has_every_step() -> None:
    """On four GPUs the frontier has four points, each proved best."""
    frontier = solve(one_llm(FOUR_GPUS)).frontier
    assert [(p.num_gpus, p.value) for p in frontier] == [(1, 8.0), (2, 4.0), (3, 8 / 3), (4, 2.0)]
    assert all(p.value == p.bound for p in frontier)


def test_llm_without_a_place_is_named() -> None:
    """An LLM whose GPU type is not there is refused by name."""
    option = Option("lonely", "z", None, 1, 100, 1, 1.0, 1.0)
    solution = solve(SearchProblem(tables_of([option]), FOUR_GPUS))
    assert not solution.is_feasible
    assert "lonely" in str(solution.refused)


@pytest.mark.parametrize("fragmented", [False, True])
def test_large_clusters_are_certified(fragmented: bool) -> None:
    """At 256 GPUs the gap is at most 1%, fragmented or not, and everything is placed."""
    rng = np.random.default_rng(7)
    nodes = tuple(
        Node(
            name=f"n{i}",
            gpu_type="a",
            gpu_memory_gib=80,
            domains=(Domain(gpus=tuple(range(8)), link="nvlink"),),
            free_gpus=tuple(g for g in range(8) if not fragmented or rng.random() < 0.6),
        )
        for i in range(32)
    )
    replicas = np.arange(1, 100)
    tables = tuple(
        OptionTable(f"m{m}", "a", "nvlink" if tp > 1 else None, tp, share, replicas, cost, replicas)
        for m in range(12)
        for tp, share in ((1, 25), (1, 100), (2, 100), (4, 100), (8, 100))
        for cost in [rng.uniform(5, 9) / (tp * share / 100) ** 0.8 * (1 + 4 / (tp * replicas))]
    )
    problem = SearchProblem(tables, Topology(nodes))
    solution = solve(problem)
    assert solution.gap <= 0.01
    check_placed(solution, problem)
