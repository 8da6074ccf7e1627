"""The only definitions of TTFT, TPOT, E2E latency and goodput in this package.

They agree with ``vllm bench serve``: TPOT leaves out the first token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ttft_s(sent_s: float, first_token_s: float) -> float:
    """Time to first token: from sending the request to the first token's arrival."""
    return first_token_s - sent_s


def tpot_s(e2e_latency_s: float, ttft_s: float, output_tokens: int) -> float | None:
    """Time per output token after the first; None for a call of one token, which has none."""
    if output_tokens < 2:
        return None
    return (e2e_latency_s - ttft_s) / (output_tokens - 1)


def e2e_s(ttft_s: float, tpot_s: float | None, output_tokens: float) -> float:
    """End-to-end latency from TTFT and TPOT: ``ttft + tpot * (output - 1)``."""
    return ttft_s + (tpot_s or 0.0) * max(output_tokens - 1.0, 0.0)


def goodput_rps(latencies_s: Sequence[float], slo_s: float, window_s: float) -> float:
    """Calls or runs per second that ended within the SLO."""
    if window_s <= 0:
        raise ValueError(f"window_s ({window_s}) must be greater than 0")
    return sum(latency <= slo_s for latency in latencies_s) / window_s


def percentile(values: Sequence[float], pct: float) -> float | None:
    """Linear-interpolated percentile; None where there are no values."""
    return float(np.percentile(np.asarray(values), pct)) if len(values) else None
