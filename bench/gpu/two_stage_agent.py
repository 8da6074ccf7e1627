"""An agent of two LLMs: several calls of a small one at once, then one of a large one.

A task says how long the calls are and, in ``stages``, which of them to make.
"""

from __future__ import annotations

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run(task: dict[str, Any]) -> dict[str, int]:
    """Tokens that each LLM wrote."""
    found = {}
    if "judge" in task["stages"]:
        with ThreadPoolExecutor(task["judge_calls"]) as pool:
            calls = range(task["judge_calls"])
            found["judge"] = sum(pool.map(lambda i: ask("judge", *task["judge_shape"], i), calls))
    if "writer" in task["stages"]:
        found["writer"] = ask("writer", *task["writer_shape"], 0)
    return found


def ask(model: str, input_tokens: int, output_tokens: int, number: int) -> int:
    """One chat completion of given lengths; with a tokenizer of bytes n characters are n tokens."""
    # The front differs from call to call, so that no prefix is found in a cache.
    front = f"{os.environ['SCEPSY_RUN_ID']} {number} "
    body = {
        "model": model,
        "messages": [{"role": "user", "content": front.ljust(input_tokens, "x")}],
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
    }
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
        },
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        tokens: int = json.load(answer)["usage"]["completion_tokens"]
    return tokens
