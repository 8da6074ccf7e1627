"""What each LLM could run on: kinds the free GPUs offer, with their curves, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Parallelism, can_be_shared
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence, Shelf, Wanted, no_evidence
from scepsy_hpc.planning.curves.making import make_curve, with_engine_args
from scepsy_hpc.planning.curves.sources import NoCurveError
from scepsy_hpc.planning.search.placement import place_kinds
from scepsy_hpc.planning.search.pools import Hole, holes_of, pools_of
from scepsy_hpc.planning.search.work import Work

DERIVED_SHARES_PCT = (25, 50)
"""Shares that nobody needs to have measured; considered only where nothing else holds all LLMs."""

WHY_DERIVED = (
    "derived_shares: considered because no plan on whole GPUs holds every LLM once; measure this "
    "share with `scepsy profile`"
)


@dataclass(frozen=True, slots=True)
class Offer:
    """One kind that can host an LLM: its curve, its evidence, and room for so many replicas."""

    curve: Curve
    evidence: Evidence
    most_replicas: int

    @property
    def bundle(self) -> Bundle:
        """The bundle whose points the curve is held to."""
        sha256 = self.curve.bundle_sha256
        return next(b for b in self.evidence.bundles if b.sha256 == sha256)


@dataclass(frozen=True, slots=True)
class Offers:
    """All kinds for one LLM, and one line for each that was refused or evidence passed over."""

    found: tuple[Offer, ...]
    refused: tuple[str, ...]

    def of(self, curve: Curve) -> Offer:
        """The one with this very curve."""
        return next(offer for offer in self.found if offer.curve is curve)


def shelf_for(bundles: Sequence[Bundle], topology: Topology, engine: str | None = None) -> Shelf:
    """The bundles, with no more memory than the GPUs of the topology have."""
    memory_gib: dict[str, float] = {}
    for node in topology.nodes:
        gpu_type = node.full_gpu_type
        memory_gib[gpu_type] = min(node.gpu_memory_gib, memory_gib.get(gpu_type, math.inf))
    return Shelf(bundles, engine, memory_gib)


def offers_for(
    name: str,
    spec: Llm,
    tokens: TokenLengths,
    shelf: Shelf,
    topology: Topology,
    derived: bool = False,
) -> Offers:
    """Every kind of free GPUs that can host the LLM.

    ``derived``: also shares that nobody measured or declared (``DERIVED_SHARES_PCT``).

    Raises InputError when no profile speaks for the model, InfeasibleError when none of its
    kinds can host it here.
    """
    holes = holes_of(topology)
    gpu_types = tuple(dict.fromkeys(hole.gpu_type for hole in holes))
    found: list[Offer] = []
    refused: list[str] = []
    anything, wanted = False, Wanted.of(spec)
    for gpu_type in gpu_types:
        here = [hole for hole in holes if hole.gpu_type == gpu_type]
        for evidence in shelf.evidence(spec.model, gpu_type, wanted):
            anything = True
            kinds = _kinds(spec, evidence, gpu_type, here, derived)
            offers, reasons = _offers(spec, tokens, evidence, kinds, topology)
            refused += [f"{name}: {evidence.label}, {reason}" for reason in reasons]
            if offers:
                found += offers
                break
    if not anything:
        raise no_evidence(spec.model, gpu_types, shelf.bundles, shelf.engine, wanted)
    if not found:
        raise InfeasibleError(f"{name}: no GPU here can host {spec.model}: " + "; ".join(refused))
    return Offers(tuple(found), tuple(refused))


def _offers(
    spec: Llm,
    tokens: TokenLengths,
    evidence: Evidence,
    kinds: Sequence[Parallelism],
    topology: Topology,
) -> tuple[list[Offer], list[str]]:
    found, refused = [], []
    for kind in kinds:
        try:
            made = make_curve(evidence, kind, tokens, spec.min_memory_gib, spec.engine_args)
            curve = with_engine_args(made, evidence, spec.engine_args)
        except NoCurveError as error:
            refused.append(f"TP {kind.tp_degree} at {kind.gpu_share_pct}%: {error}")
            continue
        most = sum(pool.most_replicas(kind) for pool in pools_of(topology, (kind,)))
        if most:
            found.append(Offer(curve, evidence, most))
    return found, refused


def _kinds(
    spec: Llm, evidence: Evidence, gpu_type: str, holes: Sequence[Hole], derived: bool
) -> list[Parallelism]:
    """(link, TP, share) to try: what is declared, else what the profile has."""
    points = evidence.merged.points
    degrees = spec.tp_degrees or sorted({p.tp_degree for p in points})
    considered = {p.gpu_share_pct for p in points} | {100}
    if derived and can_be_shared(gpu_type):
        considered |= set(DERIVED_SHARES_PCT)
    if not can_be_shared(gpu_type):
        considered = {p.gpu_share_pct for p in points}
    shares = spec.gpu_shares_pct or sorted(considered)
    owned = {(p.tp_degree, p.gpu_share_pct) for p in points}
    found = []
    for degree in degrees:
        links = [None] if degree == 1 else sorted({h.link for h in holes if len(h.gpus) >= degree})
        # Undeclared shares of a group are not refused but left out: only measured ones count. Nor
        # is a share of one TP degree that only another was measured at.
        fitting = [s for s in shares if spec.gpu_shares_pct or _fits(degree, s, owned, derived)]
        found += [Parallelism(gpu_type, link, degree, share) for link in links for share in fitting]
    return found


def _fits(degree: int, share: int, owned: Collection[tuple[int, int]], derived: bool) -> bool:
    """Whether a share that the workflow does not declare is considered at a TP degree."""
    if (degree, share) in owned:
        return True
    if share == 100:
        return degree == 1 or all(tp != degree for tp, _ in owned)
    return derived and degree == 1


def considered(
    offers_with: Callable[[bool], dict[str, Offers]], topology: Topology
) -> dict[str, Offers]:
    """The offers without derived shares, or with them where no whole GPUs hold every LLM once.

    ``offers_with(derived)`` makes them. Raises what that raises.
    """
    try:
        found = offers_with(False)
    except InfeasibleError:
        found = {}
    if found and _hold_every_llm(found, topology):
        return found
    return {name: _with_reason(offers) for name, offers in offers_with(True).items()}


def _hold_every_llm(found: Mapping[str, Offers], topology: Topology) -> bool:
    """Whether the free GPUs hold every LLM once, each on whole GPUs where it is offered any.

    Each LLM takes its smallest kind; where these do not fit together (groups, links, GPU types),
    those of one LLM after the other are tried instead.
    """
    kinds = {name: _whole_kinds(offers) for name, offers in found.items()}
    chosen = {name: mine[0] for name, mine in kinds.items()}
    if _fit_together(chosen.values(), topology):
        return True
    others = ({**chosen, name: kind} for name, mine in kinds.items() for kind in mine[1:])
    return any(_fit_together(one.values(), topology) for one in others)


def _whole_kinds(offers: Offers) -> list[Parallelism]:
    every = [offer.curve.kind for offer in offers.found]
    whole = [kind for kind in every if kind.gpu_share_pct == 100]
    return sorted(
        whole or every, key=lambda k: (k.tp_degree * k.gpu_share_pct, k.gpu_type, k.link or "")
    )


def _fit_together(kinds: Iterable[Parallelism], topology: Topology) -> bool:
    counts = Counter(kinds)
    pools = pools_of(topology, counts)
    if not all(pool.fits({k: counts[k] for k in pool.kinds}) for pool in pools):
        return False
    if all(pool.decides for pool in pools):
        return True
    return place_kinds(counts, topology, None, Work()) is not None


def _with_reason(offers: Offers) -> Offers:
    """The offers, with the reason why derived shares are among them on each that is derived."""
    made = [
        replace(o, curve=replace(o.curve, flags=(*o.curve.flags, WHY_DERIVED)))
        if o.curve.kind.gpu_share_pct in DERIVED_SHARES_PCT and o.curve.basis.kind == "derived"
        else o
        for o in offers.found
    ]
    return replace(offers, found=tuple(made))
