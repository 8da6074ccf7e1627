"""The knapsack table against every choice, for one budget and for vectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scepsy_hpc.planning.search.knapsack import Items, fill, staircase


def random_groups(rng: np.random.Generator, num_pools: int) -> tuple[Items, ...]:
    """Three groups of up to six items."""
    return tuple(
        Items(
            rng.integers(0, num_pools, size=n),
            rng.integers(0, 7, size=n),
            np.round(rng.uniform(0, 10, size=n), 2),
        )
        for n in rng.integers(1, 7, size=3)
    )


def all_choices(
    groups: tuple[Items, ...], budget: tuple[int, ...], rows: list[list[int]]
) -> list[tuple[float, tuple[int, ...]]]:
    """Cost and rows of every choice within the budget."""
    found = []
    for choice in itertools.product(*rows):
        used = [0] * len(budget)
        for group, row in zip(groups, choice, strict=True):
            used[group.pool[row]] += int(group.units[row])
        if all(u <= b for u, b in zip(used, budget, strict=True)):
            cost = sum(float(g.cost[r]) for g, r in zip(groups, choice, strict=True))
            found.append((cost, choice))
    return sorted(found)


@pytest.mark.parametrize("num_pools", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_every_budget_has_its_best(num_pools: int, seed: int) -> None:
    """Each cell of the table is the least cost within its budget, and its choice costs that."""
    rng = np.random.default_rng([seed, num_pools])
    groups = random_groups(rng, num_pools)
    budget = tuple(rng.integers(0, 14 // num_pools, size=num_pools).tolist())
    table = fill(groups, budget)
    everything = [list(range(len(g))) for g in groups]
    for cell in np.ndindex(*(b + 1 for b in budget)):
        choices = all_choices(groups, cell, everything)
        best = choices[0][0] if choices else math.inf
        assert table.value[cell] == pytest.approx(best)
        if choices:
            rows = table.choice(cell)
            cost = sum(float(g.cost[r]) for g, r in zip(groups, rows, strict=True))
            assert cost == pytest.approx(best)


@pytest.mark.parametrize("num_pools", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_choices_come_cheapest_first(num_pools: int, seed: int) -> None:
    """All choices of staircase items are given once, by rising cost."""
    rng = np.random.default_rng([seed, num_pools, 1])
    groups = random_groups(rng, num_pools)
    budget = (9,) * num_pools
    table = fill(groups, budget)
    wanted = all_choices(groups, budget, [staircase(g).tolist() for g in groups])
    found = [tuple(rows) for rows in table.cheapest(budget)]
    costs = [sum(float(g.cost[r]) for g, r in zip(groups, c, strict=True)) for c in found]
    assert sorted(found) == sorted(rows for _, rows in wanted)
    assert costs == pytest.approx([cost for cost, _ in wanted])


def test_staircase_keeps_what_nothing_beats() -> None:
    """An item stays unless another of its pool takes no more units at no more cost."""
    items = Items(
        np.array([0, 0, 0, 0, 1]), np.array([1, 2, 2, 3, 3]), np.array([5.0, 4.0, 3.0, 3.0, 9.0])
    )
    assert sorted(staircase(items).tolist()) == [0, 2, 4]
