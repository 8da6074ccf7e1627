"""Memory a model needs: from its bundle, else from a local ``config.json``.

KV cache per token: 2 (key and value) x layers x KV heads x head size x bytes of a number, as in
Hugging Face configs. Latent attention (MLA) keeps one compressed vector and one position part a
layer (``kv_lora_rank + qk_rope_head_dim``), on every GPU of a group. Layers of linear attention
keep no token; those with a sliding window keep its length and no more, which only the calls that
fit are credited with. Weights: the size of the checkpoint's files where they are there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.bundles.published_sizes import ARCHITECTURES
from scepsy_hpc.bundles.step_time import Experts
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import BundleHeader
from scepsy_hpc.formats.parallelism import GIB, is_cpu_type

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8_e4m3fn": 1.0}


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What of a model's inner shape matters here; None and zero where it is not known.

    ``window_part`` of a token's KV cache is of layers that keep the last ``window_tokens`` only.
    """

    num_kv_heads: int | None = None
    experts: Experts | None = None
    window_part: float = 0.0
    window_tokens: float = math.inf


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Weights of the whole model and KV cache of one token, over all GPUs of a group.

    A token counts in full, though layers with a sliding window forget it: ``cached_tokens``.
    """

    weights_gib: float
    kv_bytes_per_token: float
    inner: AttentionShape = AttentionShape()

    def cached_tokens(self, num_tokens: float) -> float:
        """Tokens of full KV cache that a call of so many takes."""
        kept = min(num_tokens, self.inner.window_tokens)
        return (1.0 - self.inner.window_part) * num_tokens + self.inner.window_part * kept


def sizes_of(header: BundleHeader, where: str) -> ModelSizes | None:
    """Sizes from the bundle, else from a local config.

    None for CPU slices and simulated engines that give no sizes: their memory is not a GPU's.
    Raises InputError naming the missing key.
    """
    weights_gib, kv_bytes = header.weights_gib, header.kv_bytes_per_token
    if weights_gib is None or kv_bytes is None:
        local = _local_sizes(header.model)
        weights_gib = weights_gib if weights_gib is not None else local.get("weights_gib")
        kv_bytes = kv_bytes if kv_bytes is not None else local.get("kv_bytes_per_token")
    if weights_gib is not None and kv_bytes is not None:
        return ModelSizes(weights_gib, kv_bytes, architecture_of(header.model))
    if is_cpu_type(header.gpu_type) or header.engine == "simulated":
        return None
    key = "weights_gib" if weights_gib is None else "kv_bytes_per_token"
    raise InputError(
        f"{where}: {key}: missing, and {header.model} has no local config.json to take it from; "
        f"add `{key}` to the bundle, or download the model"
    )


def architecture_of(model: str) -> AttentionShape:
    """KV heads, experts and windows of a model: from its local config, else as published."""
    config = _config(_local_folder(model))
    if config:
        return _inner(config)
    if model not in ARCHITECTURES:
        return AttentionShape()
    known = ARCHITECTURES[model]
    return AttentionShape(known.num_kv_heads, known.experts)


def _inner(config: Mapping[str, Any]) -> AttentionShape:
    total, part = _experts(config)
    heads = 1 if "kv_lora_rank" in config else config.get("num_key_value_heads")
    heads = heads or config.get("num_attention_heads")
    window = config.get("sliding_window")
    kinds = _attention_layers(config)
    windowed = sum(kind == "window" for kind in kinds) if isinstance(window, int) else 0
    return AttentionShape(
        num_kv_heads=heads if isinstance(heads, int) and heads > 0 else None,
        experts=Experts(part, total) if 0 < part < total else None,
        window_part=windowed / len(kinds) if windowed else 0.0,
        window_tokens=float(window) if isinstance(window, int) and windowed else math.inf,
    )


def _experts(config: Mapping[str, Any]) -> tuple[int, int]:
    """(experts in all, experts a token goes to); zeros for a dense model."""
    totals = ("num_local_experts", "num_experts", "n_routed_experts")
    parts = ("num_experts_per_tok", "experts_per_token", "moe_topk")
    total = next((config[k] for k in totals if isinstance(config.get(k), int)), 0)
    part = next((config[k] for k in parts if isinstance(config.get(k), int)), 0)
    return total, part


def _attention_layers(config: Mapping[str, Any]) -> list[str]:
    """`full` or `window` of each layer that keeps keys and values; those without are left out."""
    layers = int(config.get("num_hidden_layers") or 0)
    named = config.get("layer_types")
    if isinstance(named, list):
        kept = [str(kind) for kind in named if "linear" not in str(kind) and kind != "mamba"]
        return ["window" if "sliding" in k or "chunked" in k else "full" for k in kept]
    every = config.get("full_attention_interval")
    if isinstance(every, int) and every > 0:  # linear attention in between (Qwen3-Next)
        return ["full"] * (layers // every)
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, int) and pattern > 0:
        return ["full" if (i + 1) % pattern == 0 else "window" for i in range(layers)]
    return ["full"] * layers


def _local_sizes(model: str) -> dict[str, float]:
    folder = _local_folder(model)
    config = _config(folder)
    return {} if folder is None or not config else _from_config(config, folder)


def _config(folder: Path | None) -> dict[str, Any]:
    """The text model's part of a config.json; empty where it cannot be read."""
    if folder is None:
        return {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _local_folder(model: str) -> Path | None:
    """The model's folder: a path, or the newest snapshot in the Hugging Face cache."""
    if (Path(model) / "config.json").is_file():
        return Path(model)
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    found = (cache / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json")
    return max((path.parent for path in found), key=lambda p: p.stat().st_mtime, default=None)


def _from_config(config: dict[str, Any], folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    files = [p.stat().st_size for p in folder.glob("*.safetensors")]
    if files:
        found["weights_gib"] = sum(files) / GIB
    try:
        numbers = _numbers_per_layer(config)
        layers = float(len(_attention_layers(config)))
        if not layers:
            return found
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return found
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    found["kv_bytes_per_token"] = layers * numbers * _BYTES.get(dtype, 2.0)
    return found


def _numbers_per_layer(config: Mapping[str, Any]) -> float:
    """Numbers that one layer keeps of a token."""
    if "kv_lora_rank" in config:
        return float(config["kv_lora_rank"]) + float(config["qk_rope_head_dim"])
    heads = float(config["num_attention_heads"])
    head_size = float(config.get("head_dim") or config["hidden_size"] / heads)
    return 2.0 * float(config.get("num_key_value_heads") or heads) * head_size
