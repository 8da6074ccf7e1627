"""What stands for tokens: four bytes of UTF-8 each, about as many as a tokenizer gives.

The tokens of a conversation that goes on begin with those of the conversation so far, its last
answer included, as a prefix cache needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scepsy_hpc.formats.spans import BLOCK_TOKENS

TOKEN_BYTES = 4
SEPARATORS = b"\xff" * (4 * TOKEN_BYTES)  # what a chat template puts around a message; never UTF-8


@dataclass(frozen=True, slots=True)
class Prompt:
    """Its text, and its tokens, TOKEN_BYTES each. ``is_chat``: made of whole messages."""

    text: str
    ids: bytes
    is_chat: bool = False

    @property
    def num_tokens(self) -> int:
        """At least one."""
        return len(self.ids) // TOKEN_BYTES


def text_prompt(text: str) -> Prompt:
    """A plain text."""
    return Prompt(text, _ids(text))


def ids_prompt(ids: Sequence[int]) -> Prompt:
    """Token ids, one token each."""
    packed = b"".join((i & 0xFFFFFFFF).to_bytes(TOKEN_BYTES, "little") for i in ids)
    return Prompt(" ".join(map(str, ids)), packed)


def chat_prompt(messages: Iterable[tuple[str, str]]) -> Prompt:
    """A conversation of (role, content)."""
    texts = [f"{role}: {content}" for role, content in messages]
    return Prompt("\n".join(texts), b"".join(_ids(t) + SEPARATORS for t in texts), is_chat=True)


def chain_of(prompt: Prompt, answer: str) -> tuple[int, ...]:
    """The full blocks of a prompt and its answer, each hashed with all before it."""
    if prompt.is_chat:
        ids = prompt.ids + _ids(f"assistant: {answer}") + SEPARATORS
    elif prompt.ids == _ids(prompt.text):
        ids = _ids(prompt.text + answer)  # its last token may go on
    else:
        ids = prompt.ids + _ids(answer)
    size = BLOCK_TOKENS * TOKEN_BYTES
    chain, block = [], 0
    for start in range(0, len(ids) - size + 1, size):
        block = hash((block, ids[start : start + size]))
        chain.append(block)
    return tuple(chain)


def _ids(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return data + b"\0" * (-len(data) % TOKEN_BYTES or (0 if data else TOKEN_BYTES))
