"""Which replica of a group takes a call: the one rule of dispatcher, predictor and simulator.

`least_in_flight`: the replica with the fewest calls in flight; ties go to the one that was picked
longest ago, so that idle replicas take turns. `sticky_prefix`: the replica that holds the call's
prefix, unless it has more than ``max_behind`` calls above the least busy one.
"""

from __future__ import annotations

from collections.abc import Sequence


def pick(
    in_flight: Sequence[int],
    last_picked: Sequence[int],
    holder: int | None = None,
    max_behind: int = 0,
) -> int:
    """Index of the replica that takes a call; ``in_flight`` [R], ``last_picked`` [R], R > 0.

    ``last_picked`` grows with every pick; replicas equal in both go by index. ``holder`` is the
    replica that holds the call's prefix, None where none does or the rule does not ask.
    """
    if holder is not None and in_flight[holder] - min(in_flight) <= max_behind:
        return holder
    return min(range(len(in_flight)), key=lambda i: (in_flight[i], last_picked[i], i))
