"""One attempt of a call on one endpoint: send it, pass the answer on, note how it ended."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from scepsy_hpc.metrics import ttft_s
from scepsy_hpc.tracing.clock import now_s
from scepsy_hpc.tracing.proxy.conversation import (
    MOST_STREAM_BYTES,
    answer_in_stream,
    answer_of,
)
from scepsy_hpc.tracing.proxy.messages import Call, error_body, error_response, forwarded
from scepsy_hpc.tracing.proxy.router import CallOutcome, CallTarget, reason_of
from scepsy_hpc.tracing.proxy.usage import StreamReader, Usage, usage_of


class ClientGone(Exception):
    """The agent closed its connection while an answer was being written to it."""


@dataclass(slots=True)
class Attempt:
    """What is known so far; a cancelled handler leaves it as `cancelled`.

    ``said``: the answer, as a later prompt would repeat it; empty where that cannot be told.
    """

    start_s: float
    span_id: str
    end_s: float = 0.0
    target: CallTarget | None = None
    status: str = "cancelled"
    message: str | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    ttft_s: float | None = None
    answer: web.Response | None = None
    response: web.StreamResponse | None = None
    said: bytes = b""

    @property
    def may_retry(self) -> bool:
        """It failed, and the client has seen nothing of it."""
        return self.status not in ("ok", "cancelled") and self.response is None

    def fail(self, status: str, message: str, http_status: int | None = None) -> None:
        """Note a failure."""
        self.status, self.message = status, message
        self.http_status = http_status if http_status is not None else self.http_status

    def failure(self, alias: str) -> web.Response:
        """What the client gets when no endpoint gave it an answer: the last one's, or our own."""
        if self.answer is not None:
            return self.answer
        where = f" at {self.target.base_url}" if self.target else ""
        verb = "broke off" if self.status == "broken_off" else "cannot be reached"
        message = f"LLM {alias!r}{where} {verb}: {self.message or self.status}"
        return error_response(502, f"upstream_{self.status}", message)

    def outcome(self) -> CallOutcome:
        """How it ended, for the router."""
        return CallOutcome(
            status=self.status,
            duration_s=self.end_s - self.start_s,
            http_status=self.http_status,
            message=self.message,
            retry_after_s=self.retry_after_s,
            input_tokens=self.usage.input_tokens,
            output_tokens=self.usage.output_tokens,
        )


class Upstream:
    """Sends one call to endpoints and passes the answer to the client that waits for it."""

    def __init__(self, session: aiohttp.ClientSession, request: web.Request, call: Call) -> None:
        """``request``: the client's, still open."""
        self._session, self._request, self._call = session, request, call

    async def send(self, attempt: Attempt, target: CallTarget) -> None:
        """Try ``target``; the end is noted in ``attempt``. Raises ClientGone.

        A good answer is written to the client; a failure that came before any byte of an answer is
        only noted, so that the call can be tried again.
        """
        call = self._call
        try:
            async with (
                target.wire.call(),
                self._session.post(
                    target.url(call.path),
                    # As a file: aiohttp writes large bodies piece by piece then.
                    data=io.BytesIO(call.sent_body(target)),
                    headers=call.sent_headers(target),
                    allow_redirects=False,
                ) as answer,
            ):
                attempt.http_status = answer.status
                attempt.retry_after_s = _seconds(answer.headers.get("Retry-After"))
                if answer.status < 300 and answer.content_type == "text/event-stream":
                    await self._stream(attempt, answer)
                else:
                    await self._whole(attempt, answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status = "unreachable" if attempt.http_status is None else "broken_off"
            attempt.fail(status, reason_of(error))
            await self._end_broken_stream(attempt)

    async def _whole(self, attempt: Attempt, answer: aiohttp.ClientResponse) -> None:
        body = await answer.read()
        attempt.answer = web.Response(
            status=answer.status, headers=forwarded(answer.headers), body=body
        )
        if answer.status >= 300:
            status = "overloaded" if answer.status == 503 else f"error_{answer.status}"
            attempt.fail(status, f"HTTP {answer.status} {answer.reason or ''}".strip())
            return
        _saw_byte(attempt)
        found = _json(body) if answer.content_type.endswith("json") else None
        attempt.usage = usage_of(found) or attempt.usage
        attempt.said = answer_of(self._call.path, found)
        attempt.response = attempt.answer
        with _client_there():
            await attempt.response.prepare(self._request)
            await attempt.response.write_eof()
        attempt.status = "ok"

    async def _stream(self, attempt: Attempt, answer: aiohttp.ClientResponse) -> None:
        reader = StreamReader(drop_usage=self._call.adds_usage)
        first_token_seen = False
        kept, num_kept = [], 0
        async for chunk in answer.content.iter_any():
            _saw_byte(attempt)
            passed = reader.feed(chunk)
            # Where no token decodes to text the first event stands for the first token.
            if attempt.ttft_s is None or (reader.has_token and not first_token_seen):
                attempt.ttft_s = ttft_s(attempt.start_s, now_s())
                first_token_seen = reader.has_token
            attempt.usage = reader.usage or attempt.usage
            num_kept += len(chunk)
            if num_kept <= MOST_STREAM_BYTES:
                kept.append(chunk)
            if passed:
                await self._write(attempt, answer, passed)
        rest = reader.close()
        if rest:
            await self._write(attempt, answer, rest)
        attempt.usage = reader.usage or attempt.usage
        if reader.error is not None:
            attempt.fail("error_stream", reader.error)
        elif attempt.response is None:
            attempt.fail("broken_off", "the stream ended without an event")
        else:
            attempt.status = "ok"
            if num_kept <= MOST_STREAM_BYTES:
                attempt.said = answer_in_stream(self._call.path, self._call.body, b"".join(kept))
        await self._end(attempt)

    async def _write(self, attempt: Attempt, answer: aiohttp.ClientResponse, data: bytes) -> None:
        with _client_there():
            if attempt.response is None:
                # Not before there is something to send: until then the call can be tried again.
                response = web.StreamResponse(
                    status=answer.status, headers=forwarded(answer.headers)
                )
                attempt.response = response
                await response.prepare(self._request)
            await attempt.response.write(data)

    async def _end(self, attempt: Attempt) -> None:
        if attempt.response is not None:
            with _client_there():
                await attempt.response.write_eof()

    async def _end_broken_stream(self, attempt: Attempt) -> None:
        """Tell a client that has part of a stream that the rest is lost, as OpenAI's API does."""
        if attempt.response is None:
            return
        where = attempt.target.base_url if attempt.target else "the endpoint"
        message = f"LLM {self._call.alias!r} at {where} broke off: {attempt.message}"
        event = json.dumps(error_body(502, "upstream_broken_off", message))
        with _client_there():
            await attempt.response.write(f"data: {event}\n\n".encode())
        await self._end(attempt)


def _saw_byte(attempt: Attempt) -> None:
    if attempt.target is not None:
        attempt.target.wire.last_byte_s = time.monotonic()


@contextmanager
def _client_there() -> Iterator[None]:
    """Around writing to the client: whatever breaks there, raises ClientGone."""
    try:
        yield
    except (OSError, aiohttp.ClientError):
        raise ClientGone from None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
