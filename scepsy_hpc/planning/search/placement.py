"""Replicas onto GPUs: groups inside one domain, shares on as few GPUs as possible.

Where counting decides (see ``pools``), largest-first placement always succeeds when the counts
fit. Elsewhere best-fit is tried, then the constraint model of ``cp_sat``. Nodes are filled one
after the other so that no node is taken needlessly; on those nodes the replicas of one LLM are
spread out, because a lost node then costs fewer of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import Instance
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.planning.search.pools import Hole, Pool, first_fit, pools_of
from scepsy_hpc.planning.search.problem import Option
from scepsy_hpc.planning.search.work import Work

if TYPE_CHECKING:
    from scepsy_hpc.planning.search.cp_sat import CellPacking


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one replica of a kind."""

    kind: Parallelism
    node: str
    gpus: tuple[int, ...]


def place(
    options: Iterable[Option],
    topology: Topology,
    max_gpus: int | None = None,
    work: Work | None = None,
    packing: Sequence[CellPacking] = (),
) -> tuple[Instance, ...] | None:
    """Put every replica of the options onto free GPUs.

    Returns one instance per replica (ids ``LLM-0``, ``LLM-1``, ...), or None when no placement on
    at most ``max_gpus`` GPUs exists or, where counting does not decide, none was found.
    A ``packing`` that is known already is used where counting does not decide.
    """
    chosen = list(options)
    slots = place_kinds(_count(chosen), topology, max_gpus, work or Work(), packing)
    return _assign(chosen, slots) if slots else None


def _count(options: Iterable[Option]) -> dict[Parallelism, int]:
    counts: Counter[Parallelism] = Counter()
    for option in options:
        counts[option.kind] += option.num_replicas
    return dict(counts)


def place_kinds(
    counts: Mapping[Parallelism, int],
    topology: Topology,
    max_gpus: int | None,
    work: Work,
    packing: Sequence[CellPacking] = (),
) -> list[Slot] | None:
    """Room for so many replicas of each kind, or None."""
    pools = pools_of(topology, counts)
    if not set(counts) <= {kind for pool in pools for kind in pool.kinds}:
        return None
    parts = [(pool, {k: counts[k] for k in pool.kinds}) for pool in pools]
    fewest = sum(pool.gpus_for(pool.num_units(mine)) for pool, mine in parts)
    if max_gpus is not None and fewest > max_gpus:
        return None
    if not all(pool.fits(mine) for pool, mine in parts):
        return None
    counted: list[Slot] = []
    for pool, mine in parts:
        if pool.decides:
            made = _compact(pool, mine)
            assert made is not None, "what counts exactly can be placed"
            counted += made
    rest = [(pool, mine) for pool, mine in parts if not pool.decides]
    if not rest:
        return counted
    left = None if max_gpus is None else max_gpus - num_gpus(counted)
    packed = _pack(rest, left, work, packing)
    return counted + packed if packed else None


def _pack(
    parts: Sequence[tuple[Pool, Mapping[Parallelism, int]]],
    max_gpus: int | None,
    work: Work,
    packing: Sequence[CellPacking],
) -> list[Slot] | None:
    """Where counting does not decide: best fit if it takes the fewest GPUs, else the model."""
    fewest = sum(pool.gpus_for(pool.num_units(mine)) for pool, mine in parts)
    built = [_compact(pool, mine) for pool, mine in parts]
    slots = None if None in built else [slot for part in built for slot in part or ()]
    if slots is not None and num_gpus(slots) == fewest:
        return slots
    if slots is not None and max_gpus is not None and num_gpus(slots) > max_gpus:
        slots = None
    counts = {kind: n for _, mine in parts for kind, n in mine.items()}
    holes = {hole for pool, _ in parts for hole in pool.holes}
    known = [part for part in packing if holes.issuperset(part.cell.holes)]
    return _by_model(counts, [pool for pool, _ in parts], max_gpus, work, known) or slots


def num_gpus(slots: Iterable[Slot | Instance]) -> int:
    """GPUs touched by slots or instances."""
    return len({(slot.node, gpu) for slot in slots for gpu in slot.gpus})


def _compact(pool: Pool, counts: Mapping[Parallelism, int]) -> list[Slot] | None:
    """Place on the fewest nodes, largest nodes first, on which it works."""
    size: Counter[str] = Counter()
    for hole in pool.holes:
        size[hole.node] += len(hole.gpus)
    nodes = sorted(size, key=lambda name: -size[name])
    build = _count_out if pool.decides else _best_fit
    low, high = 1, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if build(_part(pool, nodes[:middle]), counts) is None:
            low = middle + 1
        else:
            high = middle
    return build(_part(pool, nodes[:low]), counts) or build(pool, counts)


