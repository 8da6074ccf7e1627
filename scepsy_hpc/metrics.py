"""The only definitions of TTFT and TPOT in this package, percentiles, and what arrays are called.

They agree with ``vllm bench serve``: TPOT leaves out the first token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ttft_s(sent_s: float, first_token_s: float) -> float:
    """Time to first token: from sending the request to the first token's arrival."""
    return first_token_s - sent_s


def tpot_s(e2e_latency_s: float, ttft_s: float, output_tokens: int) -> float | None:
    """Time per output token after the first; None for a call of one token, which has none."""
    if output_tokens < 2:
        return None
    return (e2e_latency_s - ttft_s) / (output_tokens - 1)


def percentile(values: Sequence[float], pct: float) -> float | None:
    """Linear-interpolated percentile; None where there are no values."""
    return float(np.percentile(np.asarray(values), pct)) if len(values) else None
