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
act add age aim air all and any ape arc are ash ask axe bag bar bay bed bee bet bid big bit
bow box bud bus but can cap car cat cog cow cup cut day den dew dig dim dog dot dry due ear
eat ebb egg elm end era fan far fed few fig fin fir fit fix fly fog for fox fur gap gas get
gem got gum had has hat hay hen her hid him his hot how hub ice ill ink ion its jam jar jet
job joy key kin kit lab lag lap law lay leg let lid lie lip log lot low mad man map mat may
men met mix mob mud nap net new nod nor not now nut oak oar oat odd off oil old one ore our
out owl own pad pan paw pay pea pen pet pie pin pit pot put ram ran rat raw ray red rib rim
rod row rub run rye sad sap sat saw say sea see set sew shy sip sit six sky sum sun tab tag
tan tap tar tax tea ten the tie tin tip toe ton too top toy try tub two use van vat via war
was wax way web wet who why wig win won yes yet zoo
"""
WORDS = tuple(_TEXT.split())
"""With a space each is one token: an answer that is sent back counts as it was generated."""
VERDICTS = ("yes", "no", "7", "8", "3", "5", "9", "2", "6", "4", "1", "10", "0")


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
