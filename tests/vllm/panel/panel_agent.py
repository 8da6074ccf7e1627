"""A small panel: drafts in parallel, one judgement of each, and a revision of the best.

Small enough for language models on a third of a core; the shape is that of the real workflows:
two LLMs, fan-out, and a number of calls that depends on the task.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import Any

from openai import AsyncOpenAI


async def run(task: dict[str, Any]) -> dict[str, Any]:
    """Work one task off; reads its endpoint when called."""
    async with AsyncOpenAI(
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        max_retries=2,
        timeout=600.0,
    ) as client:
        drafts = await asyncio.gather(
            *(
                _complete(client, "generator", f"{task['topic']} {i}:", task["draft_tokens"])
                for i in range(task["num_drafts"])
            )
        )
        grades = await asyncio.gather(
            *(_complete(client, "judge", f"grade: {task['topic']} {draft}", 1) for draft in drafts)
        )
        best = max(range(len(drafts)), key=lambda i: zlib.crc32(grades[i].encode()))
        revised = await _complete(client, "generator", f"revise: {drafts[best]}", 24)
    return {"text": revised, "best": best, "num_drafts": len(drafts)}


async def _complete(client: AsyncOpenAI, model: str, prompt: str, num_tokens: int) -> str:
    """Text of one completion of a fixed length: random weights know no end."""
    answer = await client.completions.create(
        model=model, prompt=prompt, max_tokens=num_tokens, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text
