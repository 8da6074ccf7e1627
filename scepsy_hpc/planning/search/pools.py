"""Free GPUs as pools of holes, and when counting alone decides whether replicas fit them.

A hole is the free GPUs of one domain; a pool is the holes of one GPU type and link. Where sizes
divide each other, replicas fit a pool exactly when for every size the units of all replicas of at
least that size fit into the holes of that size: placed largest first, what is left of each hole is
always a multiple of the next size. Shares of one GPU need not divide each other: 30 and 45 count as
a third and a half (``countable_units``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from scepsy_hpc.formats.parallelism import Link, Parallelism
from scepsy_hpc.formats.topology import Topology

MOST_REMAINDERS = 5000  # that are packed to see whether shares can be counted


@dataclass(frozen=True, slots=True)
class Hole:
    """Free GPUs of one domain."""

    node: str
    gpu_type: str
    link: Link
    gpus: tuple[int, ...]

    def takes(self, kind: Parallelism) -> bool:
        """Whether one replica of that kind fits while all GPUs of the hole are empty."""
        return (
            kind.gpu_type == self.gpu_type
            and kind.link in (None, self.link)
            and kind.tp_degree <= len(self.gpus)
        )


def holes_of(topology: Topology) -> tuple[Hole, ...]:
    """All holes that have a free GPU. A MIG instance is alone in its hole: its TP is 1."""
    found = []
    for node in topology.nodes:
        for domain in node.domains:
            free = node.free_in(domain)
            groups = [(gpu,) for gpu in free] if node.mig else [free] if free else []
            found += [Hole(node.name, node.full_gpu_type, domain.link, gpus) for gpus in groups]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class HoleRow:
    """GPUs of replicas bound to a link, with at least so many GPUs each, stay within a number.

    ``alone``: the pool has no other link, so replicas that take any link are bound to it, too.
    """

    link: Link
    tp_degree: int
    num_gpus: int
    alone: bool

    def covers(self, kind: Parallelism) -> bool:
        """Whether replicas of that kind count."""
        bound = kind.link == self.link or (self.alone and kind.link is None)
        return bound and kind.tp_degree >= self.tp_degree


@dataclass(frozen=True, slots=True)
class Pool:
    """Holes that the same kinds may use, with sizes counted in units of a GPU.

    ``countable``: units count exactly (``countable_units``); ``rows`` are the conditions that the
    total does not imply. ``mixed``: of several links, some replicas of one GPU are pinned to one,
    or some groups may use any. Where it is not countable, or mixed, counting is necessary but not
    enough.
    """

    holes: tuple[Hole, ...]
    kinds: tuple[Parallelism, ...]
    units_per_gpu: int
    units: Mapping[Parallelism, int]
    countable: bool
    mixed: bool
    rows: tuple[HoleRow, ...]

    @property
    def num_gpus(self) -> int:
        """Free GPUs of the pool."""
        return sum(len(hole.gpus) for hole in self.holes)

    @property
    def decides(self) -> bool:
        """Whether counting decides exactly whether replicas fit."""
        return self.countable and not self.mixed

    def most_replicas(self, kind: Parallelism) -> int:
        """How many replicas of one kind fit when they have the pool for themselves."""
        per_gpu = 100 // kind.gpu_share_pct
        groups = sum(len(h.gpus) // kind.tp_degree for h in self.holes if h.takes(kind))
        if kind.tp_degree == 1 or per_gpu == 1:
            return groups * per_gpu
        # At most: a hole of g GPUs at n a GPU has g·n slices, and a group takes t of them.
        return sum(len(h.gpus) * per_gpu // kind.tp_degree for h in self.holes if h.takes(kind))

    def fits(self, num_replicas: Mapping[Parallelism, int]) -> bool:
        """Whether the counts keep every condition: needed always, enough if ``decides``."""
        if self.num_units(num_replicas) > self.num_gpus * self.units_per_gpu:
            return False
        for row in self.rows:
            wide = sum(n * k.tp_degree for k, n in num_replicas.items() if row.covers(k))
            if wide > row.num_gpus:
                return False
        return True

    def num_units(self, num_replicas: Mapping[Parallelism, int]) -> int:
        """Units that the replicas take."""
        return sum(n * self.units[kind] for kind, n in num_replicas.items())

    def gpus_for(self, units: int) -> int:
        """Fewest GPUs that offer that many units."""
        return -(-units // self.units_per_gpu)


def pools_of(topology: Topology, kinds: Iterable[Parallelism]) -> tuple[Pool, ...]:
    """Pools that at least one of the kinds can use.

    Links are kept apart unless a kind of that GPU type may use any of several.
    """
    used = list(dict.fromkeys(kinds))
    pools = []
    holes = holes_of(topology)
    for gpu_type in dict.fromkeys(hole.gpu_type for hole in holes):
        mine = [kind for kind in used if kind.gpu_type == gpu_type]
        of_type = [hole for hole in holes if hole.gpu_type == gpu_type]
        pools += [_pool(h, k) for h, k in _by_link(of_type, mine)]
    return tuple(pool for pool in pools if pool.kinds)


def _by_link(
    holes: Sequence[Hole], kinds: Sequence[Parallelism]
) -> Iterator[tuple[tuple[Hole, ...], tuple[Parallelism, ...]]]:
    links = tuple(dict.fromkeys(hole.link for hole in holes))
    if any(kind.link is None for kind in kinds):
        fitting = tuple(k for k in kinds if any(h.takes(k) for h in holes))
        yield tuple(holes), fitting
        return
    for link in links:
        inside = tuple(hole for hole in holes if hole.link == link)
        yield inside, tuple(k for k in kinds if any(h.takes(k) for h in inside))


def _pool(holes: tuple[Hole, ...], kinds: tuple[Parallelism, ...]) -> Pool:
    links = {hole.link for hole in holes}
    # Links matter only to groups: a pinned single GPU, or a group that takes any link, competes
    # with others for the holes of one link.
    mixed = len(links) > 1 and any((k.link is None) == (k.tp_degree > 1) for k in kinds)
    counted = countable_units(kinds)
    if counted is None:
        unit = math.gcd(100, *(kind.gpu_share_pct for kind in kinds))
        units = {k: k.tp_degree * k.gpu_share_pct // unit for k in kinds}
        return Pool(holes, kinds, 100 // unit, units, False, mixed, _rows(holes, kinds))
    per_gpu, units = counted
    return Pool(holes, kinds, per_gpu, units, True, mixed, _rows(holes, kinds))


def _rows(holes: Sequence[Hole], kinds: Sequence[Parallelism]) -> tuple[HoleRow, ...]:
    """Conditions on wide groups that the total does not imply; only for whole GPUs."""
    wide = [k for k in kinds if k.tp_degree > 1]
    sizes = sorted({k.tp_degree for k in wide})
    if not _is_chain([1, *sizes]) or not all(is_whole(k, kinds) for k in wide):
        return ()
    links = sorted({hole.link for hole in holes})
    total = sum(len(hole.gpus) for hole in holes)
    rows = [
        HoleRow(link, size, _room(holes, link, size), alone=len(links) == 1)
        for link in links
        for size in sizes
    ]
    return tuple(r for r in rows if r.num_gpus < total and any(r.covers(k) for k in wide))


def _room(holes: Sequence[Hole], link: Link, size: int) -> int:
    return sum(len(hole.gpus) // size * size for hole in holes if hole.link == link)


def is_whole(kind: Parallelism, kinds: Sequence[Parallelism]) -> bool:
    """Whether nothing fits beside a replica on its GPUs, whatever its share is."""
    beside = min(k.gpu_share_pct for k in kinds if k.gpu_type == kind.gpu_type)
    return kind.gpu_share_pct + beside > 100


def _is_chain(sizes: Sequence[int]) -> bool:
    ordered = sorted(set(sizes))
    return all(big % small == 0 for small, big in pairwise(ordered))


def countable_units(kinds: Sequence[Parallelism]) -> tuple[int, dict[Parallelism, int]] | None:
    """Units of one GPU and of one replica of each kind, if counting them is exact; else None.

    A share counts as 1/n of a GPU where n of it fit. That is exact when no mix of shares that
    stays within 100% is refused by the count, and what the count allows can be packed.
    """
    if any(k.tp_degree > 1 and not is_whole(k, kinds) for k in kinds):
        return None
    if not _is_chain([1, *(k.tp_degree for k in kinds)]):
        return None
    parts = {k: 1 if is_whole(k, kinds) else 100 // k.gpu_share_pct for k in kinds}
    per_gpu = math.lcm(*parts.values())
    shares = {k.gpu_share_pct: n for k, n in parts.items()}
    if not _counts_exactly(tuple(sorted(shares.items(), reverse=True)), per_gpu):
        return None
    return per_gpu, {k: k.tp_degree * per_gpu // n for k, n in parts.items()}


@cache
def _counts_exactly(parts: tuple[tuple[int, int], ...], per_gpu: int) -> bool:
    """Whether shares (largest first, with how many fit one GPU) fit whenever their units do.

    n replicas of 1/n fill a GPU. So only what is left over, fewer than n of each share, is to be
    looked at: whether first fit packs it on as many GPUs as its units need.
    """
    if _most_units({share: per_gpu // n for share, n in parts}) > per_gpu:
        return False
    if _is_chain([1, *(n for _, n in parts)]):
        return True
    if math.prod(n for _, n in parts) > MOST_REMAINDERS:
        return False
    for left in itertools.product(*(range(n) for _, n in parts)):
        units = sum(m * per_gpu // n for m, (_, n) in zip(left, parts, strict=True))
        shares = [share for m, (share, _) in zip(left, parts, strict=True) for _ in range(m)]
        if len(set(first_fit(shares))) > -(-units // per_gpu):
            return False
    return True


def first_fit(shares: Sequence[int]) -> list[int]:
    """The GPU, counted from 0, that each share gets: the first that has room for it."""
    room: list[int] = []
    where = []
    for share in shares:
        at = next((i for i, left in enumerate(room) if left >= share), len(room))
        if at == len(room):
            room.append(100)
        room[at] -= share
        where.append(at)
    return where


def _most_units(units: Mapping[int, int]) -> int:
    """Most units that replicas on one GPU can count while their shares stay within 100%."""
    best = [0] * 101
    for room in range(1, 101):
        best[room] = max([0, *(best[room - s] + n for s, n in units.items() if s <= room)])
    return best[100]
