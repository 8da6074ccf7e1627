"""Makes tiny language models with random weights: a config and a tokenizer, nothing downloaded.

    .venv-vllm/bin/python tests/vllm/tiny_models.py DIR

writes ``DIR/tiny-generator`` and ``DIR/tiny-judge``. The folders hold no weights: serve them with
``--load-format dummy``, and with ``--dtype float32``: without AVX-512 a CPU multiplies bfloat16
so slowly that batching gains nothing. Needs only the package ``tokenizers``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
MAX_TOKENS = 4096
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Wide and shallow: a token then costs arithmetic, which tensor parallelism divides, rather than
# Python and all-reduces, of which there are two a layer. Heads divide by 4. The two differ in
# architecture, and about threefold in cost a token.
MODELS: dict[str, dict[str, Any]] = {
    "tiny-generator": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "tiny-judge": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}


def make_model(name: str, directory: Path) -> Path:
    """Writes the folder ``directory/name`` and returns it."""
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    end, begin = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|im_start|>")
    config = MODELS[name] | {
        "bos_token_id": begin,
        "eos_token_id": end,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": VOCAB_SIZE,
    }
    tokenizer_config = {
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": MAX_TOKENS,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    for file_name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", {"eos_token_id": end}),
    ):
        (folder / file_name).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE of exactly `VOCAB_SIZE` tokens, so that every id decodes to some text.

    Learnt from the English text that every Python carries: the topics of ``help()``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return tokenizer


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: tiny_models.py DIR")
    for name in MODELS:
        print(make_model(name, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
