"""The certificate of a plan: its value, a bound that no plan of its form beats, and the gap.

The form is one (GPU type, link, TP degree, share) per LLM with any number of replicas. The bound
comes from the search: the knapsack over GPU units, which ignores the shapes of the free GPUs, or
the constraint model's, whichever is tighter. It holds under the pipeline's mean (or throughput);
percentiles are not certified.
"""

from __future__ import annotations

import math

from scepsy_hpc.formats.plan import Certificate

ROUNDING = 1e-12  # relative; sums of the same numbers in another order differ by less
PROVED_GAP = 1e-6


def relative_gap(value: float, bound: float) -> float:
    """|value - bound| / |bound|, zero within rounding; infinite without a bound."""
    if math.isclose(value, bound, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return 0.0
    if not math.isfinite(bound) or bound == 0:
        return math.inf
    return abs(value - bound) / abs(bound)


def is_proved(gap: float) -> bool:
    """Whether a gap is rounding: the constraint model counts costs in whole steps."""
    return gap <= PROVED_GAP


def given_up_pct(value: float, best_value: float) -> float:
    """How much worse than the best, in percent of it; zero within rounding."""
    return 100.0 * relative_gap(value, best_value)


def certify(
    metric: str, value: float, bound: float, constant: float = 0.0, best: float | None = None
) -> Certificate:
    """The certificate of the plan that is emitted, also after re-ranking.

    ``value`` is recomputed for that plan, ``best`` is ``Solution.best_value`` where the plan was
    taken for its few GPUs (None: the plan is the best), and ``bound`` is ``Solution.bound``; all
    without what is equal for all plans (tool time), which ``constant`` adds to them. Raises
    ValueError when there is no finite bound: such a plan has no certificate.
    """
    best = value if best is None else best
    value, bound, best = value + constant, bound + constant, best + constant
    gap = relative_gap(best, bound)
    if not math.isfinite(gap):
        raise ValueError(f"value {best} has no finite bound ({bound}): nothing to certify")
    return Certificate(
        metric=metric,
        value=value,
        bound=bound,
        gap=gap,
        given_up_pct=given_up_pct(value, best),
        proved=is_proved(gap),
    )


_FORM = "gives each LLM one GPU type, link, TP degree and share, with any number of replicas"
_WHAT = {
    "latency_mean_s": ("mean latency", "s"),
    "throughput_rps": ("throughput", "runs/s"),
    "rate_rps": ("highest rate within the limits", "runs/s"),
    "gpu_hours": ("GPU-hours", "GPU-hours"),
}


def sentence(certificate: Certificate) -> str:
    """What a certificate says, for a user: relative to which plans and under which model."""
    c = certificate
    what, unit = _WHAT.get(c.metric, (c.metric, ""))
    bound = f"{c.bound:.4g} {unit}".strip()
    said = f"by the predicted {what}, no plan that {_FORM}, "
    if c.proved:
        said += f"is better than {bound}"
        said += ", which the best plan found reaches" if c.given_up_pct else ", which is this plan"
    else:
        said += f"can be better than {bound}; the best plan found is {c.gap:.2%} from that "
        said += "(not proved to be the best)"
    if c.given_up_pct:
        worse = "below" if c.metric.endswith("_rps") else "above"
        said += f"; this plan is {c.given_up_pct:.2g}% {worse} the best, for fewer GPUs"
    return said
