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


def relative_gap(value: float, bound: float) -> float:
    """|value - bound| / |bound|, zero within rounding; infinite without a bound."""
    if math.isclose(value, bound, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return 0.0
    if not math.isfinite(bound) or bound == 0:
        return math.inf
    return abs(value - bound) / abs(bound)


def certify(metric: str, value: float, bound: float, constant: float = 0.0) -> Certificate:
    """The certificate of the plan that is emitted, also after re-ranking.

    ``value`` is recomputed for that plan and ``bound`` is ``Solution.bound``, both without what is
    equal for all plans (tool time), which ``constant`` adds to both. Raises ValueError when there
    is no finite bound: such a plan has no certificate.
    """
    value, bound = value + constant, bound + constant
    gap = relative_gap(value, bound)
    if not math.isfinite(gap):
        raise ValueError(f"value {value} has no finite bound ({bound}): nothing to certify")
    return Certificate(metric=metric, value=value, bound=bound, gap=gap)
