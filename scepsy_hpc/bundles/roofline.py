"""What a GPU's memory and cores allow: the scale of an engine's step before anybody measured it.

A decode step reads every weight once, and the keys and values of its context; a prefill token
costs two operations a weight. What is fitted to measurements lies close to that (a step over what
the memory allows: 0.9 to 1.1; the part that tensor parallelism does not divide: 0.25 to 0.45 of
it). Where points cannot tell the terms apart, the fit leans towards these proportions, and only
proportions: their common scale comes from the points.
"""

from __future__ import annotations

from dataclasses import dataclass

from scepsy_hpc.formats.parallelism import GIB

MEMORY_TB_PER_S: dict[str, float] = {
    "b200_sxm": 8.0,
    "gh200": 4.0,
    "h200_sxm": 4.8,
    "h200_nvl": 4.8,
    "h100_sxm": 3.35,
    "h100_pcie": 2.0,
    "h100_nvl": 3.9,
    "a100_sxm": 2.039,
    "a100_sxm_40gb": 1.555,
    "a100_pcie": 1.935,
    "a100_pcie_40gb": 1.555,
    "l40s": 0.864,
    "l40": 0.864,
    "l4": 0.3,
    "a40": 0.696,
    "a30": 0.933,
    "rtx_6000_ada": 0.96,
    "rtx_a6000": 0.768,
    "rtx_4090": 1.008,
    "rtx_3090": 0.936,
    "v100_sxm_32gb": 0.9,
    "v100_sxm_16gb": 0.9,
}
"""Memory bandwidth of GPU types, from the vendor's data sheets."""

FLOPS_PER_BYTE = 190.0
"""Operations that prefill reaches while memory reads a byte (fits on H100: 0.65 of its peak)."""

SERIAL_STEP, SERIAL_PREFILL, SEQUENCE = 0.3, 0.1, 0.003
"""Parts of a step's reading and of a token's prefill that TP does not divide, and a sequence's
part of a step's reading: medians over the measured H100 bundles shipped here."""

EXPERT_PART = 0.9
"""Part of a mixture's weights that are experts, about (gpt-oss-120b 0.95, MiniMax-M2.5 0.97)."""

_TYPICAL_GIB, _TYPICAL_KV_BYTES, _TYPICAL_TB_PER_S = 16.0, 131_072.0, 3.35


@dataclass(frozen=True, slots=True)
class Proportions:
    """Seconds of each term of a step on one GPU: what TP divides, and what it does not."""

    divided: tuple[float, ...]
    serial: tuple[float, ...]


def proportions(
    gpu_type: str,
    weights_gib: float | None,
    kv_bytes_per_token: float | None,
    bytes_per_weight: float,
    active_part: float | None,
) -> Proportions:
    """What physics says of the terms (step, prefill, sequence, context, experts).

    ``active_part`` of a mixture's experts see a token; None for a dense model, which has no fifth
    term. What is unknown is that of an 8B model on an H100.
    """
    bytes_per_s = 1e12 * MEMORY_TB_PER_S.get(gpu_type, _TYPICAL_TB_PER_S)
    weights = (weights_gib or _TYPICAL_GIB) * GIB
    read_s = weights / bytes_per_s
    context_s = (kv_bytes_per_token or _TYPICAL_KV_BYTES) / bytes_per_s
    experts = 0.0 if active_part is None else EXPERT_PART
    active = 1.0 - experts + experts * (active_part or 0.0)
    prefill_s = 2.0 * active * weights / bytes_per_weight / (FLOPS_PER_BYTE * bytes_per_s)
    divided = (read_s * (1.0 - experts), prefill_s, 0.0, context_s, read_s * experts)
    serial = (SERIAL_STEP * read_s, SERIAL_PREFILL * prefill_s, SEQUENCE * read_s, 0.0, 0.0)
    terms = 4 if active_part is None else 5
    return Proportions(divided[:terms], serial[:terms])


def read_times_s(
    gpu_type: str, tp_degree: int, weights_gib: float | None, kv_bytes_per_token: float | None
) -> tuple[float, float] | None:
    """Least time in which a GPU of the group reads its weights, and one token of context.

    None where sizes or bandwidth are unknown.
    """
    if gpu_type not in MEMORY_TB_PER_S or weights_gib is None or kv_bytes_per_token is None:
        return None
    bytes_per_s = 1e12 * MEMORY_TB_PER_S[gpu_type] * tp_degree
    return weights_gib * GIB / bytes_per_s, kv_bytes_per_token / bytes_per_s
