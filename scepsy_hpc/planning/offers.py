"""What each LLM could run on: kinds the free GPUs offer, with their curves, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.parallelism import Parallelism, can_be_shared
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence, Shelf, no_evidence
from scepsy_hpc.planning.curves.making import NoCurveError, make_curve, with_engine_args
from scepsy_hpc.planning.search.pools import Hole, holes_of, pools_of

DEFAULT_SHARES_PCT = (25, 50, 100)


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
    name: str, spec: Llm, tokens: TokenLengths, shelf: Shelf, topology: Topology
) -> Offers:
    """Every kind of free GPUs that can host the LLM.

    Raises InputError when no profile speaks for the model, InfeasibleError when none of its
    kinds can host it here.
    """
    holes = holes_of(topology)
    gpu_types = tuple(dict.fromkeys(hole.gpu_type for hole in holes))
    found: list[Offer] = []
    refused: list[str] = []
    anything = False
    for gpu_type in gpu_types:
        here = [hole for hole in holes if hole.gpu_type == gpu_type]
        for evidence in shelf.evidence(spec.model, gpu_type):
            anything = True
            offers, reasons = _offers(spec, tokens, evidence, gpu_type, here, topology)
            refused += [f"{name}: {evidence.label}, {reason}" for reason in reasons]
            if offers:
                found += offers
                break
    if not anything:
        raise no_evidence(spec.model, gpu_types, shelf.bundles, shelf.engine)
    if not found:
        raise InfeasibleError(f"{name}: no GPU here can host {spec.model}: " + "; ".join(refused))
    return Offers(tuple(found), tuple(refused))


def _offers(
    spec: Llm,
    tokens: TokenLengths,
    evidence: Evidence,
    gpu_type: str,
    holes: Sequence[Hole],
    topology: Topology,
) -> tuple[list[Offer], list[str]]:
    found, refused = [], []
    for kind in _kinds(spec, evidence, gpu_type, holes):
        try:
            made = make_curve(evidence, kind, tokens, spec.min_memory_gib)
            curve = with_engine_args(made, evidence, spec.engine_args)
        except NoCurveError as error:
            refused.append(f"TP {kind.tp_degree} at {kind.gpu_share_pct}%: {error}")
            continue
        most = sum(pool.most_replicas(kind) for pool in pools_of(topology, (kind,)))
        if most:
            found.append(Offer(curve, evidence, most))
    return found, refused


def _kinds(
    spec: Llm, evidence: Evidence, gpu_type: str, holes: Sequence[Hole]
) -> list[Parallelism]:
    """(link, TP, share) to try: what is declared, else what the profile has and {25, 50, 100}."""
    points = evidence.merged.points
    degrees = spec.tp_degrees or sorted({p.tp_degree for p in points})
    measured = {p.gpu_share_pct for p in points}
    shares = spec.gpu_shares_pct or sorted(measured | set(DEFAULT_SHARES_PCT))
    if spec.gpu_shares_pct is None and not can_be_shared(gpu_type):
        shares = sorted(measured)
    owned = {(p.tp_degree, p.gpu_share_pct) for p in points}
    found = []
    for degree in degrees:
        links = [None] if degree == 1 else sorted({h.link for h in holes if len(h.gpus) >= degree})
        # Undeclared shares of a group are not refused but left out: only measured ones count.
        fitting = [s for s in shares if spec.gpu_shares_pct or degree == 1 or (degree, s) in owned]
        found += [Parallelism(gpu_type, link, degree, share) for link in links for share in fitting]
    return found
