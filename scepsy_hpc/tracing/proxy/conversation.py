"""Prompts and answers of the OpenAI API as one text each, in the order an engine reads them.

A conversation that goes on begins, byte for byte, with the conversation so far and its answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

MOST_STREAM_BYTES = 1 << 22
"""Of a longer stream the answer is not kept: a few ten thousand tokens."""

_CHAT_KEYS = ("name", "tool_calls", "tool_call_id")
_JSON_TEXT = rb'\s*:\s*"((?:[^"\\]|\\.)*)"'
_STREAMED = {
    "chat/completions": re.compile(rb'"content"' + _JSON_TEXT),
    "completions": re.compile(rb'"text"' + _JSON_TEXT),
}
_CALLS_TOOLS = re.compile(rb'"tool_calls"\s*:\s*\[\s*\{')


def prompt_of(path: str, body: Mapping[str, Any]) -> bytes | None:
    """What a request asks, in the order an engine reads it; None where no cache is shared.

    Of several prompts in one request nothing is said.
    """
    if path == "chat/completions":
        return _chat_text(body.get("tools"), body.get("messages"))
    if path == "responses":
        asked = body.get("input")
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        begin = {"role": "system", "content": body.get("instructions")}
        return _chat_text(body.get("tools"), [begin, *items] if isinstance(items, list) else None)
    if path != "completions":
        return None
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _bytes(prompt)
    if isinstance(prompt, list) and set(map(type, prompt)) == {int}:
        return b"".join((i & 0xFFFFFFFF).to_bytes(4, "little") for i in prompt)
    return None


def answer_of(path: str, answer: Any) -> bytes:
    """What a whole answer adds to its prompt; empty where that cannot be told."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return b""
    if path == "completions":
        text = choices[0].get("text")
        return _bytes(text) if isinstance(text, str) else b""
    message = choices[0].get("message")
    if path == "chat/completions" and isinstance(message, dict):
        return _message_text(message)
    return b""


def answer_in_stream(path: str, body: Mapping[str, Any], stream: bytes) -> bytes:
    """The same for all events of a stream, without reading each; empty also for tools' calls.

    ``body``: the request's.
    """
    if path not in _STREAMED or body.get("n") not in (None, 1) or _CALLS_TOOLS.search(stream):
        return b""
    try:
        text = json.loads(b'"' + b"".join(_STREAMED[path].findall(stream)) + b'"')
    except ValueError:
        return b""
    if path == "completions":
        return _bytes(text)
    return _message_text({"role": "assistant", "content": text})


def _chat_text(tools: Any, messages: Any) -> bytes | None:
    if not isinstance(messages, list):
        return None
    begin = [_bytes(json.dumps(tools))] if tools else []
    return b"".join(begin + [_message_text(message) for message in messages])


def _message_text(message: Any) -> bytes:
    """A message in one form, whatever its client writes beside what the engine reads."""
    if not isinstance(message, dict):
        return _bytes(json.dumps(message))
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    said = [f"\0{message.get('role')}\0", *(_part_text(part) for part in parts)]
    said += [json.dumps(message[key]) for key in _CHAT_KEYS if message.get(key)]
    if "role" not in message:  # an item of the responses API: a tool's call or its output
        said.append(json.dumps(message))
    return _bytes("".join(said))


def _part_text(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    # An image is not as many tokens as its file has bytes.
    return hashlib.blake2b(_bytes(json.dumps(part)), digest_size=16).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
