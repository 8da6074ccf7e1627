"""Memory a model needs: from its bundle, else from a local ``config.json``.

KV cache per token: 2 (key and value) x layers x KV heads x head size x bytes of a number, as in
Hugging Face configs. Weights: the size of the checkpoint's files where they are there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import BundleHeader
from scepsy_hpc.formats.parallelism import GIB, is_cpu_type

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8_e4m3fn": 1.0}


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Weights of the whole model and KV cache of one token, over all GPUs of a group."""

    weights_gib: float
    kv_bytes_per_token: float


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
        return ModelSizes(weights_gib, kv_bytes)
    if is_cpu_type(header.gpu_type) or header.engine == "simulated":
        return None
    key = "weights_gib" if weights_gib is None else "kv_bytes_per_token"
    raise InputError(
        f"{where}: {key}: missing, and {header.model} has no local config.json to take it from; "
        f"add `{key}` to the bundle, or download the model"
    )


def _local_sizes(model: str) -> dict[str, float]:
    folder = _local_folder(model)
    if folder is None:
        return {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {} if not isinstance(config, dict) else _from_config(config, folder)


def _local_folder(model: str) -> Path | None:
    """The model's folder: a path, or the newest snapshot in the Hugging Face cache."""
    if (Path(model) / "config.json").is_file():
        return Path(model)
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    found = (cache / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json")
    return max((path.parent for path in found), key=lambda p: p.stat().st_mtime, default=None)


def _from_config(config: dict[str, Any], folder: Path) -> dict[str, float]:
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    found: dict[str, float] = {}
    files = [p.stat().st_size for p in folder.glob("*.safetensors")]
    if files:
        found["weights_gib"] = sum(files) / GIB
    try:
        heads = float(config["num_attention_heads"])
        head_size = float(config.get("head_dim") or config["hidden_size"] / heads)
        kv_heads = float(config.get("num_key_value_heads") or heads)
        layers = float(config["num_hidden_layers"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return found
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    found["kv_bytes_per_token"] = 2.0 * layers * kv_heads * head_size * _BYTES.get(dtype, 2.0)
    return found
