"""Model folders with random weights: config and tokenizer written by hand, nothing downloaded.

    python bench/gpu/models.py DIR

writes ``DIR/Qwen/Qwen3-0.6B`` and ``DIR/Qwen/Qwen3-8B``. Sizes as the published model cards have
them, so that speed is the model's; served with ``load_format: dummy`` the weights are random. An
engine started in DIR finds the folder under the model's own name. The tokenizer spells text byte
by byte, so n bytes are n tokens, and has a made-up text for every other id.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB_SIZE = 151_936
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Size:
    """What differs between the models; all have heads of 128 and 8 key-value heads."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    tied: bool


SIZES = {
    "Qwen/Qwen3-0.6B": Size(1024, 3072, 28, 16, True),
    "Qwen/Qwen3-8B": Size(4096, 12288, 36, 32, False),
}
NUM_KV_HEADS = 8
HEAD_SIZE = 128


def config_of(size: Size) -> dict[str, Any]:
    """``config.json``."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.intermediate,
        "max_position_embeddings": 40_960,
        "num_attention_heads": size.num_heads,
        "num_hidden_layers": size.num_layers,
        "num_key_value_heads": NUM_KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": size.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def num_parameters(config: dict[str, Any]) -> int:
    """Parameters of a dense Qwen3 of this config."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    attention = 2 * hidden * queries + 2 * hidden * keys + 2 * head
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + hidden)


def tokenizer() -> dict[str, Any]:
    """``tokenizer.json``: byte-level, without merges."""
    special = {151_643: END_OF_TEXT, 151_644: START, 151_645: END}
    vocab = {text: i for i, text in enumerate(_bytes_as_text())}
    vocab |= {special.get(i, f"w{i}"): i for i in range(len(vocab), VOCAB_SIZE)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "special": True, **flags} for i, text in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _bytes_as_text() -> list[str]:
    """The usual stand-in character of each byte: itself where it prints, else one from 256 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    found, others = [], 256
    for byte in range(256):
        found.append(chr(byte if byte in prints else others))
        others += byte not in prints
    return found


def write_models(folder: Path) -> Path:
    """Write every model below ``folder`` and return it; the same bytes at every call."""
    for name, size in SIZES.items():
        model = folder / name
        model.mkdir(parents=True, exist_ok=True)
        files: dict[str, Any] = {
            "config.json": config_of(size),
            "generation_config.json": {"eos_token_id": 151_645},
            "tokenizer.json": tokenizer(),
            "tokenizer_config.json": {
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": False,
                "eos_token": END,
                "model_max_length": 40_960,
                "pad_token": END_OF_TEXT,
                "tokenizer_class": "PreTrainedTokenizerFast",
            },
        }
        for file_name, content in files.items():
            (model / file_name).write_text(json.dumps(content, ensure_ascii=False) + "\n")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: models.py DIR")
    print(write_models(Path(sys.argv[1])))
