"""Requests and answers of the OpenAI API as the proxy reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from scepsy_hpc.tracing.proxy.router import CallTarget, Refused, unknown_alias

CALL_PATHS = frozenset(
    {"chat/completions", "completions", "embeddings", "rerank", "score", "responses"}
)
# Only these two stream usage on request; `responses` always ends with it.
_USAGE_PATHS = frozenset({"chat/completions", "completions"})
_ROLE_HEADER = "x-scepsy-role"
# Hop-by-hop headers (RFC 9110, 7.6.1), and what the proxy sets itself.
_NOT_FORWARDED = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
     "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "content-encoding",
     "accept-encoding", "authorization", "expect", "date", "server", _ROLE_HEADER}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an agent, read from its request."""

    run_id: str
    path: str
    alias: str
    body: dict[str, Any]
    raw: bytes
    headers: dict[str, str]
    role: str | None
    adds_usage: bool

    def sent_body(self, target: CallTarget) -> bytes:
        """Bytes for the endpoint: as they came unless model or stream options must differ."""
        if target.model == self.alias and not self.adds_usage:
            return self.raw
        body = {**self.body, "model": target.model}
        if self.adds_usage:
            options = body.get("stream_options")
            asked = options if isinstance(options, dict) else {}
            body["stream_options"] = {**asked, "include_usage": True}
        return json.dumps(body).encode()

    def sent_headers(self, target: CallTarget) -> dict[str, str]:
        """The agent's headers with the endpoint's key in place of the agent's."""
        return {**self.headers, "Accept-Encoding": "identity", **target.headers}


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that go through the proxy."""
    return {k: v for k, v in headers.items() if k.lower() not in _NOT_FORWARDED}


def check_path(method: str, path: str) -> None:
    """Raise Refused unless the proxy serves ``method`` on ``path`` (below `/v1/`)."""
    is_models = path == "models" or path.startswith("models/")
    if not is_models and path not in CALL_PATHS:
        known = ", ".join(sorted(CALL_PATHS | {"models"}))
        raise Refused(404, "not_found", f"no such path: /v1/{path}; known: {known}")
    allowed = "GET" if is_models else "POST"
    if method != allowed:
        raise Refused(405, "method_not_allowed", f"/v1/{path} takes {allowed}, not {method}")


def read_call(
    run_id: str, path: str, headers: Mapping[str, str], raw: bytes, aliases: Sequence[str]
) -> Call:
    """Read a request. Raises Refused: not a JSON object, no model, a model that is no alias."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise Refused(400, "invalid_json", "the request's body is not JSON") from None
    except RecursionError:
        raise Refused(400, "invalid_json", "the request's body is nested too deep") from None
    if not isinstance(body, dict):
        raise Refused(400, "invalid_json", "the request's body must be a JSON object")
    alias = body.get("model")
    if not isinstance(alias, str) or not alias:
        names = ", ".join(aliases)
        raise Refused(400, "missing_model", f"model: must name an LLM of the workflow: {names}")
    if alias not in aliases:
        raise unknown_alias(alias, aliases)
    options = body.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    streams = body.get("stream") is True and path in _USAGE_PATHS
    return Call(
        run_id=run_id,
        path=path,
        alias=alias,
        body=body,
        raw=raw,
        headers=forwarded(headers),
        role=headers.get(_ROLE_HEADER) or None,
        adds_usage=streams and not asked,
    )


def models_response(aliases: Sequence[str], path: str) -> web.Response:
    """The answer to `GET /v1/models` or `/v1/models/<alias>`. Raises Refused."""
    found = [{"id": a, "object": "model", "created": 0, "owned_by": "scepsy"} for a in aliases]
    alias = path.removeprefix("models").strip("/")
    if not alias:
        return web.json_response({"object": "list", "data": found})
    if alias not in aliases:
        raise unknown_alias(alias, aliases)
    return web.json_response(next(m for m in found if m["id"] == alias))


def error_body(http_status: int, code: str, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if http_status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(http_status: int, code: str, message: str) -> web.Response:
    """An error answer of the proxy itself."""
    return web.json_response(error_body(http_status, code, message), status=http_status)
