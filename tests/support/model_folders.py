"""Folders of models with tiny weights, whole or with something missing."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def safetensors(num_bytes: int) -> bytes:
    """A safetensors file of one tensor of that many bytes."""
    tensor = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(num_bytes)


def make_model(folder: Path, num_files: int = 2, num_bytes: int = 1000) -> Path:
    """A whole model: config, tokenizer, an index and its files of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["Tiny"]}')
    (folder / "tokenizer.json").write_text("{}")
    names = [f"model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]
    for name in names:
        (folder / name).write_bytes(safetensors(num_bytes))
    index = {"weight_map": {f"layer{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
