"""OpenAI request bodies, checked by hand as far as the simulated engine looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scepsy_hpc.engines.simulated.answers import draw_length, rng_of, words
from scepsy_hpc.engines.simulated.batching import Sequence
from scepsy_hpc.engines.simulated.settings import Settings
from scepsy_hpc.engines.simulated.tokens import (
    Prompt,
    chain_of,
    chat_prompt,
    ids_prompt,
    text_prompt,
)

COMPLETION_MAX_TOKENS = 16
"""What the OpenAI API takes for ``max_tokens`` of a plain completion."""

MAX_CHOICES = 128


class ApiError(Exception):
    """An error in the shape OpenAI clients expect."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def bad(message: str, param: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, "BadRequestError", param)


@dataclass(frozen=True, slots=True)
class DrawnChoice:
    """One answer to come: what it will say, one piece a token, and why it will end."""

    sequence: Sequence
    pieces: tuple[str, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked chat or completion request; ``choices`` are ``num_choices`` for each prompt."""

    model: str
    prompt_tokens: int
    choices: tuple[DrawnChoice, ...]
    num_choices: int
    stream: bool
    include_usage: bool

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache; of several choices the first one looks."""
        return sum(c.sequence.cached_tokens or 0 for c in self.choices[:: self.num_choices])


def check_model(body: Any, settings: Settings) -> str:
    """The model asked for. Raises ApiError 400 for no object, 404 for a model not served."""
    if not isinstance(body, dict):
        raise bad("the body must be a JSON object")
    model = body.get("model", settings.served_names[0])
    if model not in settings.served_names:
        raise ApiError(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
    return str(model)


def parse_generation(body: Any, settings: Settings, chat: bool) -> Generation:
    """Check a chat or completion body and draw its answers. Raises ApiError."""
    model = check_model(body, settings)
    if chat:
        prompts = [_chat_prompt(body.get("messages"))]
        limit = _number(body, "max_completion_tokens") or _number(body, "max_tokens")
    else:
        prompts = text_inputs(body, "prompt")
        limit = _number(body, "max_tokens") or COMPLETION_MAX_TOKENS
    num_choices = _number(body, "n") or 1
    if num_choices > MAX_CHOICES:
        raise bad(f"n must be at most {MAX_CHOICES}; got {num_choices}", "n")
    choices = tuple(
        _choice(body, settings, choice_index, prompt, limit)
        for prompt in prompts
        for choice_index in range(num_choices)
    )
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise bad("stream_options must be an object", "stream_options")
    return Generation(
        model=model,
        prompt_tokens=sum(prompt.num_tokens for prompt in prompts),
        choices=choices,
        num_choices=num_choices,
        stream=bool(body.get("stream", False)),
        include_usage=bool(stream_options.get("include_usage", False)),
    )


def _choice(
    body: dict[str, Any],
    settings: Settings,
    choice_index: int,
    prompt: Prompt,
    limit: int | None,
) -> DrawnChoice:
    tokens = prompt.num_tokens
    room = settings.max_model_len - tokens
    if room < 1 or (limit or 0) > room:
        raise bad(
            f"This model's maximum context length is {settings.max_model_len} tokens; the prompt "
            f"has {tokens} and {limit or 1} are asked for."
        )
    rng = rng_of(settings.seed, settings.model_name, prompt.text, body.get("seed"), choice_index)
    allowed = limit or room
    low = min(_number(body, "min_tokens", lowest=0) or 1, allowed)
    if body.get("ignore_eos"):
        length, cut = limit or min(int(settings.output_tokens_mean), room), True
    else:
        length, cut = draw_length(rng, settings.output_tokens_mean, low, allowed)
    pieces = tuple(words(rng, length, allowed))
    reason = "length" if cut or length == limit else "stop"
    chain = chain_of(prompt, "".join(pieces)) if settings.prefix_caching else ()
    return DrawnChoice(Sequence(tokens, length, chain), pieces, reason)


def _chat_prompt(messages: Any) -> Prompt:
    if not isinstance(messages, list) or not messages:
        raise bad("messages must be a list of at least one message", "messages")
    said = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad(f"messages[{i}] must be an object with a role", "messages")
        said.append((message["role"], _content(message.get("content"), i)))
    return chat_prompt(said)


def _content(content: Any, index: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "\n".join(str(part.get("text", "")) for part in content)
    raise bad(f"messages[{index}].content must be text or a list of parts", "messages")


def text_inputs(body: dict[str, Any], key: str) -> list[Prompt]:
    """Prompts under a key that holds a text, texts, token ids, or lists of these.

    Raises ApiError.
    """
    value = body.get(key)
    if isinstance(value, str):
        return [text_prompt(value)]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return [text_prompt(item) for item in value]
        if all(type(item) is int for item in value):
            return [ids_prompt(value)]
        if all(isinstance(item, list) and item for item in value):
            return [ids_prompt(item) for item in value]
    raise bad(f"{key} must be text, a list of texts, or token ids", key)


def _number(body: dict[str, Any], key: str, lowest: int = 1) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not int or value < lowest:
        raise bad(f"{key} must be an integer of at least {lowest}; got {value!r}", key)
    return value
