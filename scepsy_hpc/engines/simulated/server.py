"""HTTP side of the simulated engine: the OpenAI routes that vLLM serves, and its health page."""

from __future__ import annotations

import hmac
import json
import logging
import time
import uuid
from functools import partial
from typing import Any

from aiohttp import web

from scepsy_hpc import __version__
from scepsy_hpc.engines.simulated.answers import encode_vector, relevance, rng_of, vector
from scepsy_hpc.engines.simulated.batching import Sequence
from scepsy_hpc.engines.simulated.host import EngineLoop, QueueFullError, Ticket
from scepsy_hpc.engines.simulated.requests import (
    ApiError,
    Generation,
    bad,
    check_model,
    parse_generation,
    text_inputs,
)
from scepsy_hpc.engines.simulated.settings import Settings
from scepsy_hpc.engines.simulated.tokens import Prompt

ENGINE_HEADER = "x-scepsy-engine"
MAX_REQUEST_BYTES = 64 * 2**20
EMBEDDING_SIZE = 256

SETTINGS = web.AppKey("settings", Settings)
HOST = web.AppKey("host", EngineLoop)

_log = logging.getLogger(__name__)


def serve_engine(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    web.run_app(
        make_app(settings),
        host=host,
        port=port,
        access_log=None,
        print=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
    )


def make_app(settings: Settings) -> web.Application:
    """The application; its engine starts with it."""
    app = web.Application(middlewares=[_errors, _key], client_max_size=MAX_REQUEST_BYTES)
    app[SETTINGS] = settings
    app.on_startup.append(_start)
    app.on_response_prepare.append(_sign)
    app.router.add_get("/health", _health)
    app.router.add_get("/version", _version)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", partial(_generate, chat=True))
    app.router.add_post("/v1/completions", partial(_generate, chat=False))
    app.router.add_post("/v1/embeddings", _embeddings)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        app.router.add_post(path, _rerank)
    for path in ("/score", "/v1/score"):
        app.router.add_post(path, _score)
    return app


async def _start(app: web.Application) -> None:
    app[HOST] = EngineLoop(app[SETTINGS])


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[ENGINE_HEADER] = request.app[SETTINGS].header


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error in OpenAI's shape."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except ApiError as error:
        shape = error
    except QueueFullError:
        shape = ApiError(503, "The queue is full; try again later.", "ServiceUnavailableError")
    except web.HTTPException as error:
        shape = ApiError(error.status, error.reason, "NotFoundError")
    except ConnectionResetError:
        raise  # the caller has gone: nobody is left to answer
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        shape = ApiError(500, "internal error of the simulated engine", "InternalServerError")
    return web.json_response(shape.body, status=shape.status)


@web.middleware
async def _key(request: web.Request, handler: Any) -> web.StreamResponse:
    """The API key guards /v1 only, as in vLLM."""
    key = request.app[SETTINGS].api_key
    if key is not None and request.path.startswith("/v1"):
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise ApiError(401, "Unauthorized: wrong or missing API key.", "AuthenticationError")
    answer: web.StreamResponse = await handler(request)
    return answer


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError:
        raise bad("the body is not JSON") from None


async def _health(request: web.Request) -> web.Response:
    return web.Response()


async def _version(request: web.Request) -> web.Response:
    settings = request.app[SETTINGS]
    return web.json_response(
        {"version": __version__, "engine": "simulated", "timing": settings.timing}
    )


async def _metrics(request: web.Request) -> web.Response:
    page = request.app[HOST].text_metrics()
    return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4"})


async def _models(request: web.Request) -> web.Response:
    settings = request.app[SETTINGS]
    models = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "scepsy-simulated",
            "root": settings.model_name,
            "max_model_len": settings.max_model_len,
        }
        for name in settings.served_names
    ]
    return web.json_response({"object": "list", "data": models})


async def _generate(request: web.Request, chat: bool) -> web.StreamResponse:
    asked = parse_generation(await _body(request), request.app[SETTINGS], chat)
    host = request.app[HOST]
    ticket = host.submit([choice.sequence for choice in asked.choices], asked.stream)
    head = _head(asked, chat)
    if asked.stream:
        try:
            return await _stream(request, host, ticket, asked, head, chat)
        finally:
            host.release(ticket)
    await host.finish(ticket)
    choices = []
    for index, choice in enumerate(asked.choices):
        text = "".join(choice.pieces)
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices.append(
            {"index": index, **said, "logprobs": None, "finish_reason": choice.finish_reason}
        )
    return web.json_response({**head, "choices": choices, "usage": _usage(asked)})


def _head(asked: Generation, chat: bool) -> dict[str, Any]:
    kind = "chat.completion" if chat else "text_completion"
    prefix = "chatcmpl" if chat else "cmpl"
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": f"{kind}.chunk" if chat and asked.stream else kind,
        "created": int(time.time()),
        "model": asked.model,
    }


