"""Published sizes of a few models: what their weights and KV cache take.

From the model cards and ``config.json`` files on the models' Hugging Face pages (parameters,
layers, KV heads, head size, vocabulary x hidden size of embedding and head) and, for gpt-oss,
the size of its checkpoint in arXiv 2508.10925. A model that is not here has unknown sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Architecture:
    """Published counts; ``embedding_params`` stay in 16 bits when the rest is quantised."""

    params: float
    embedding_params: float
    num_layers: int
    num_kv_heads: int
    head_size: int

    def weights_gib(self, weight_bytes: float) -> float:
        """GiB of weights at this many bytes each, embeddings at two."""
        linear = self.params - self.embedding_params
        return round((linear * weight_bytes + self.embedding_params * 2.0) / GIB, 2)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values over all layers and GPUs, 16 bits each."""
        return 2.0 * self.num_layers * self.num_kv_heads * self.head_size * 2.0


_QWEN3_32B = Architecture(32.76e9, 2 * 151936 * 5120, 64, 8, 128)
_LLAMA31_8B = Architecture(8.03e9, 2 * 128256 * 4096, 32, 8, 128)
_LLAMA31_70B = Architecture(70.55e9, 2 * 128256 * 8192, 80, 8, 128)

ARCHITECTURES: dict[str, Architecture] = {
    "Qwen/Qwen3-0.6B": Architecture(0.596e9, 151936 * 1024, 28, 8, 128),
    "Qwen/Qwen3-1.7B": Architecture(1.72e9, 151936 * 2048, 28, 8, 128),
    "Qwen/Qwen3-8B": Architecture(8.19e9, 2 * 151936 * 4096, 36, 8, 128),
    "Qwen/Qwen3-32B": _QWEN3_32B,
    "meta-llama/Meta-Llama-3.1-8B": _LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
    "meta-llama/Meta-Llama-3.1-70B": _LLAMA31_70B,
    "meta-llama/Llama-3.1-70B": _LLAMA31_70B,
}

# Unknown precision counts as 16 bits: the larger of the sizes it can have.
WEIGHT_BYTES = {"bf16": 2.0, "fp16": 2.0, "unknown": 2.0, "fp8": 1.0}

CHECKPOINT_GIB = {("openai/gpt-oss-120b", "fp4"): 60.8}


def published_weights_gib(model: str, precision: str) -> float | None:
    """GiB of weights, or None where it is not published here."""
    if (model, precision) in CHECKPOINT_GIB:
        return CHECKPOINT_GIB[model, precision]
    if model not in ARCHITECTURES or precision not in WEIGHT_BYTES:
        return None
    return ARCHITECTURES[model].weights_gib(WEIGHT_BYTES[precision])


def published_kv_bytes_per_token(model: str) -> float | None:
    """Bytes of KV cache per token at 16 bits, or None where it is not published here."""
    return ARCHITECTURES[model].kv_bytes_per_token if model in ARCHITECTURES else None
