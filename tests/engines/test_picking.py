"""Which replica takes a call: small cases by hand."""

import random

from scepsy_hpc.engines.picking import pick


def test_the_least_busy_then_the_longest_idle_then_the_first():
    """Load decides, then the time since the last pick, then the index."""
    assert pick([2, 1, 3], [1, 9, 2]) == 1
    assert pick([1, 1, 3], [7, 4, 1]) == 1
    assert pick([0, 0, 0], [0, 0, 0]) == 0


def test_the_holder_is_taken_up_to_max_behind_above_the_least_busy():
    """Two above with a slack of two is taken, three above is not."""
    assert pick([0, 2], [1, 2], holder=1, max_behind=2) == 1
    assert pick([0, 3], [1, 2], holder=1, max_behind=2) == 0
    assert pick([4, 6, 9], [1, 2, 3], holder=1, max_behind=2) == 1


def test_without_slack_the_holder_only_breaks_ties():
    """With ``max_behind`` 0 a holder as idle as the least busy goes before one idle for longer."""
    assert pick([1, 1], [1, 2], holder=1) == 1
    assert pick([0, 1], [1, 2], holder=1) == 0


def test_any_slack_beyond_the_load_is_always_the_holder():
    """A pick never has more than ``max_behind`` calls above the least busy; drawn cases."""
    rng = random.Random(3)
    for _ in range(200):
        in_flight = [rng.randrange(6) for _ in range(rng.randrange(1, 6))]
        last = rng.sample(range(20), len(in_flight))
        holder = rng.randrange(len(in_flight))
        slack = rng.randrange(6)
        chosen = pick(in_flight, last, holder, slack)
        assert in_flight[chosen] - min(in_flight) <= slack
        assert pick(in_flight, last, holder, 5) == holder
