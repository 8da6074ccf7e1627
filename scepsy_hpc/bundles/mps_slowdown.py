"""How much slower an engine runs on a share of a GPU's SMs, where nobody has measured it.

Measured by others on an A100-80GB under MPS (Llama-7B and 13B, TP 1, batch 4 to 64); the table
holds the middle of each range, relative to the whole GPU. What rests on it is *derived*.
"""

from __future__ import annotations

from itertools import pairwise

# share of SMs in percent: (prefill slow-down, decode slow-down)
MEASURED_SLOWDOWN: dict[float, tuple[float, float]] = {
    30.0: (2.6, 1.475),
    40.0: (2.15, 1.275),
    50.0: (1.7, 1.15),
    60.0: (1.45, 1.09),
    80.0: (1.15, 1.055),
    100.0: (1.0, 1.0),
}


def slowdown(gpu_share_pct: float) -> tuple[float, float]:
    """Factors (prefill, decode) by which time grows at this share; 1 at 100.

    Linear between the measured shares. Below the smallest one both grow as 1 / share, which
    assumes that no part of the work is free of the SM limit there. Raises ValueError outside
    (0, 100].
    """
    if not 0 < gpu_share_pct <= 100:
        raise ValueError(f"gpu_share_pct ({gpu_share_pct}) must be in (0, 100]")
    shares = sorted(MEASURED_SLOWDOWN)
    if gpu_share_pct <= shares[0]:
        prefill, decode = MEASURED_SLOWDOWN[shares[0]]
        return prefill * shares[0] / gpu_share_pct, decode * shares[0] / gpu_share_pct
    for low, high in pairwise(shares):
        if gpu_share_pct <= high:
            part = (gpu_share_pct - low) / (high - low)
            (p0, d0), (p1, d1) = MEASURED_SLOWDOWN[low], MEASURED_SLOWDOWN[high]
            return p0 + part * (p1 - p0), d0 + part * (d1 - d0)
    raise AssertionError("the table ends at 100")
