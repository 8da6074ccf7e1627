"""Prompts and answers as one text: the next turn begins with this one and its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import chunk

from scepsy_hpc.tracing.proxy.conversation import answer_in_stream, answer_of, prompt_of

CHAT = "chat/completions"
ASKED: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
}


def test_a_chat_begins_with_the_chat_so_far_and_its_answer() -> None:
    """Tools stand in front; nulls that clients add to the answer make no difference."""
    said = {"role": "assistant", "content": "Hello", "refusal": None, "tool_calls": []}
    answer = {"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}
    for tools in (None, [{"type": "function"}]):
        first = prompt_of(CHAT, ASKED | {"tools": tools})
        later = {"messages": [*ASKED["messages"], said, {"role": "user", "content": "more"}]}
        second = prompt_of(CHAT, later | {"tools": tools})
        assert first is not None
        assert second is not None
        assert second.startswith(first + answer_of(CHAT, answer))
        assert (b"function" in first) == bool(tools)


def test_a_text_goes_on_with_its_answer() -> None:
    """A list of one is the text itself; several say nothing."""
    answer = {"choices": [{"text": " and then"}]}
    first = prompt_of("completions", {"prompt": "Once"})
    assert first == prompt_of("completions", {"prompt": ["Once"]}) == b"Once"
    assert first + answer_of("completions", answer) == b"Once and then"
    assert prompt_of("completions", {"prompt": ["a", "b"]}) is None
    assert answer_of("completions", {"choices": [{"text": "a"}, {"text": "b"}]}) == b""


def test_token_ids_are_four_bytes_each() -> None:
    """Alone or in a list of one prompt."""
    ids = prompt_of("completions", {"prompt": [5, 2**40 + 1]})
    assert ids == b"\5\0\0\0\1\0\0\0"
    assert prompt_of("completions", {"prompt": [[5, 2**40 + 1]]}) == ids
    assert prompt_of("completions", {"prompt": [True]}) is None


@pytest.mark.parametrize("path", ["embeddings", "rerank", "score"])
def test_paths_without_a_prefix_cache(path: str) -> None:
    """They repeat nothing, whatever they hold."""
    assert prompt_of(path, {"input": "x", "prompt": "x", "messages": []}) is None


def test_responses_go_on_item_by_item() -> None:
    """A text is a user's message; calls of tools and their outputs are parts of their own."""
    first = prompt_of("responses", {"instructions": "Help.", "input": "hi"})
    items = [{"role": "user", "content": "hi"}, {"type": "function_call", "arguments": "{}"}]
    second = prompt_of("responses", {"instructions": "Help.", "input": items})
    other = prompt_of("responses", {"instructions": "Help.", "input": [items[0], {"a": 1}]})
    assert first is not None
    assert second is not None
    assert second.startswith(first)
    assert second != other
    assert prompt_of("responses", {"input": 3}) is None


def test_an_image_counts_as_little_text() -> None:
    """Two images differ, and neither is as long as its file."""
    images = [{"type": "image_url", "image_url": {"url": "data:" + c * 9000}} for c in "ab"]
    bodies = [{"messages": [{"role": "user", "content": [image]}]} for image in images]
    texts = [prompt_of(CHAT, body) for body in bodies]
    assert texts[0] != texts[1]
    assert all(text is not None and len(text) < 100 for text in texts)


def test_an_answer_streamed_is_the_answer_whole() -> None:
    """Quotes, escapes and characters beyond ASCII come out as in a whole answer."""
    pieces = ["", 'He said "no"', "\n\\ é ", "\U0001f600", "end"]
    text = "".join(pieces)
    for separators in ((", ", ": "), (",", ":")):
        events = []
        for piece in pieces:
            delta = {"role": "assistant", "reasoning_content": "hm", "content": piece}
            choice = {"index": 0, "delta": delta, "logprobs": {"content": [{"token": "t"}]}}
            data = json.dumps({"choices": [choice]}, separators=separators)
            events.append(f"data: {data}\n\n")
        events.append('data: {"choices": [], "usage": {"prompt_tokens": 3}}\n\ndata: [DONE]\n\n')
        stream = "".join(events).encode()
        whole = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        assert answer_in_stream(CHAT, {}, stream) == answer_of(CHAT, whole)
        plain = stream.replace(b'"content"', b'"text"')
        assert answer_in_stream("completions", {"n": 1}, plain) == text.encode()


def test_what_a_stream_does_not_tell_is_empty() -> None:
    """Several answers are mixed in a stream, calls of tools come in pieces, others have no text."""
    stream = chunk("a") + chunk("b")
    assert answer_in_stream(CHAT, {}, stream) == b"\0assistant\0ab"
    assert answer_in_stream(CHAT, {"n": 2}, stream) == b""
    called = stream + b'data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}\n\n'
    assert answer_in_stream(CHAT, {}, called) == b""
    assert answer_in_stream("responses", {}, stream) == b""


@pytest.mark.parametrize(
    "body", [{}, {"messages": None}, {"messages": "x"}, {"messages": 3}, {"prompt": {}}]
)
def test_a_body_that_makes_no_sense_repeats_nothing(body: dict[str, Any]) -> None:
    """It is the engine's to refuse."""
    assert prompt_of(CHAT, body) is None
    assert prompt_of("completions", body) is None


def test_odd_messages_are_kept_as_they_are() -> None:
    """Whatever stands in a message, and lone surrogates, makes a text and no error."""
    for messages in ([3], [{"role": "user", "content": 7}], [{"content": "\ud800"}], [[]]):
        assert prompt_of(CHAT, {"messages": messages})
    for answer in ({}, [], {"choices": [3]}, {"choices": [{"message": None}]}, None):
        assert answer_of(CHAT, answer) == answer_of("completions", answer) == b""
