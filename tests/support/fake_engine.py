"""An OpenAI-compatible server for tests whose answers and faults are told by the test."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 3,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def _event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(content: str) -> bytes:
    """One streamed token."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return _event({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m",
                   "choices": [choice]})  # fmt: skip


class FakeEngine:
    """Serves on a free loopback port inside ``async with``; remembers what it was asked."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.num_cancelled = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.break_off = False
        self.on_call: Callable[[], None] = lambda: None
        self.num_metrics = 0
        self.counts_work = False

    async def __aenter__(self) -> FakeEngine:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        """Each look finds one token more, or a page without counters."""
        self.num_metrics += 1
        if not self.counts_work:
            return web.Response(text="")
        head = "# TYPE vllm:generation_tokens_total counter\n"
        return web.Response(text=f"{head}vllm:generation_tokens_total {self.num_metrics}\n")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        path = request.match_info["path"]
        self.paths.append(path)
        self.on_call()
        if self.status >= 300:
            error = {"error": {"message": "told to fail", "type": "test", "code": "told"}}
            return web.json_response(error, status=self.status, headers=self.headers)
        try:
            if body.get("stream"):
                return await self._stream(request, body)
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return web.json_response(_whole(path, body))

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("one"))
        await self.go_on.wait()
        if self.break_off:
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(chunk("two"))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(_event({"id": "c", "object": "chat.completion.chunk", "created": 0,
                                         "model": "m", "choices": [], "usage": USAGE}))  # fmt: skip
        await response.write(_event(b"[DONE]"))
        await response.write_eof()
        return response


def _whole(path: str, body: dict[str, Any]) -> dict[str, Any]:
    if path == "chat/completions":
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [choice], "usage": USAGE}  # fmt: skip
    if path == "completions":
        return {"id": "c", "choices": [{"index": 0, "text": "a"}], "usage": USAGE}
    if path == "rerank":
        return {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 9}}
    if path == "responses":
        return {"id": "r", "output": [], "usage": {"input_tokens": 5, "output_tokens": 2}}
    return {"object": "list", "data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}


@contextmanager
def engine_in_thread() -> Iterator[FakeEngine]:
    """A fake engine with an event loop of its own, for callers that have none."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> FakeEngine:
        return await FakeEngine().__aenter__()

    engine = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    try:
        yield engine
    finally:
        asyncio.run_coroutine_threadsafe(engine.__aexit__(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
