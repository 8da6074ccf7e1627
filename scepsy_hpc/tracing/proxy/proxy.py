"""An OpenAI-compatible reverse proxy that records one span for every call it passes on.

Agents are given `http://host:port/r/<run_id>/v1` as their base URL; the model name is an alias.
Where a call goes and whether it is tried again is a ``Router``'s to decide, not the proxy's.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import uuid
from collections.abc import Callable
from urllib.parse import quote

import aiohttp
from aiohttp import web

from scepsy_hpc.formats.spans import Span
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy import messages
from scepsy_hpc.tracing.proxy.attempt import Attempt, ClientGone, Upstream
from scepsy_hpc.tracing.proxy.conversation import prompt_of
from scepsy_hpc.tracing.proxy.messages import Call
from scepsy_hpc.tracing.proxy.prefixes import Prompts, Repeat
from scepsy_hpc.tracing.proxy.router import Refused, Router
from scepsy_hpc.tracing.proxy.sockets import lively_socket

MAX_BODY_BYTES = 1 << 30
# Shorter than the 5 s after which engines close an idle connection: a call never goes out on a
# connection that the other side is closing.
IDLE_CONNECTION_S = 2.0
CONNECT_TIMEOUT_S = 10.0


class RecordingProxy:
    """Serves until ``stop``. Use it as an async context manager, or ``start`` and ``stop``.

    A span starts when the request was received and ends with the last byte to the client. Each
    attempt is a span of its own; the next one starts where the last ended, so that waiting between
    them counts as waiting for the LLM. Span status: an outcome's (see ``CallOutcome``), preceded by
    `retried_` where another attempt followed. ``host`` of a span names the instance that answered.
    """

    def __init__(
        self,
        router: Router,
        record: Callable[[Span], None],
        *,
        api_key: str | None = None,
        workflow_of: Callable[[str], str | None] = lambda run_id: None,
    ) -> None:
        """``api_key``: what agents must send, if set. ``workflow_of``: a run's workflow.

        Routes may be added to ``app`` before ``start``.
        """
        self.app = web.Application(client_max_size=MAX_BODY_BYTES)
        self.app.router.add_route("*", "/r/{run_id}/v1/{path:.*}", self._handle)
        self._router, self._record = router, record
        self._api_key, self._workflow_of = api_key, workflow_of
        self._span_prefix = uuid.uuid4().hex[:8]
        self._num_spans = itertools.count(1)
        self._prompts = Prompts()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self.host, self.port = "127.0.0.1", 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one, told by ``port``. Raises OSError when it is taken."""
        self.app.router.add_route("*", "/{path:.*}", _unknown_path)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_CONNECTION_S, socket_factory=lively_socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=True,
        )
        self._runner = web.AppRunner(
            self.app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
        )
        try:
            await self._runner.setup()
            site = web.TCPSite(self._runner, host, port, backlog=1024)
            await site.start()
        except BaseException:
            await self.stop()
            raise
        self.host, self.port = host, self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; calls in flight are cancelled, here and on the engines."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()
        self._runner = self._session = None

    async def __aenter__(self) -> RecordingProxy:
        """Start on a free loopback port, unless started already."""
        if self._runner is None:
            await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop."""
        await self.stop()

    def base_url(self, run_id: str) -> str:
        """`OPENAI_BASE_URL` for the agent of one run, seen from this host."""
        here = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{here}:{self.port}/r/{quote(run_id, safe='')}/v1"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        received_s = now_s()
        run_id, path = request.match_info["run_id"], request.match_info["path"].strip("/")
        if not self._is_authorised(request):
            message = "the API key is not this proxy's; send the OPENAI_API_KEY given to the agent"
            return messages.error_response(401, "invalid_api_key", message)
        try:
            messages.check_path(request.method, path)
            if request.method == "GET":
                return messages.models_response(self._router.aliases(run_id), path)
            call = messages.read_call(
                run_id, path, request.headers, await request.read(), self._router.aliases(run_id)
            )
            return await self._serve(request, call, received_s)
        except Refused as refused:
            return messages.error_response(refused.http_status, refused.code, refused.message)

    def _is_authorised(self, request: web.Request) -> bool:
        if self._api_key is None:
            return True
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        return hmac.compare_digest(given.encode(), self._api_key.encode())

    async def _serve(
        self, request: web.Request, call: Call, received_s: float
    ) -> web.StreamResponse:
        """Try until an answer went to the client or the router gives up."""
        assert self._session is not None
        upstream = Upstream(self._session, request, call)
        start_s, avoid = received_s, frozenset[str]()
        prompt = prompt_of(call.path, call.body)
        for number in itertools.count(1):
            attempt = Attempt(start_s, f"{self._span_prefix}-{next(self._num_spans)}")
            repeat = self._prompts.look_up(
                call.run_id, call.alias, prompt, attempt.span_id, start_s
            )
            delay_s = None
            try:
                attempt.target = await self._router.pick(
                    call.alias, call.run_id, avoid, repeat.holder
                )
                repeat.mine.host = attempt.target.name
                await upstream.send(attempt, attempt.target)
            except Refused as refused:
                attempt.fail(f"error_{refused.http_status}", refused.message, refused.http_status)
                raise
            except ClientGone:
                attempt.status = "cancelled"
            finally:
                delay_s = self._settle(call, attempt, repeat, number)
            if delay_s is None:
                return attempt.response or attempt.failure(call.alias)
            if attempt.target is not None:
                avoid |= {attempt.target.name}
            start_s = attempt.end_s
            await asyncio.sleep(delay_s)
        raise AssertionError("unreachable")

    def _settle(self, call: Call, attempt: Attempt, repeat: Repeat, number: int) -> float | None:
        """Release, ask for a retry, record the span. Runs also when the client went away."""
        if attempt.status == "ok":
            self._prompts.add_answer(call.run_id, call.alias, repeat, attempt.said)
        else:
            self._prompts.forget(call.run_id, call.alias, repeat)
        attempt.end_s = now_s()
        outcome, delay_s = attempt.outcome(), None
        if attempt.target is not None:
            self._router.release(attempt.target, outcome)
            if attempt.may_retry:
                delay_s = self._router.retry(outcome, number)
        self._record(self._span(call, attempt, repeat, retried=delay_s is not None))
        return delay_s

    def _span(self, call: Call, attempt: Attempt, repeat: Repeat, retried: bool) -> Span:
        return Span(
            run_id=call.run_id,
            span_id=attempt.span_id,
            kind="llm",
            start_s=attempt.start_s,
            end_s=attempt.end_s,
            status=f"retried_{attempt.status}" if retried else attempt.status,
            workflow=self._workflow_of(call.run_id),
            llm=call.alias,
            role=call.role,
            host=attempt.target.name if attempt.target else None,
            input_tokens=attempt.usage.input_tokens,
            output_tokens=attempt.usage.output_tokens,
            cached_tokens=attempt.usage.cached_tokens,
            ttft_s=attempt.ttft_s,
            prefix_of=repeat.prefix(attempt.usage.input_tokens),
        )


async def _unknown_path(request: web.Request) -> web.Response:
    message = f"no such path: {request.path}; a run's base URL is /r/<run_id>/v1"
    return messages.error_response(404, "not_found", message)
