"""The load generator against a simulated engine and against servers with faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from scepsy_hpc.errors import RunError
from scepsy_hpc.profiling.load_generator import (
    Client,
    Lengths,
    background_load,
    closed_loop,
    num_wanted,
    open_loop,
    warm_up,
)
from scepsy_hpc.tracing.proxy.router import CallTarget

LENGTHS = (Lengths(12, 3), Lengths(20, 5))


class Server:
    """Answers completions after ``latency_s``; remembers bodies and the most calls in flight."""

    def __init__(self, latency_s: float = 0.02, status: int = 200, tokens: int | None = None):
        self.latency_s, self.status, self.tokens = latency_s, status, tokens
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.in_flight = self.most_in_flight = 0
        self.fail_after: int | None = None

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("Authorization"))
        if self.fail_after is not None and len(self.bodies) > self.fail_after:
            return web.json_response({"error": "told to fail"}, status=500)
        if self.status != 200:
            return web.json_response({"error": "told to fail"}, status=self.status)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._stream(request, body)
        finally:
            self.in_flight -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(self.latency_s)
        num_tokens = body["max_tokens"] if self.tokens is None else self.tokens
        for _ in range(num_tokens):
            await response.write(b'data: {"choices":[{"text":"a"}]}\n\n')
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": num_tokens}
        last = {"choices": [], "usage": usage}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        tokens = sum(len(prompt) for prompt in body["input"])
        return web.json_response(
            {"data": [{"embedding": [0.0]}], "usage": {"prompt_tokens": tokens}}
        )


@asynccontextmanager
async def client_of(server: Server, embeds: bool = False) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_post("/v1/completions", server.completions)
    app.router.add_post("/v1/embeddings", server.embeddings)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        target = CallTarget(url, "m", api_key="key")
        async with Client(target, LENGTHS, seed=3, embeds=embeds) as client:
            yield client
    finally:
        await runner.cleanup()


def test_closed_loop_keeps_so_many_calls_in_flight():
    """Four workers never have more than four calls in flight, and Little's law holds."""
    server = Server()

    async def main() -> Any:
        async with client_of(server) as client:
            return await closed_loop(client, 4, num_requests=20)

    window = asyncio.run(main())
    assert server.most_in_flight == 4
    assert len(window.calls) >= 20
    assert window.throughput_rps * window.latency_mean_s == pytest.approx(window.in_flight)
    assert 0 < window.in_flight <= 4.0 + 1e-9


@pytest.mark.parametrize(
    ("concurrency", "num_requests", "num_lengths", "wanted"),
    [(1, 12, 12, 12), (8, 12, 12, 24), (20, 12, 12, 48), (4, 10, 1, 10), (1, 8, 256, 8)],
)
def test_few_lengths_are_cycled_whole(concurrency, num_requests, num_lengths, wanted):
    """Two rounds at least, whole cycles of few lengths, and no cycle of hundreds."""
    assert num_wanted(concurrency, num_requests, num_lengths) == wanted


def test_lengths_are_forced_and_counted():
    """Prompts have the exact lengths, outputs are forced, and usage is what is counted."""
    server = Server()

    async def main() -> Any:
        async with client_of(server) as client:
            return [await client.call() for _ in range(4)]

    calls = asyncio.run(main())
    assert [(c.input_tokens, c.output_tokens) for c in calls] == [(12, 3), (20, 5)] * 2
    assert all(0 < c.ttft_s <= c.latency_s for c in calls)
    body = server.bodies[0]
    assert (body["min_tokens"], body["max_tokens"], body["ignore_eos"]) == (3, 3, True)
    assert server.bodies[0]["prompt"] != server.bodies[2]["prompt"]
    assert server.keys == {"Bearer key"}


def test_no_tokens_is_an_error():
    """A benchmark with 0 generated tokens is a failure, not a fast engine."""

    async def main() -> None:
        async with client_of(Server(tokens=0)) as client:
            await closed_loop(client, 2, num_requests=4)

    with pytest.raises(RunError, match="0 generated tokens"):
        asyncio.run(main())


@pytest.mark.parametrize("status", [401, 500])
def test_http_errors_end_the_run(status):
    """An error answer ends the run with status and text, whatever the other workers do."""

    async def main() -> None:
        async with client_of(Server(status=status)) as client:
            await warm_up(client, 2)

    with pytest.raises(RunError, match=f"HTTP {status}.*told to fail"):
        asyncio.run(main())


def test_late_errors_end_the_run():
    """An engine that breaks in the middle fails the point instead of waiting for it."""
    server = Server()
    server.fail_after = 9

    async def main() -> None:
        async with client_of(server) as client:
            await closed_loop(client, 4, num_requests=1000)

    with pytest.raises(RunError, match="HTTP 500"):
        asyncio.run(main())


def test_nobody_there_is_an_error():
    """A refused connection is one line, not a traceback of the HTTP library."""

    async def main() -> None:
        async with Client(CallTarget("http://127.0.0.1:9", "m"), LENGTHS, seed=0) as client:
            await client.call()

    with pytest.raises(RunError, match="a call failed"):
        asyncio.run(main())


def test_time_limit_cuts_a_point_short():
    """After the limit a point makes do with the rounds it has."""

    async def main() -> Any:
        async with client_of(Server()) as client:
            return await closed_loop(client, 2, num_requests=10**6, limit_s=0.5)

    window = asyncio.run(main())
    assert 2 <= len(window.calls) < 10**6


def test_open_loop_sends_what_it_is_told():
    """An open run sends each call at its own time, not after the answer before."""
    server = Server(latency_s=0.3)

    async def main() -> Any:
        async with client_of(server) as client:
            return await open_loop(client, 100.0, num_requests=20, seed=1)

    calls = asyncio.run(main())
    assert len(calls) == 20
    assert server.most_in_flight > 4


def test_embeddings_need_no_tokens_generated():
    """An engine that generates nothing is measured by the prompt tokens it processed."""

    async def main() -> Any:
        async with client_of(Server(), embeds=True) as client:
            return await client.call()

    call = asyncio.run(main())
    assert (call.input_tokens, call.output_tokens, call.ttft_s) == (12, 0, None)


def test_background_load_goes_on_until_cancelled():
    """Neighbours stay busy until they are told to stop."""
    server = Server()

    async def main() -> None:
        async with client_of(server) as client:
            load = asyncio.ensure_future(background_load(client, 3))
            while len(server.bodies) < 12:
                await asyncio.sleep(0.01)
            assert not load.done()
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)

    asyncio.run(main())
    assert server.most_in_flight == 3