def _usage(asked: Generation) -> dict[str, Any]:
    generated = sum(choice.sequence.output_tokens for choice in asked.choices)
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": asked.prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": asked.cached_tokens},
    }


async def _stream(
    request: web.Request,
    host: EngineLoop,
    ticket: Ticket,
    asked: Generation,
    head: dict[str, Any],
    chat: bool,
) -> web.StreamResponse:
    """Server-sent events; pieces that fell due since the last wake travel in one chunk."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    sent = [0] * len(asked.choices)
    done = False
    while not done:
        await host.progress(ticket)
        done = ticket.done
        events = []
        for index, choice in enumerate(asked.choices):
            upto = host.batch.num_generated(choice.sequence)
            if upto > sent[index]:
                text = "".join(choice.pieces[sent[index] : upto])
                last = upto == len(choice.pieces)
                reason = choice.finish_reason if last else None
                events.append(_chunk(head, index, text, reason, chat, sent[index] == 0))
                sent[index] = upto
        if events:
            await response.write(b"".join(events))
    if asked.include_usage:
        await response.write(_event({**head, "choices": [], "usage": _usage(asked)}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _chunk(
    head: dict[str, Any], index: int, text: str, reason: str | None, chat: bool, first: bool
) -> bytes:
    role = {"role": "assistant"} if first else {}
    said: dict[str, Any] = {"delta": {**role, "content": text}} if chat else {"text": text}
    choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
    return _event({**head, "choices": [choice]})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def _prefill(request: web.Request, token_counts: list[int]) -> None:
    """Run prompts that generate nothing; they share no prefix. Raises ApiError, QueueFullError."""
    settings, host = request.app[SETTINGS], request.app[HOST]
    longest = max(token_counts)
    if longest >= settings.max_model_len:
        raise bad(
            f"This model's maximum context length is {settings.max_model_len} tokens; an input "
            f"has {longest}."
        )
    await host.finish(host.submit([Sequence(count, 1) for count in token_counts], stream=False))


def _prompt_usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


async def _embeddings(request: web.Request) -> web.Response:
    body, settings = await _body(request), request.app[SETTINGS]
    model = check_model(body, settings)
    inputs = text_inputs(body, "input")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise bad(f"encoding_format must be float or base64; got {encoding!r}", "encoding_format")
    size = body.get("dimensions") or EMBEDDING_SIZE
    if type(size) is not int or not 1 <= size <= 8192:
        raise bad(f"dimensions must be an integer of 1 to 8192; got {size!r}", "dimensions")
    await _prefill(request, [prompt.num_tokens for prompt in inputs])
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": encode_vector(vector(rng_of(settings.seed, prompt.text), size), encoding),
        }
        for index, prompt in enumerate(inputs)
    ]
    usage = _prompt_usage(sum(prompt.num_tokens for prompt in inputs))
    return web.json_response({"object": "list", "data": data, "model": model, "usage": usage})


def _relevance(settings: Settings, query: Prompt, document: Prompt) -> float:
    rng = rng_of(settings.seed, query.text, document.text)
    return relevance(query.text, document.text, rng)


async def _rerank(request: web.Request) -> web.Response:
    body, settings = await _body(request), request.app[SETTINGS]
    model = check_model(body, settings)
    query, *more = text_inputs(body, "query")
    documents = text_inputs(body, "documents")
    if more:
        raise bad("query must be one text", "query")
    counts = [query.num_tokens + document.num_tokens for document in documents]
    await _prefill(request, counts)
    results = [
        {
            "index": index,
            "document": {"text": document.text},
            "relevance_score": _relevance(settings, query, document),
        }
        for index, document in enumerate(documents)
    ]
    results.sort(key=lambda result: -float(str(result["relevance_score"])))
    top = body.get("top_n") or len(results)
    if type(top) is not int or top < 1:
        raise bad(f"top_n must be an integer of at least 1; got {top!r}", "top_n")
    answer = {"id": f"rerank-{uuid.uuid4().hex}", "model": model, "results": results[:top]}
    return web.json_response({**answer, "usage": _prompt_usage(sum(counts))})


async def _score(request: web.Request) -> web.Response:
    body, settings = await _body(request), request.app[SETTINGS]
    model = check_model(body, settings)
    left, right = text_inputs(body, "text_1"), text_inputs(body, "text_2")
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise bad(f"text_1 has {len(left)} texts, text_2 {len(right)}; one or as many", "text_1")
    counts = [a.num_tokens + b.num_tokens for a, b in zip(left, right, strict=True)]
    await _prefill(request, counts)
    data = [
        {"index": i, "object": "score", "score": _relevance(settings, a, b)}
        for i, (a, b) in enumerate(zip(left, right, strict=True))
    ]
    answer = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    usage = _prompt_usage(sum(counts))
    return web.json_response({**answer, "model": model, "data": data, "usage": usage})