def _part(pool: Pool, nodes: Sequence[str]) -> Pool:
    return replace(pool, holes=tuple(hole for hole in pool.holes if hole.node in set(nodes)))


def _count_out(pool: Pool, counts: Mapping[Parallelism, int]) -> list[Slot] | None:
    """Largest first, taking holes in turn: exact where sizes divide each other."""
    free = {hole: list(hole.gpus) for hole in in_turn(pool.holes)}
    slots: list[Slot] = []
    whole = [k for k in counts if pool.units[k] >= pool.units_per_gpu]
    for kind in sorted(whole, key=lambda k: -k.tp_degree):
        if not _take_groups(kind, counts[kind], free, slots):
            return None
    shared = sorted((k for k in counts if k not in whole), key=lambda k: -pool.units[k])
    needed = pool.gpus_for(sum(pool.units[k] * counts[k] for k in shared))
    gpus = _gpus_in_turn(free)[:needed]
    if len(gpus) < needed:
        return None
    deal = _deal_out if _divides(pool, shared) else _fill_up
    where = deal(pool, [k for k in shared for _ in range(counts[k])], len(gpus))
    return slots + [Slot(kind, gpus[at][0], (gpus[at][1],)) for kind, at in where]


def _divides(pool: Pool, kinds: Sequence[Parallelism]) -> bool:
    return all(pool.units[big] % pool.units[small] == 0 for big, small in pairwise(kinds))


def _deal_out(
    pool: Pool, replicas: Sequence[Parallelism], num_gpus: int
) -> Iterator[tuple[Parallelism, int]]:
    """One GPU after the other in turn: exact where units divide each other, largest first."""
    room = [pool.units_per_gpu] * num_gpus
    at = 0
    for kind in replicas:
        while room[at] < pool.units[kind]:
            at = (at + 1) % num_gpus
        room[at] -= pool.units[kind]
        yield kind, at
        at = (at + 1) % num_gpus


def _fill_up(
    pool: Pool, replicas: Sequence[Parallelism], num_gpus: int
) -> Iterator[tuple[Parallelism, int]]:
    """Full GPUs of one share each, then the rest by first fit: exact where units count exactly."""
    by_share: dict[int, list[Parallelism]] = defaultdict(list)
    for kind in replicas:
        by_share[kind.gpu_share_pct].append(kind)
    at, left = 0, []
    for _, kinds in sorted(by_share.items(), reverse=True):
        parts = pool.units_per_gpu // pool.units[kinds[0]]
        full = len(kinds) // parts
        yield from ((kind, at + i % full) for i, kind in enumerate(kinds[: full * parts]))
        at += full
        left += kinds[full * parts :]
    for kind, gpu in zip(left, first_fit([k.gpu_share_pct for k in left]), strict=True):
        assert at + gpu < num_gpus
        yield kind, at + gpu


def in_turn(holes: Iterable[Hole]) -> list[Hole]:
    """One hole of each node, then a second of each, and so on."""
    seen: Counter[str] = Counter()
    keyed: list[tuple[int, int, Hole]] = []
    for hole in holes:
        keyed.append((seen[hole.node], len(keyed), hole))
        seen[hole.node] += 1
    return [hole for _, _, hole in sorted(keyed, key=lambda item: item[:2])]


def _gpus_in_turn(free: Mapping[Hole, Sequence[int]]) -> list[tuple[str, int]]:
    by_node: dict[str, list[int]] = defaultdict(list)
    for hole, gpus in free.items():
        by_node[hole.node] += gpus
    ranked = [
        (turn, number, node, gpu)
        for number, (node, gpus) in enumerate(by_node.items())
        for turn, gpu in enumerate(gpus)
    ]
    return [(node, gpu) for _, _, node, gpu in sorted(ranked)]


def _take_groups(
    kind: Parallelism, wanted: int, free: dict[Hole, list[int]], slots: list[Slot]
) -> bool:
    """Take groups of whole GPUs, one per hole and round; False when they do not all fit."""
    able = [h for h in free if h.takes(kind) and len(free[h]) >= kind.tp_degree]
    while wanted and able:
        for hole in able[:wanted]:
            slots.append(Slot(kind, hole.node, tuple(free[hole][: kind.tp_degree])))
            del free[hole][: kind.tp_degree]
        wanted -= len(able[:wanted])
        able = [h for h in able if len(free[h]) >= kind.tp_degree]
    return wanted == 0


