"""Makes tiny language models with random weights: a config and a tokenizer, nothing downloaded.

    python tests/vllm/tiny_models.py DIR

writes ``DIR/tiny-generator`` and ``DIR/tiny-judge``. The folders hold no weights: serve them with
``--load-format dummy``. The two models differ in architecture and in cost per token, so that a
planner has a reason to treat them differently. Needs only the package ``tokenizers``.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1024
MAX_TOKENS = 4096
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Four heads of each kind: tensor parallelism of 2 (and 4) divides them.
MODELS: dict[str, dict[str, Any]] = {
    "tiny-generator": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "tiny-judge": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}


def make_model(name: str, directory: Path) -> Path:
    """Writes the folder ``directory/name`` and returns it; the same bytes at every call."""
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
        "torch_dtype": "bfloat16",
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
    """A byte-level BPE of exactly `VOCAB_SIZE` tokens, so that every id decodes to some text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(made_up_sentences(num=2000), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return tokenizer


def made_up_sentences(num: int) -> list[str]:
    """Sentences of syllables from a fixed seed: text enough to learn a vocabulary from."""
    chance = random.Random(1)
    syllables = [c + v + e for c in "bcdfghlmnprst" for v in "aeiou" for e in ("", "n", "r", "st")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(800)]
    words += "the a of to and in is that it was for on are as with his they at be this".split()
    return [" ".join(chance.choices(words, k=12)) + "." for _ in range(num)]


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: tiny_models.py DIR")
    for name in MODELS:
        print(make_model(name, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
