"""Where a curve comes from: its points, the fit to their configuration, and what bounds it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scepsy_hpc.bundles.batch_limits import batch_limit
from scepsy_hpc.bundles.engine_model import (
    MIN_POINTS,
    BadFitError,
    Configuration,
    configuration_of,
    kv_tokens_at,
)
from scepsy_hpc.bundles.model_sizes import architecture_of
from scepsy_hpc.bundles.shapes import SAME_SHAPE, Shape
from scepsy_hpc.bundles.step_time import EngineModel, HalfWidths
from scepsy_hpc.formats.bundle import Bundle, BundleHeader
from scepsy_hpc.formats.parallelism import Link, Parallelism, can_be_shared, usable_memory_gib
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.curves.evidence import Evidence

_LINES = HalfWidths(0.3, 0.5, 0.7, math.inf, math.inf)
"""Half-widths where straight lines are all there is."""


class NoCurveError(Exception):
    """This kind cannot host the model, or nothing is known about it; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a curve comes from: the points of the nearest shape, and what must be made of them.

    ``kind`` is where they were measured: at another share it is derived, at another TP degree
    transferred.
    """

    kind: Parallelism
    shape: Shape

    @property
    def tokens(self) -> TokenLengths:
        return TokenLengths(*self.shape.lengths)


@dataclass(frozen=True, slots=True)
class Making:
    """A curve in the making: what is asked for, and what it is made of.

    ``fit`` None: there is none; ``passed``: its hold-out. ``end``: calls in flight up to which
    batch and KV cache go, ``room`` those that the cache holds; None is unknown. ``flags`` grow.
    """

    evidence: Evidence
    kind: Parallelism
    tokens: TokenLengths
    source: Source
    fit: Configuration | None
    passed: bool
    room: float | None
    batch: int | None
    flags: list[str]

    @property
    def moved(self) -> bool:
        """Whether no point is of this TP degree and share."""
        return self.source.kind != self.kind

    @property
    def own(self) -> bool:
        """Whether the points are of this very kind and shape."""
        return not self.moved and self.tokens.miss(self.source.shape.lengths) <= SAME_SHAPE

    @property
    def model(self) -> EngineModel:
        """The fitted model where the points are."""
        assert self.fit is not None
        return self.fit.model(self.source.kind.tp_degree)

    @property
    def half_widths(self) -> HalfWidths:
        found = self.fit.quality(self.source.kind.tp_degree).half_widths if self.fit else None
        return found if found is not None and self.passed else _widened(found)

    def end(self, last: float) -> float:
        """Calls in flight up to which the curve goes; the last point's where nothing says."""
        if self.batch is None:
            return last
        return min(float(self.batch), self.room or math.inf)


def _widened(found: HalfWidths | None) -> HalfWidths:
    if found is None:
        return _LINES
    return HalfWidths(
        max(found.between, _LINES.between),
        max(found.below, _LINES.below),
        max(found.beyond, _LINES.beyond),
        found.shape,
        found.tp_degree,
    )


def batch_of(
    header: BundleHeader, tp_degree: int, engine_args: EngineArgs, fit: Configuration | None
) -> tuple[int | None, float]:
    """Calls that the batch holds, and a bound that even measured points are cut at.

    Past the bound calls wait for a seat. The default of an unknown version is a guess, which
    measured points outweigh.
    """
    args = {**header.engine_args, **engine_args}
    batch = batch_limit(header, tp_degree, args)
    told = "max_num_seqs" in args or any(map(str.isdigit, header.engine_version))
    bound = float(batch) if batch is not None and told else math.inf
    if args.get("max_num_seqs") != header.engine_args.get("max_num_seqs"):
        return batch, bound
    seen = fit.limits_at(tp_degree).max_num_seqs if fit is not None else None
    known = [n for n in (batch, seen) if n is not None]
    return min(known, default=None), bound


@lru_cache(maxsize=256)
def _configuration(evidence: Evidence, gpu_share_pct: int, link: Link | None) -> Configuration:
    return configuration_of(evidence.merged, gpu_share_pct, link)


def fit_of(evidence: Evidence, at: Parallelism) -> tuple[Configuration | None, str]:
    """The fit to all points of that share and link, and why no curve may rest on it, if so."""
    # A single GPU has no link; it is fitted beside the groups that there are most points of.
    links = Counter(p.link for p in evidence.merged.points if p.tp_degree > 1)
    link = (
        at.link if at.link in links else max(links, key=lambda k: (links[k], k or ""), default=None)
    )
    try:
        fit = _configuration(evidence, at.gpu_share_pct, link)
    except BadFitError as error:
        return None, str(error)
    if len(fit.points) < MIN_POINTS:
        return fit, f"{len(fit.points)} points are too few for one"
    failing = fit.quality(at.tp_degree).failing
    if failing is None:
        return fit, ""
    what, miss, allowed = failing
    return fit, f"it misses {what} by {100 * miss:.0f}% (median), {100 * allowed:.0f}% is allowed"