def _best_fit(pool: Pool, counts: Mapping[Parallelism, int]) -> list[Slot] | None:
    """Largest first, each replica where the least is left over; may miss a placement."""
    room = {hole: dict.fromkeys(hole.gpus, 100) for hole in pool.holes}
    slots: list[Slot] = []
    for kind in sorted(counts, key=lambda k: (-k.tp_degree, -k.gpu_share_pct, k.link is None)):
        take = _fit_single if kind.tp_degree == 1 else _fit_group
        if not take(kind, counts[kind], room, slots):
            return None
    return slots


def _fit_single(
    kind: Parallelism, wanted: int, room: dict[Hole, dict[int, int]], slots: list[Slot]
) -> bool:
    """Fill the fullest GPUs first."""
    fullest: list[list[tuple[Hole, int]]] = [[] for _ in range(101)]
    for hole, gpus in room.items():
        if hole.takes(kind):
            for gpu, left in gpus.items():
                fullest[left].append((hole, gpu))
    at = kind.gpu_share_pct
    for _ in range(wanted):
        while at <= 100 and not fullest[at]:
            at += 1
        if at > 100:
            return False
        hole, gpu = fullest[at].pop(0)
        room[hole][gpu] -= kind.gpu_share_pct
        slots.append(Slot(kind, hole.node, (gpu,)))
        if room[hole][gpu] >= kind.gpu_share_pct:
            fullest[room[hole][gpu]].insert(0, (hole, gpu))
            at = room[hole][gpu]
    return True


def _fit_group(
    kind: Parallelism, wanted: int, room: dict[Hole, dict[int, int]], slots: list[Slot]
) -> bool:
    """Fill the holes with the least room first, and in them the fullest GPUs."""
    for hole in sorted(room, key=lambda h: sum(room[h].values())):
        while wanted and hole.takes(kind):
            able = sorted((r, gpu) for gpu, r in room[hole].items() if r >= kind.gpu_share_pct)
            if len(able) < kind.tp_degree:
                break
            gpus = tuple(sorted(gpu for _, gpu in able[: kind.tp_degree]))
            for gpu in gpus:
                room[hole][gpu] -= kind.gpu_share_pct
            slots.append(Slot(kind, hole.node, gpus))
            wanted -= 1
    return wanted == 0


def _by_model(
    counts: Mapping[Parallelism, int],
    pools: Sequence[Pool],
    max_gpus: int | None,
    work: Work,
    known: Sequence[CellPacking],
) -> list[Slot]:
    """The packing on the fewest GPUs that the work allows, else the known one, else nothing."""
    from scepsy_hpc.planning.search import cp_sat

    packing = cp_sat.pack(counts, pools, max_gpus, work) or known
    return [Slot(kind, hole.node, gpus) for kind, hole, gpus in cp_sat.slots(packing)]


def _assign(options: Sequence[Option], slots: Sequence[Slot]) -> tuple[Instance, ...]:
    """Give each LLM slots of its kind, each time on the node where it has the fewest."""
    by_kind: dict[Parallelism, dict[str, list[Slot]]] = defaultdict(lambda: defaultdict(list))
    for slot in _gpus_apart(slots):
        by_kind[slot.kind][slot.node].append(slot)
    instances: list[Instance] = []
    for option in sorted(options, key=lambda o: -o.num_replicas):
        taken = _spread(by_kind[option.kind], option.num_replicas)
        instances += [
            Instance(
                id=f"{option.llm}-{number}",
                llm=option.llm,
                node=slot.node,
                gpus=slot.gpus,
                gpu_share_pct=option.gpu_share_pct,
            )
            for number, slot in enumerate(taken)
        ]
    order = {option.llm: i for i, option in enumerate(options)}
    return tuple(sorted(instances, key=lambda i: order[i.llm]))


def _gpus_apart(slots: Iterable[Slot]) -> list[Slot]:
    """Reorder so that neighbours in the list share no GPU where possible."""
    seen: Counter[tuple[Parallelism, str, tuple[int, ...]]] = Counter()
    keyed: list[tuple[int, int, Slot]] = []
    for slot in slots:
        key = (slot.kind, slot.node, slot.gpus)
        keyed.append((seen[key], len(keyed), slot))
        seen[key] += 1
    return [slot for _, _, slot in sorted(keyed, key=lambda item: item[:2])]


def _spread(by_node: dict[str, list[Slot]], wanted: int) -> list[Slot]:
    taken: list[Slot] = []
    while len(taken) < wanted:
        nodes = sorted((n for n in by_node if by_node[n]), key=lambda n: -len(by_node[n]))
        for node in nodes[: wanted - len(taken)]:
            taken.append(by_node[node].pop(0))
    return taken
