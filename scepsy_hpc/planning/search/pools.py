"""Free GPUs as pools of holes, and when counting alone decides whether replicas fit them.

A hole is the free GPUs of one domain; a pool is the holes of one GPU type and link. Where sizes
divide each other, replicas fit a pool exactly when for every size the units of all replicas of at
least that size fit into the holes of that size: placed largest first, what is left of each hole is
always a multiple of the next size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scepsy_hpc.formats.parallelism import Link, Parallelism
from scepsy_hpc.formats.topology import Topology


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

    ``divisible``: sizes divide each other; ``rows`` are the conditions that the total does not
    imply. ``mixed``: of several links, some replicas of one GPU are pinned to one, or some groups
    may use any. Where it is not divisible, or mixed, counting is necessary but not enough.
    """

    holes: tuple[Hole, ...]
    kinds: tuple[Parallelism, ...]
    units_per_gpu: int
    units: Mapping[Parallelism, int]
    divisible: bool
    mixed: bool
    rows: tuple[HoleRow, ...]

    @property
    def num_gpus(self) -> int:
        """Free GPUs of the pool."""
        return sum(len(hole.gpus) for hole in self.holes)

    @property
    def decides(self) -> bool:
        """Whether counting decides exactly whether replicas fit."""
        return self.divisible and not self.mixed

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
    chain = divisible_units(kinds)
    if chain is None:
        unit = math.gcd(100, *(kind.gpu_share_pct for kind in kinds))
        units = {k: k.tp_degree * k.gpu_share_pct // unit for k in kinds}
        return Pool(holes, kinds, 100 // unit, units, False, mixed, _rows(holes, kinds))
    per_gpu, units = chain
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


def divisible_units(kinds: Sequence[Parallelism]) -> tuple[int, dict[Parallelism, int]] | None:
    """Units of one GPU and of one replica of each kind, if sizes divide each other; else None.

    A share counts as 1/n of a GPU where n of it fit; that is exact when no mix of shares that
    stays within 100% is refused by the count.
    """
    if any(k.tp_degree > 1 and not is_whole(k, kinds) for k in kinds):
        return None
    if not _is_chain([1, *(k.tp_degree for k in kinds)]):
        return None
    parts = {k: 1 if is_whole(k, kinds) else 100 // k.gpu_share_pct for k in kinds}
    if not _is_chain([1, *parts.values()]):
        return None
    per_gpu = max(parts.values(), default=1)
    shares = {k.gpu_share_pct: per_gpu // n for k, n in parts.items()}
    if _most_units(shares) > per_gpu:
        return None
    return per_gpu, {k: k.tp_degree * per_gpu // n for k, n in parts.items()}


def _most_units(units: Mapping[int, int]) -> int:
    """Most units that replicas on one GPU can count while their shares stay within 100%."""
    best = [0] * 101
    for room in range(1, 101):
        best[room] = max([0, *(best[room - s] + n for s, n in units.items() if s <= room)])
    return best[100]
