"""The published sizes follow from the models' configs, and the shipped bundles carry them."""

from __future__ import annotations

import pytest

from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.bundles.published_sizes import (
    ARCHITECTURES,
    published_kv_bytes_per_token,
    published_weights_gib,
)
from scepsy_hpc.files import shipped_path

# From each config.json: hidden size, attention heads, feed-forward size, vocabulary size, whether
# embedding and head are tied, and parameters of the norms on queries and keys of a layer.
DENSE = {
    "Qwen/Qwen3-0.6B": (1024, 16, 3072, 151936, True, 2 * 128),
    "Qwen/Qwen3-1.7B": (2048, 16, 6144, 151936, True, 2 * 128),
    "Qwen/Qwen3-8B": (4096, 32, 12288, 151936, False, 2 * 128),
    "Qwen/Qwen3-32B": (5120, 64, 25600, 151936, False, 2 * 128),
    "meta-llama/Meta-Llama-3.1-8B": (4096, 32, 14336, 128256, False, 0),
    "meta-llama/Meta-Llama-3.1-70B": (8192, 64, 28672, 128256, False, 0),
}


@pytest.mark.parametrize("model", DENSE)
def test_parameters_follow_from_the_config(model: str) -> None:
    """The count of a dense model is that of its layers, norms, embedding and head, added up."""
    hidden, heads, feed_forward, vocabulary, tied, qk_norms = DENSE[model]
    known = ARCHITECTURES[model]
    queries, keys = heads * known.head_size, known.num_kv_heads * known.head_size
    attention = 2 * hidden * queries + 2 * hidden * keys + qk_norms
    layer = attention + 3 * hidden * feed_forward + 2 * hidden
    ends = vocabulary * hidden * (1 if tied else 2)
    assert known.params_16bit == ends
    assert known.params == known.num_layers * layer + hidden + ends


def test_parameters_of_a_mixture_of_experts() -> None:
    """MiniMax-M2.5: 62 layers of 256 experts with gates and biases, norms over all heads."""
    hidden, queries, keys, known = 3072, 48 * 128, 8 * 128, ARCHITECTURES["MiniMaxAI/MiniMax-M2.5"]
    attention = 2 * hidden * queries + 2 * hidden * keys + queries + keys
    experts = 256 * (3 * hidden * 1536 + hidden + 1)
    assert known.params == 62 * (attention + experts + 2 * hidden) + hidden + 2 * 200064 * hidden
    assert published_weights_gib("MiniMaxAI/MiniMax-M2.5", "fp8") == pytest.approx(214.17)


def test_what_is_not_published_stays_unknown() -> None:
    """gpt-oss has a size as the MXFP4 checkpoint it is and none in another precision."""
    assert published_weights_gib("openai/gpt-oss-120b", "fp4") == 60.8
    assert published_weights_gib("openai/gpt-oss-120b", "fp8") is None
    assert published_weights_gib("openai/gpt-oss-120b", "bf16") is None
    assert published_kv_bytes_per_token("openai/gpt-oss-120b") == 36 * 2 * 8 * 64 * 2


def test_shipped_bundles_carry_these_sizes() -> None:
    """No shipped bundle.yaml has fallen behind the table."""
    for bundle in find_bundles(shipped_path("profiles")):
        header = bundle.header
        weights_gib = published_weights_gib(header.model, header.precision)
        kv_bytes = published_kv_bytes_per_token(header.model)
        assert (header.weights_gib, header.kv_bytes_per_token) == (weights_gib, kv_bytes)
