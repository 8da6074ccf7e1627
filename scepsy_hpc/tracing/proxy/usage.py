"""Token counts in answers of OpenAI-compatible servers, whole or streamed (server-sent events)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "text", "refusal", "tool_calls")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; None is unknown."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


def usage_of(answer: Any) -> Usage | None:
    """Usage in a whole answer or a stream event; None when it has none.

    Chat and completions say `prompt_tokens`, responses say `input_tokens`; rerankers may say only
    `total_tokens`, which then are all input.
    """
    if not isinstance(answer, dict):
        return None
    usage = answer.get("usage")
    if usage is None and isinstance(answer.get("response"), dict):
        usage = answer["response"].get("usage")
    if not isinstance(usage, dict):
        return None
    received = _count(usage, "prompt_tokens", "input_tokens")
    sent = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens")
    if received is None and total is not None:
        received = max(total - (sent or 0), 0)
    if sent is None and total is not None and received is not None:
        sent = max(total - received, 0)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, dict) else None
    return Usage(received, sent, cached)


def _count(source: dict[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = source.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


class StreamReader:
    """Reads usage, first token and errors out of a stream while its events pass through.

    With ``drop_usage`` the extra event that carries only the usage is taken out of the stream: the
    client did not ask for it.
    """

    def __init__(self, drop_usage: bool) -> None:
        """Start at the beginning of a stream."""
        self.usage: Usage | None = None
        self.error: str | None = None
        self.has_token = False
        self._drop_usage = drop_usage
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Bytes to pass on now: every event that is complete, as it came."""
        data = self._rest + chunk
        passed, start = [], 0
        for end in _EVENT_END.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            if self._keep(event):
                passed.append(event)
        self._rest = data[start:]
        return b"".join(passed)

    def close(self) -> bytes:
        """What was left without an event's end."""
        rest, self._rest = self._rest, b""
        return rest if rest and self._keep(rest) else b""

    def _keep(self, event: bytes) -> bool:
        # Parsing every token's event would cost more than passing it on.
        if self.has_token and b'"usage"' not in event and b'"error"' not in event:
            return True
        data = _event_data(event)
        if data is None:
            return True
        error = data.get("error")
        if error:
            message = error.get("message") if isinstance(error, dict) else error
            self.error = str(message)
        self.has_token = self.has_token or _carries_token(data)
        usage = usage_of(data)
        if usage is None:
            return True
        self.usage = usage
        return not (self._drop_usage and data.get("choices") == [])


def _event_data(event: bytes) -> dict[str, Any] | None:
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines))
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _carries_token(data: dict[str, Any]) -> bool:
    """Chat: a delta with text; completions: a text; responses: an `...delta` event."""
    if str(data.get("type", "")).endswith(".delta"):
        return True
    choices = data.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        part = (choice.get("delta") or choice) if isinstance(choice, dict) else {}
        if any(part.get(key) for key in _TEXT_KEYS):
            return True
    return False
