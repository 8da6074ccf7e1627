"""Where a call goes and how it ended: what a proxy and the one who routes its calls agree on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp


class GivenUp(ConnectionError):
    """The endpoint was given up while it worked on a call."""


@dataclass(slots=True, eq=False)
class Wire:
    """The calls open to one endpoint, and the sign of life that its answers are.

    ``last_byte_s``: when the last byte of a good answer came, on the monotonic clock.
    """

    last_byte_s: float | None = None
    _open: set[asyncio.Timeout] = field(default_factory=set)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Around one call. Raises GivenUp where ``cut`` ends it."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._open.add(limit)
                yield
        except TimeoutError:
            if limit.expired():
                raise GivenUp("its engine was given up") from None
            raise
        finally:
            self._open.discard(limit)

    def cut(self) -> None:
        """End every open call at once: no answer will come."""
        now_s = asyncio.get_running_loop().time()
        for limit in self._open:
            if not limit.expired():
                limit.reschedule(now_s)


@dataclass(frozen=True, slots=True)
class CallTarget:
    """An OpenAI-compatible endpoint for one call; ``base_url`` with or without a final `/v1`."""

    base_url: str
    model: str
    instance_id: str | None = None
    api_key: str | None = None
    wire: Wire = field(default_factory=Wire, compare=False, repr=False)

    def url(self, path: str) -> str:
        """Address of ``path`` below `/v1`."""
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/{path}"

    @property
    def headers(self) -> dict[str, str]:
        """What shows the endpoint's key, where it has one."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def name(self) -> str:
        """Instance id where there is one, else host and port."""
        return self.instance_id or self.base_url.split("://")[-1].split("/")[0]


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """How one attempt of a call ended.

    ``status``: `ok`; `unreachable` (no answer came back); `overloaded` (503: back-pressure, not a
    dead server); `error_<HTTP code>`; `error_stream` (the engine reported an error inside the
    stream); `broken_off` (the answer stopped half-way); `cancelled` (the client went away).
    """

    status: str
    duration_s: float
    http_status: int | None = None
    message: str | None = None
    retry_after_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Refused(Exception):
    """Raised by ``Router.pick``: the call goes nowhere; the client sees this as an OpenAI error."""

    def __init__(self, http_status: int, code: str, message: str) -> None:
        """``code`` is the machine-readable reason, as OpenAI's `error.code`."""
        super().__init__(message)
        self.http_status, self.code, self.message = http_status, code, message


class Router(Protocol):
    """Decides which endpoint takes a call. Called on the proxy's event loop only."""

    def aliases(self, run_id: str) -> Sequence[str]:
        """Model names that calls of this run may ask for."""
        ...

    async def pick(
        self, alias: str, run_id: str, avoid: frozenset[str], holder: str | None
    ) -> CallTarget:
        """An endpoint for one attempt; may wait for one. Raises Refused.

        ``avoid`` holds the names of targets on which this very call failed before; ``holder`` is
        the name of the one that took the call whose prompt this one continues, if any.
        """
        ...

    def release(self, target: CallTarget, outcome: CallOutcome) -> None:
        """Told once for every picked target, whatever the end."""
        ...

    def retry(self, outcome: CallOutcome, attempt: int) -> float | None:
        """Seconds to wait before another attempt; None to give the answer to the client.

        Asked, after ``release``, where an attempt (counted from 1) failed before a byte of it went
        to the client.
        """
        ...


class FixedRouter:
    """One endpoint for each alias and no retries: what tracing uses."""

    def __init__(self, targets: Mapping[str, CallTarget]) -> None:
        """``targets``: endpoint by alias."""
        self._targets = dict(targets)

    def aliases(self, run_id: str) -> Sequence[str]:
        """Every alias, for any run."""
        return list(self._targets)

    async def pick(
        self, alias: str, run_id: str, avoid: frozenset[str], holder: str | None
    ) -> CallTarget:
        """The alias's endpoint. Raises Refused for an unknown alias."""
        if alias not in self._targets:
            raise unknown_alias(alias, self.aliases(run_id))
        return self._targets[alias]

    def release(self, target: CallTarget, outcome: CallOutcome) -> None:
        """Nothing to count."""

    def retry(self, outcome: CallOutcome, attempt: int) -> float | None:
        """Never: the agent sees what the engine answered."""
        return None


def unknown_alias(alias: str, known: Sequence[str]) -> Refused:
    """The refusal for a model name the workflow does not declare."""
    names = ", ".join(known) or "none"
    message = f"model {alias!r} is not an LLM of this workflow; its LLMs are: {names}"
    return Refused(404, "model_not_found", message)


def reason_of(error: BaseException) -> str:
    """Why an endpoint gave no answer, in a few words."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        # asyncio's own text names the address again; the system's says what is wrong.
        number = error.os_error.errno
        return os.strerror(number) if number and number > 0 else str(error.os_error)
    return str(error) or type(error).__name__
