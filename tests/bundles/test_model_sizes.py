"""KV cache and inner shape from configs: plain, latent, linear and windowed attention, experts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning_cases import HEADER

from scepsy_hpc.bundles.model_sizes import ModelSizes, architecture_of, sizes_of
from scepsy_hpc.bundles.step_time import kv_tokens_that_fit

PLAIN: dict[str, Any] = {
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_size": 2048,
    "torch_dtype": "bfloat16",
}


def _sizes(folder: Path, **config: Any) -> ModelSizes:
    (folder / "config.json").write_text(json.dumps({**PLAIN, **config}))
    (folder / "model.safetensors").write_bytes(b"0" * 1024)
    header = replace(HEADER, model=str(folder), weights_gib=None, kv_bytes_per_token=None)
    found = sizes_of(header, "test")
    assert found is not None
    return found


def test_plain_attention(tmp_path: Path) -> None:
    """Two vectors a layer and KV head, two bytes a number."""
    found = _sizes(tmp_path)
    assert found.kv_bytes_per_token == 2 * 48 * 2 * 256 * 2
    assert found.inner.num_kv_heads == 2
    assert found.inner.experts is None
    assert found.cached_tokens(5000.0) == 5000.0


def test_latent_attention_keeps_one_vector_on_each_gpu(tmp_path: Path) -> None:
    """DeepSeek-V3: 512 + 64 numbers a layer, 61 layers, and a copy on every GPU of a group."""
    found = _sizes(
        tmp_path,
        num_hidden_layers=61,
        num_key_value_heads=128,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        n_routed_experts=256,
        num_experts_per_tok=8,
    )
    assert found.kv_bytes_per_token == 61 * 576 * 2
    assert found.inner.num_kv_heads == 1
    assert found.inner.experts is not None
    assert (found.inner.experts.per_token, found.inner.experts.total) == (8, 256)


def test_linear_attention_keeps_no_token(tmp_path: Path) -> None:
    """Qwen3-Next: of 48 layers every fourth keeps keys and values."""
    by_interval = _sizes(tmp_path, full_attention_interval=4)
    assert by_interval.kv_bytes_per_token == 2 * 12 * 2 * 256 * 2
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    assert _sizes(tmp_path, layer_types=kinds * 12) == by_interval


def test_windows_count_for_the_calls_that_fit(tmp_path: Path) -> None:
    """Half of the layers keep 128 tokens: a call of 1,000 takes 500 + 64 tokens' room."""
    kinds = ["sliding_attention", "full_attention"]
    found = _sizes(tmp_path, layer_types=kinds * 24, sliding_window=128)
    assert found.kv_bytes_per_token == 2 * 48 * 2 * 256 * 2
    assert found.cached_tokens(1000.0) == pytest.approx(564.0)
    assert found.cached_tokens(100.0) == pytest.approx(100.0)


def test_kv_heads_are_copied_where_gpus_outnumber_them() -> None:
    """Eight GPUs and two KV heads: each head is held four times, so a quarter of the tokens fit."""
    alone = kv_tokens_that_fit(82, 8, 100, 40, 2**20)
    assert kv_tokens_that_fit(82, 8, 100, 40, 2**20, num_kv_heads=8) == alone
    assert kv_tokens_that_fit(82, 8, 100, 40, 2**20, num_kv_heads=2) == pytest.approx(alone / 4)


def test_published_mixtures_have_their_experts() -> None:
    """The two mixtures that profiles are shipped of, as their configs have them."""
    oss, minimax = (
        architecture_of(name).experts for name in ("openai/gpt-oss-120b", "MiniMaxAI/MiniMax-M2.5")
    )
    assert oss is not None
    assert minimax is not None
    assert (oss.per_token, oss.total) == (4, 128)
    assert (minimax.per_token, minimax.total) == (8, 256)
    assert architecture_of("Qwen/Qwen3-8B").experts is None
