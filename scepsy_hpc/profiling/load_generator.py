"""Load on one OpenAI-compatible endpoint: closed loop (so many calls in flight) or Poisson.

Prompts are random token ids, so that their length is exact and no prefix is ever found in a cache;
output lengths are forced. Tokens are counted by the engine's own usage.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from scepsy_hpc.errors import RunError
from scepsy_hpc.profiling.steady import CLIENT_TOLERANCE, TimedCall, Window, closed_window
from scepsy_hpc.tracing.proxy.router import CallTarget

# Ids that every vocabulary has and that no tokenizer uses for something special.
_IDS = range(100, 1000)
CALL_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one call."""

    input_tokens: int
    output_tokens: int


class Client:
    """Sends calls; use inside ``async with``. ``embeds``: the engine generates no tokens."""

    def __init__(
        self, target: CallTarget, lengths: Sequence[Lengths], seed: int | str, embeds: bool = False
    ) -> None:
        self._target, self._embeds = target, embeds
        self._lengths: Iterator[Lengths] = itertools.cycle(lengths)
        self.num_lengths = len(lengths)
        self._random = random.Random(seed)

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
            headers=self._target.headers,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def call(self, worker: int = 0) -> TimedCall:
        """One call with the next lengths. Raises RunError when it fails."""
        lengths = next(self._lengths)
        prompt = self._random.choices(_IDS, k=max(1, lengths.input_tokens))
        try:
            if self._embeds:
                return await self._embed(worker, prompt)
            return await self._generate(worker, prompt, lengths.output_tokens)
        except TimeoutError:
            raise RunError(f"a call took longer than {CALL_TIMEOUT_S:g} s") from None
        except aiohttp.ClientError as error:
            raise RunError(f"a call failed: {type(error).__name__}: {error}") from None

    async def _generate(self, worker: int, prompt: list[int], output_tokens: int) -> TimedCall:
        body = {
            "model": self._target.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start_s, first_s, last = time.monotonic(), None, b""
        async with self._session.post(self._target.url("completions"), json=body) as response:
            await _check(response)
            async for line in response.content:
                # Parsing every chunk would make this client the bottleneck; only the last counts.
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    first_s = first_s or time.monotonic()
                    last = line
        end_s = time.monotonic()
        usage = _usage(last[len(b"data:") :])
        if first_s is None or usage["completion_tokens"] < 1:
            raise RunError("the engine answered a call with 0 generated tokens")
        return TimedCall(
            worker=worker,
            start_s=start_s,
            end_s=end_s,
            ttft_s=first_s - start_s,
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        )

    async def _embed(self, worker: int, prompt: list[int]) -> TimedCall:
        start_s = time.monotonic()
        body = {"model": self._target.model, "input": [prompt]}
        async with self._session.post(self._target.url("embeddings"), json=body) as response:
            await _check(response)
            answer = await response.read()
        end_s = time.monotonic()
        tokens = _usage(answer)["prompt_tokens"]
        if tokens < 1:
            raise RunError("the engine answered a call with 0 tokens processed")
        return TimedCall(worker, start_s, end_s, input_tokens=tokens, output_tokens=0)


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = (await response.text())[:200]
        raise RunError(f"a call was answered with HTTP {response.status}: {text}")


def _usage(data: bytes) -> dict[str, Any]:
    try:
        usage: dict[str, Any] = json.loads(data)["usage"]
        if {"prompt_tokens"} <= set(usage):
            return {"completion_tokens": 0} | usage
    except (ValueError, KeyError, TypeError):
        pass
    raise RunError(f"the engine sent no token usage; its last chunk was {data[:200]!r}")


async def warm_up(client: Client, num_requests: int) -> None:
    """A few calls whose times do not count: first-call compilation, connections."""
    await asyncio.gather(*(client.call() for _ in range(num_requests)))


async def closed_loop(
    client: Client, concurrency: int, num_requests: int, limit_s: float = 600.0
) -> Window:
    """``concurrency`` calls in flight until ``num_requests`` stand in the steady window.

    At least two rounds of calls. After ``limit_s`` what there is must do. Raises RunError when a
    call fails, no steady window was reached, or this client could not keep the calls in flight.
    """
    calls: list[TimedCall] = []
    wanted = num_wanted(concurrency, num_requests, client.num_lengths)
    until_s = time.monotonic() + limit_s
    enough = asyncio.Event()

    def is_enough() -> bool:
        if time.monotonic() <= until_s and len(calls) < wanted + concurrency:
            return False
        return closed_window(calls, concurrency) is not None

    async def work(worker: int) -> None:
        while not enough.is_set():
            calls.append(await client.call(worker))
            if is_enough():
                enough.set()

    await _until(enough, [work(worker) for worker in range(concurrency)])
    window = closed_window(calls, concurrency)
    if window is None:
        raise RunError(f"concurrency {concurrency}: no steady part within {limit_s:g} s")
    if window.in_flight < (1.0 - CLIENT_TOLERANCE) * concurrency:
        raise RunError(
            f"concurrency {concurrency}: only {window.in_flight:.2g} calls were in flight on "
            "average: the load generator is slower than the engine; give the task more cores "
            "(cpus_per_gpu) or leave this load out"
        )
    return window


def num_wanted(concurrency: int, num_requests: int, num_lengths: int) -> int:
    """Calls to count: two rounds at least, and whole cycles of the token lengths where they fit.

    Points of equal mean lengths lie on one curve; half a cycle of a few lengths would not.
    """
    wanted = max(num_requests, 2 * concurrency)
    cycles = -(-wanted // num_lengths)
    return cycles * num_lengths if num_lengths <= 2 * wanted else wanted


async def _until(enough: asyncio.Event, coroutines: Sequence[Any]) -> None:
    """Run all until ``enough`` is set, then cancel them; the first error is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    waiting = asyncio.ensure_future(enough.wait())
    try:
        pending = {waiting, *tasks}
        while not enough.is_set():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in (waiting, *tasks):
            task.cancel()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)


async def open_loop(
    client: Client, rate_rps: float, num_requests: int, seed: int
) -> list[TimedCall]:
    """``num_requests`` calls at Poisson arrivals, however long the engine takes.

    Raises RunError when a call fails.
    """
    gaps = random.Random(seed)
    tasks = []
    next_s = time.monotonic()
    for _ in range(num_requests):
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        tasks.append(asyncio.ensure_future(client.call()))
        next_s += gaps.expovariate(rate_rps)
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def background_load(client: Client, concurrency: int) -> None:
    """Keep ``concurrency`` calls in flight until cancelled. Raises RunError when one fails."""

    async def work() -> None:
        while True:
            await client.call()

    await _until(asyncio.Event(), [work() for _ in range(concurrency)])
