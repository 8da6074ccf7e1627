"""What a simulated engine says: words, vectors and scores, each fixed by seed and input.

Nothing here means anything. The same input gets the same answer, so a run can be repeated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import struct
from collections.abc import Sequence
from typing import Any

SHORT_ANSWER_TOKENS = 16
"""Calls allowed no more tokens than this most often ask for a verdict or a score."""

_TEXT = """
the a of and to in that it is was for on with as by at from this these which one some result
value case model system method answer question reason step source paper table measure figure
number part point group order rule state change cause effect time place water light heat field
force energy cell plant animal river stone city people history shows gives takes holds makes
finds means needs leads follows grows falls rises turns first second next then also often never
always only more less high low large small new clear open common likely strong simple known
early late similar different because while
"""
WORDS = tuple(_TEXT.split())
VERDICTS = ("yes", "no", "7", "8", "3", "5", "9", "2", "6", "4", "1", "10", "0")


def count_tokens(text: str) -> int:
    """A count like a tokenizer's: about four bytes of UTF-8 a token, at least one."""
    return max(1, math.ceil(len(text.encode()) / 4))


def rng_of(*parts: object) -> random.Random:
    """A random generator fixed by its arguments, the same in every process."""
    digest = hashlib.sha256(json.dumps(parts, default=str).encode()).digest()
    return random.Random(digest)


def draw_length(rng: random.Random, mean: float, low: int, high: int) -> tuple[int, bool]:
    """An output length, exponential about ``mean``, and whether ``high`` cut it off."""
    drawn = 1 + int(rng.expovariate(1.0 / mean))
    return max(low, min(drawn, high)), drawn > high


def words(rng: random.Random, num_tokens: int, allowed: int) -> list[str]:
    """``num_tokens`` pieces of text, one a token; short answers begin with a verdict, mostly."""
    chosen = rng.choices(WORDS, k=num_tokens)
    if allowed <= SHORT_ANSWER_TOKENS and chosen and rng.random() < 0.9:
        chosen[0] = rng.choice(VERDICTS)
    return chosen[:1] + [f" {word}" for word in chosen[1:]]


def vector(rng: random.Random, size: int) -> list[float]:
    """A vector of length one."""
    raw = [rng.gauss(0.0, 1.0) for _ in range(size)]
    norm = math.sqrt(sum(x * x for x in raw))
    return [x / norm for x in raw]


def encode_vector(values: Sequence[float], encoding: str) -> Any:
    """A vector as a list of floats, or as base64 of little-endian 32-bit floats."""
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return list(values)


def relevance(query: str, document: str, rng: random.Random) -> float:
    """A score in 0..1: common words for the most part, the rest drawn."""
    asked = set(query.lower().split())
    common = len(asked & set(document.lower().split())) / max(len(asked), 1)
    return 0.7 * common + 0.3 * rng.random()
