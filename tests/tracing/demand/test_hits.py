"""What is found in a cache under each routing rule: by hand, and against drawn routing."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from scepsy_hpc.engines.picking import pick
from scepsy_hpc.formats.plan import LlmDemand, Routing
from scepsy_hpc.tracing.demand.hits import expected_hit_tokens, hit_flag, in_blocks

LEAST, STICKY = Routing(), Routing(rule="sticky_prefix")


def demand(cached: float | None, prefix: float | None) -> LlmDemand:
    return LlmDemand(
        calls_per_run=3.0,
        parallelism=1.0,
        share_mean=1.0,
        input_tokens_mean=1000.0,
        cached_tokens_mean=cached,
        prefix_tokens_mean=prefix,
    )


def test_whole_blocks_and_never_the_last_token() -> None:
    """Of an input of 33 tokens two blocks at most, of 32 one; what is unknown is nothing."""
    prefix = np.array([15.0, 16.0, 31.0, 99.0, 32.0, np.nan, 64.0, 5.0])
    inputs = np.array([40.0, 40.0, 40.0, 33.0, 32.0, 40.0, np.nan, 0.0])
    assert in_blocks(prefix, inputs).tolist() == [0, 16, 16, 32, 16, 0, 0, 0]


@pytest.mark.parametrize(
    ("cached", "prefix", "one", "four", "sticky"),
    [
        (None, None, 0.0, 0.0, 0.0),
        (None, 800.0, 800.0, 200.0, 800.0),
        (0.0, 800.0, 0.0, 0.0, 0.0),  # an engine without a cache
        (900.0, 800.0, 900.0, 100.0 + 200.0, 900.0),  # 100 are what all runs share
        (500.0, 800.0, 500.0, 125.0, 500.0),
        (300.0, None, 300.0, 300.0, 300.0),
    ],
)
def test_credit_by_rule_and_replicas(
    cached: float | None, prefix: float | None, one: float, four: float, sticky: float
) -> None:
    """One replica has all that was found, four a quarter of a run's own repeats, sticky all."""
    mine = demand(cached, prefix)
    assert expected_hit_tokens(mine, 1, LEAST) == one
    assert expected_hit_tokens(mine, 4, LEAST) == four
    assert expected_hit_tokens(mine, 4, STICKY) == sticky
    assert expected_hit_tokens(mine, math.inf, LEAST) <= four


def test_a_quarter_is_what_picking_finds_on_four_idle_replicas() -> None:
    """Turns of many conversations at random: the replica of the last turn is met 1 time in 4."""
    rng = random.Random(5)
    last = [0] * 4
    where: dict[int, int] = {}
    hits = turns = 0
    for number in range(1, 20_001):
        conversation = rng.randrange(50)
        taken = pick([0] * 4, last)
        last[taken] = number
        hits += where.get(conversation) == taken
        turns += conversation in where
        where[conversation] = taken
    assert hits / turns == pytest.approx(expected_hit_tokens(demand(None, 1.0), 4, LEAST), abs=0.02)


def test_the_flag_says_what_was_counted_and_on_what_it_rests() -> None:
    """Nothing to say where nothing repeats."""
    assert hit_flag(demand(300.0, None), 4, LEAST) is None
    assert hit_flag(demand(None, 800.0), 4, LEAST) == (
        "cached prefix: 80% of the input is counted as cached; 80% repeats an earlier prompt of "
        "its run, no engine said what it cached; 4 replicas under least_in_flight may find as "
        "little as 20%, which the simulation counts"
    )
    assert hit_flag(demand(900.0, 800.0), 4, STICKY) == (
        "cached prefix: 90% of the input is counted as cached; 80% repeats an earlier prompt of "
        "its run, engines found 90% in the trace"
    )
