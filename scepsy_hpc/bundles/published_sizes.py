"""Published sizes of a few models: what their weights and KV cache take.

Every figure comes from the ``config.json`` of the model's repository on Hugging Face, named in
``ARCHITECTURES`` and looked up on 2026-11-22 in the copies that NVIDIA's aiconfigurator ships
(``aic-core/src/aiconfigurator_core/model_configs``). Parameters are counted from those configs;
the count equals what others report of the checkpoints (Qwen3: KerasHub's presets; Llama-3.1:
their safetensors; MiniMax-M2.5: "229B params"). A model that is not here has unknown sizes.

Not verified, and so assumed: which checkpoint the measured fp8 points ran, and in how many bits
the engines kept their KV cache. Embeddings, output head and MoE gates are taken to stay in 16
bits, as the configs of MiniMax-M2.5, Qwen3-32B-FP8-Static-PerTensor and NVIDIA's
Llama-3.1-70B-Instruct-FP8 have it for head and gates; block scales (0.02%) are left out. The KV
cache is taken to be 16 bits wide, though the last two configs allow 8.
"""

from __future__ import annotations

from dataclasses import dataclass

from scepsy_hpc.bundles.step_time import Experts
from scepsy_hpc.formats.parallelism import GIB


@dataclass(frozen=True, slots=True)
class Architecture:
    """Counts of one config; ``params_16bit`` of ``params`` stay in 16 bits when quantised.

    ``experts``: ``num_experts_per_tok`` of ``num_local_experts``; None for a dense model.

    ``params`` None: a mixed checkpoint, whose size stands in ``CHECKPOINT_GIB`` instead.
    """

    source: str
    params: int | None
    params_16bit: int
    num_layers: int
    num_kv_heads: int
    head_size: int
    experts: Experts | None = None

    def weights_gib(self, weight_bytes: float) -> float | None:
        """GiB of weights at this many bytes each, those kept in 16 bits at two."""
        if self.params is None:
            return None
        quantised = self.params - self.params_16bit
        return round((quantised * weight_bytes + self.params_16bit * 2.0) / GIB, 2)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values over all layers and GPUs, 16 bits each."""
        return 2.0 * self.num_layers * self.num_kv_heads * self.head_size * 2.0


# Parameters kept in 16 bits: vocabulary x hidden size, twice where embedding and head are not
# tied (of the Qwen3 here only 0.6B and 1.7B tie them).
_ARCHITECTURES = (
    Architecture("Qwen/Qwen3-0.6B", 596_049_920, 151_936 * 1024, 28, 8, 128),
    Architecture("Qwen/Qwen3-1.7B", 1_720_574_976, 151_936 * 2048, 28, 8, 128),
    Architecture("Qwen/Qwen3-8B", 8_190_735_360, 2 * 151_936 * 4096, 36, 8, 128),
    Architecture("Qwen/Qwen3-32B", 32_762_123_264, 2 * 151_936 * 5120, 64, 8, 128),
    Architecture("meta-llama/Meta-Llama-3.1-8B", 8_030_261_248, 2 * 128_256 * 4096, 32, 8, 128),
    Architecture("meta-llama/Meta-Llama-3.1-70B", 70_553_706_496, 2 * 128_256 * 8192, 80, 8, 128),
    # Without the three multi-token-prediction modules, which its checkpoint leaves out too; the
    # gates of 62 layers of 256 experts stay in 16 bits.
    Architecture(
        "MiniMaxAI/MiniMax-M2.5",
        228_689_764_864,
        2 * 200_064 * 3072 + 62 * 256 * 3072,
        62,
        8,
        128,
        Experts(8, 256),
    ),
    # Every second layer attends to a window of 128 tokens. All 36 are counted in full, as vLLM
    # does in its log (5.38 GiB for 78,384 tokens, alvarobartt/hf-mem issue 60): an upper bound,
    # since engines may drop what has left the window.
    Architecture("openai/gpt-oss-120b", None, 2 * 201_088 * 2880, 36, 8, 64, Experts(4, 128)),
)

ARCHITECTURES: dict[str, Architecture] = {a.source: a for a in _ARCHITECTURES}

# Same architecture under another name (the second is also fine-tuned).
_SAME_AS = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
}
ARCHITECTURES |= {name: ARCHITECTURES[source] for name, source in _SAME_AS.items()}

# Unknown precision counts as 16 bits: the larger of the sizes it can have.
WEIGHT_BYTES = {"bf16": 2.0, "fp16": 2.0, "unknown": 2.0, "fp8": 1.0}

# MXFP4 experts and the rest in 16 bits: the model card, arXiv 2508.10925 (its files on Hugging
# Face hold 65,248,815,744 bytes). What an engine's "fp8" makes of it is not published.
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
