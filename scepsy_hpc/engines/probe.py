"""Asks an engine for one real token, or one real vector or score where it makes no tokens.

An engine is ready when it has done its work once, not when its port answers or its log says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from scepsy_hpc.engines.config import EngineConfig

# These do not go away by waiting: wrong key, wrong model, or somebody else's server on the port.
FINAL_STATUSES = (400, 401, 403, 404, 405, 422)
# Counters of vLLM that stand still when its steps do; those of requests also count what is aborted.
WORK_COUNTERS = ("vllm:generation_tokens", "vllm:prompt_tokens", "vllm:iteration_tokens_total")


@dataclass(frozen=True, slots=True)
class Readiness:
    """What came back: ``ready``, or a ``reason`` that is ``final`` when waiting cannot help."""

    ready: bool
    reason: str = ""
    final: bool = False


def request_of(config: EngineConfig) -> tuple[str, dict[str, Any]]:
    """Path and body of the smallest real piece of work for this engine."""
    model = config.served_names[0]
    if config.engine_args.get("runner") != "pooling":
        body = {"model": model, "prompt": "Hello", "max_tokens": 1, "ignore_eos": True}
        return "/v1/completions", body
    if config.engine_args.get("convert") == "classify":
        return "/score", {"model": model, "text_1": "Hello", "text_2": "Hello"}
    return "/v1/embeddings", {"model": model, "input": "Hello"}


def did_work(answer: Any) -> bool:
    """Whether an answer carries a generated token, or a vector or score."""
    if not isinstance(answer, dict):
        return False
    if "choices" in answer:
        usage = answer.get("usage") or {}
        return bool(answer["choices"]) and (usage.get("completion_tokens") or 0) >= 1
    return bool(answer.get("data") or answer.get("results"))


async def ask(
    session: aiohttp.ClientSession, config: EngineConfig, base_url: str, timeout_s: float
) -> Readiness:
    """One attempt. Never raises for what the network or the engine does."""
    limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=5)
    try:
        async with session.get(f"{base_url}/health", timeout=limit) as health:
            if health.status != 200:
                return Readiness(False, f"/health answers HTTP {health.status}")
        path, body = request_of(config)
        headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        async with session.post(
            base_url + path, json=body, headers=headers, timeout=limit
        ) as response:
            if response.status != 200:
                text = (await response.text())[:200]
                reason = f"{path} answers HTTP {response.status}: {text}"
                return Readiness(False, reason, response.status in FINAL_STATUSES)
            if did_work(await response.json(content_type=None)):
                return Readiness(True)
            return Readiness(False, f"{path} answers HTTP 200 without a token in it")
    except TimeoutError:
        return Readiness(False, "no answer in time")
    except (aiohttp.ClientError, ValueError) as error:
        return Readiness(False, f"no answer ({type(error).__name__}: {error})")


async def work_done(
    session: aiohttp.ClientSession, base_url: str, timeout_s: float
) -> float | None:
    """A number that grows while the engine works on anything; None where it does not tell."""
    limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=5)
    try:
        async with session.get(f"{base_url}/metrics", timeout=limit) as page:
            if page.status != 200:
                return None
            families = list(text_string_to_metric_families(await page.text()))
    except (TimeoutError, aiohttp.ClientError, ValueError):
        return None
    found = [
        sample.value
        for family in families
        if family.name in WORK_COUNTERS
        for sample in family.samples
        if sample.name.endswith(("_total", "_sum"))
    ]
    return sum(found) if found else None
