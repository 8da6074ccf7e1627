"""A slow simulation of replicas behind a dispatcher, from the contract's words alone.

Runs come as a Poisson process, each a traced one drawn at random: rounds of calls that are sent
together, the next round when the last call of one has ended. A call goes to the replica with the
fewest calls in flight, of equal ones the one picked longest ago. A replica with k calls does X(k)
of mean work a second, in equal parts. Nothing here is shared with the package.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Found:
    """Latencies after the warm-up, in the order in which calls, and runs, ended."""

    calls_s: list[float] = field(default_factory=list)
    runs_s: list[float] = field(default_factory=list)


@dataclass
class _Replica:
    left: list[list[float]] = field(default_factory=list)  # work left, start, run
    picked: int = 0
    since_s: float = 0.0


def simulate(
    rate: Callable[[int], float],
    num_replicas: int,
    traced: Sequence[Sequence[Sequence[float]]],
    runs_rps: float,
    num_calls: int,
    seed: int,
) -> Found:
    """``traced[i][j]``: works of the calls of round j of run i; a mean call has work 1."""
    chance, found = random.Random(seed), Found()
    replicas = [_Replica() for _ in range(num_replicas)]
    ends_s = [math.inf] * num_replicas
    runs: dict[int, tuple[float, int, int, int]] = {}  # start, traced run, round, calls under way
    next_s, now_s, num_runs, num_picked, num_ended = 0.0, 0.0, 0, 0, 0

    def work_off(index: int) -> None:
        replica = replicas[index]
        if replica.left:
            done = (now_s - replica.since_s) * rate(len(replica.left)) / len(replica.left)
            for call in replica.left:
                call[0] -= done
        replica.since_s = now_s

    def set_end(index: int) -> None:
        left = replicas[index].left
        ends_s[index] = math.inf
        if left:
            ends_s[index] = now_s + max(min(left)[0], 0.0) * len(left) / rate(len(left))

    def send(run: int) -> None:
        nonlocal num_picked
        start_s, which, stage, _ = runs[run]
        works = traced[which][stage]
        runs[run] = (start_s, which, stage + 1, len(works))
        for work in works:
            index = min(
                range(num_replicas), key=lambda i: (len(replicas[i].left), replicas[i].picked)
            )
            num_picked += 1
            replicas[index].picked = num_picked
            work_off(index)
            replicas[index].left.append([work, now_s, run])
            set_end(index)

    while num_ended < num_calls:
        index = min(range(num_replicas), key=ends_s.__getitem__)
        if next_s <= ends_s[index]:
            now_s, run = next_s, num_runs
            next_s += chance.expovariate(runs_rps)
            num_runs += 1
            runs[run] = (now_s, chance.randrange(len(traced)), 0, 0)
            send(run)
            continue
        now_s = ends_s[index]
        work_off(index)
        call = min(replicas[index].left)
        replicas[index].left.remove(call)
        set_end(index)
        run = int(call[2])
        start_s, which, stage, under_way = runs[run]
        runs[run] = (start_s, which, stage, under_way - 1)
        num_ended += 1
        is_warm = num_ended > num_calls // 10
        if is_warm:
            found.calls_s.append(now_s - call[1])
        if under_way == 1:
            if stage < len(traced[which]):
                send(run)
            else:
                del runs[run]
                if is_warm:
                    found.runs_s.append(now_s - start_s)
    return found