def _over(link: Link | None) -> str:
    return f" over {link}" if link else ""


def points_of(bundle: Bundle, kind: Parallelism) -> tuple[Parallelism, list[Point]]:
    """Points of the kind, else of the nearest one it can be made from, and which that is.

    A share comes from the whole GPU, a TP degree from the nearest measured one at that share.
    """
    linked = [
        p
        for p in bundle.points
        if p.tp_degree == 1 or kind.link is None or p.link in (None, kind.link)
    ]
    degrees = {p.tp_degree for p in linked if kind.tp_degree > 1 or kind.link is None}
    if not degrees:
        raise NoCurveError(f"no points at TP {kind.tp_degree}" + _over(kind.link))
    if kind.tp_degree in degrees:
        mine = [p for p in linked if p.tp_degree == kind.tp_degree]
        own = [p for p in mine if p.gpu_share_pct == kind.gpu_share_pct]
        if own:
            return kind, own
        whole = [p for p in mine if p.gpu_share_pct == 100]
        _check_derivable(kind, whole)
        return kind._replace(gpu_share_pct=100), whole
    if kind.link not in (None, "nvlink") and degrees == {1}:
        # What groups lose to communication over a slow link nobody has measured here.
        raise NoCurveError(f"no points of any group{_over(kind.link)}")
    if kind.gpu_share_pct != 100:
        raise NoCurveError(f"no points at TP {kind.tp_degree}, of which a share could be derived")
    whole = [p for p in linked if p.gpu_share_pct == 100]
    if not whole:
        raise NoCurveError(f"no points of whole GPUs to transfer to TP {kind.tp_degree}")
    heads = architecture_of(bundle.header.model).num_kv_heads
    if heads is not None and not divides_heads(kind.tp_degree, heads):
        raise NoCurveError(
            f"no points at TP {kind.tp_degree}, and engines refuse it: the model's {heads} KV "
            f"heads do not divide by it; measured are TP {', '.join(map(str, sorted(degrees)))}"
        )
    nearest = min(
        {p.tp_degree for p in whole}, key=lambda t: (abs(math.log(t / kind.tp_degree)), t)
    )
    at = kind._replace(tp_degree=nearest)
    return at, [p for p in whole if p.tp_degree == nearest]


def divides_heads(tp_degree: int, num_kv_heads: int) -> bool:
    """Whether KV heads spread evenly over a group, each on one GPU or a copy on several."""
    return num_kv_heads % tp_degree == 0 or tp_degree % num_kv_heads == 0


def _check_derivable(kind: Parallelism, whole: Sequence[Point]) -> None:
    """A share without points is derived only where the slow-down table can speak for it."""
    what = f"share {kind.gpu_share_pct}% has no points"
    if not whole:
        raise NoCurveError(f"{what}, and there is no whole-GPU curve to derive it from")
    if kind.tp_degree > 1:
        raise NoCurveError(f"{what} at TP {kind.tp_degree}: groups share GPUs only where measured")
    if not can_be_shared(kind.gpu_type):
        raise NoCurveError(f"{what}, and {kind.gpu_type} is not shared by MPS")


def calls_that_fit(
    evidence: Evidence, kind: Parallelism, tokens: TokenLengths, min_memory_gib: float | None
) -> float | None:
    """Calls whose KV cache fits beside the weights; None where the sizes are unknown."""
    memory_gib = evidence.merged.header.gpu_memory_gib
    total_gib = usable_memory_gib(memory_gib, kind.gpu_share_pct, kind.tp_degree)
    if min_memory_gib is not None and total_gib < min_memory_gib:
        raise NoCurveError(f"{total_gib:.1f} GiB is below min_memory_gib {min_memory_gib:g}")
    sizes = evidence.sizes
    if sizes is None:
        return None
    cache_tokens = kv_tokens_at(evidence.merged, kind.tp_degree, kind.gpu_share_pct) or 0.0
    calls = cache_tokens / sizes.cached_tokens(max(tokens.inputs + tokens.outputs, 1.0))
    if calls < 1.0:
        needs = "weights" if cache_tokens <= 0 else "weights and the KV cache of one call"
        raise NoCurveError(f"{needs} do not fit {total_gib:.1f} GiB ({sizes.weights_gib:g} GiB)")
    return calls


def source_flags(bundle: Bundle, kind: Parallelism, points: Sequence[Point]) -> list[str]:
    header = bundle.header
    flags = []
    if header.engine == "simulated":
        flags.append("simulated: no engine was measured")
    elif header.how != "measured":
        flags.append(f"{header.how}: {header.source}")
    if kind.link not in (None, "nvlink") and all(p.link is None for p in points):
        flags.append(f"transferred: the profile does not say its link; taken for {kind.link}")
    return flags
