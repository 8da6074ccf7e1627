"""The recording proxy, between a real client and a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import openai
import pytest
from fake_engine import USAGE, FakeEngine, chunk

from scepsy_hpc.formats.spans import Span
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy
from scepsy_hpc.tracing.proxy.router import CallOutcome, CallTarget, FixedRouter
from scepsy_hpc.tracing.proxy.usage import StreamReader

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def client_of(proxy: RecordingProxy, run_id: str = "r1", key: str = "agent") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=proxy.base_url(run_id), api_key=key, max_retries=0)


def with_proxy(
    test: Callable[[FakeEngine, RecordingProxy, list[Span]], Awaitable[None]],
    model: str = "served",
    **options: Any,
) -> list[Span]:
    """Run ``test`` between one engine and one proxy whose alias is `writer`; return the spans."""
    spans: list[Span] = []

    async def main() -> None:
        async with FakeEngine() as engine:
            router = FixedRouter(
                {"writer": CallTarget(engine.base_url, model, "w-0", "engine-key")}
            )
            async with RecordingProxy(router, spans.append, **options) as proxy:
                await asyncio.wait_for(test(engine, proxy, spans), 30)

    asyncio.run(main())
    return spans


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_chat_is_passed_on_and_recorded() -> None:
    """A chat call reaches the served model with the engine's key, and leaves one full span."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        async with client_of(proxy) as client:
            answer = await client.chat.completions.create(
                model="writer", messages=MESSAGES, extra_headers={"x-scepsy-role": "answer"}
            )
        assert answer.choices[0].message.content == "hello"
        assert engine.bodies == [{"model": "served", "messages": MESSAGES}]
        assert engine.keys == ["Bearer engine-key"]

    (span,) = with_proxy(test, workflow_of={"r1": "rag"}.get)
    assert (span.run_id, span.kind, span.llm, span.status) == ("r1", "llm", "writer", "ok")
    assert (span.role, span.workflow, span.host) == ("answer", "rag", "w-0")
    assert (span.input_tokens, span.output_tokens, span.cached_tokens) == (11, 3, 8)
    assert span.duration_s > 0
    assert span.ttft_s is None


@pytest.mark.parametrize("asks", [False, True])
def test_streams_are_counted_whether_or_not_the_client_asks(asks: bool) -> None:
    """Usage of a stream is recorded always, and shown to the client only if it asked for it."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        options: Any = {"stream_options": {"include_usage": True}} if asks else {}
        async with client_of(proxy) as client:
            stream = await client.chat.completions.create(
                model="writer", messages=MESSAGES, stream=True, **options
            )
            chunks = [c async for c in stream]
        texts = [c.choices[0].delta.content for c in chunks if c.choices]
        assert texts == ["one", "two"]
        assert [c.usage.prompt_tokens for c in chunks if c.usage] == ([11] if asks else [])
        assert engine.bodies[0]["stream_options"] == {"include_usage": True}

    (span,) = with_proxy(test)
    assert (span.status, span.input_tokens, span.output_tokens) == ("ok", 11, 3)
    assert span.ttft_s is not None
    assert 0 < span.ttft_s <= span.duration_s


def test_a_stream_is_passed_on_at_once() -> None:
    """The client has the first token while the engine still waits to send the second."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        engine.go_on.clear()
        async with client_of(proxy) as client:
            stream = await client.chat.completions.create(
                model="writer", messages=MESSAGES, stream=True
            )
            first = await anext(stream)
            assert first.choices[0].delta.content == "one"
            engine.go_on.set()
            assert len([c async for c in stream]) == 1

    with_proxy(test)


@pytest.mark.parametrize(
    ("path", "tokens"),
    [("embeddings", (7, 0)), ("score", (7, 0)), ("rerank", (9, 0)), ("responses", (5, 2)),
     ("completions", (11, 3))],
)  # fmt: skip
def test_other_calls_are_recorded(path: str, tokens: tuple[int, int]) -> None:
    """Every kind of call is passed on to its path and its tokens are read."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        status, _ = await post(proxy, path, {"model": "writer", "input": "x"})
        assert status == 200
        assert engine.paths == [path]

    (span,) = with_proxy(test)
    assert (span.input_tokens, span.output_tokens) == tokens


async def post(proxy: RecordingProxy, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{proxy.base_url('r1')}/{path}", json=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("chat/completions", {"model": "gpt-4"}, 404, "'gpt-4' is not an LLM of this workflow; "
         "its LLMs are: writer"),
        ("chat/completions", {"messages": []}, 400, "must name an LLM of the workflow: writer"),
        ("chat/completions", [1], 400, "must be a JSON object"),
        ("audio/speech", {"model": "writer"}, 404, "no such path: /v1/audio/speech; known: chat/"),
        ("models", {}, 405, "/v1/models takes GET, not POST"),
    ],
)  # fmt: skip
def test_wrong_requests_get_an_openai_error(path: str, body: Any, status: int, says: str) -> None:
    """What the proxy refuses itself is an OpenAI-shaped error, and no call of the workflow."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        got_status, answer = await post(proxy, path, body)
        assert got_status == status
        assert says in answer["error"]["message"]
        assert engine.bodies == []

    assert with_proxy(test) == []


def test_a_path_outside_a_run_names_the_base_url() -> None:
    """Someone who forgot the run id is told what the base URL looks like."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        address = proxy.base_url("r1").replace("/r/r1", "") + "/models"
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            assert answer.status == 404
            assert "/r/<run_id>/v1" in (await answer.json())["error"]["message"]

    with_proxy(test)


def test_models_lists_the_aliases() -> None:
    """`models` names the aliases, not what the engines call themselves."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        async with client_of(proxy) as client:
            assert [m.id async for m in client.models.list()] == ["writer"]
            assert (await client.models.retrieve("writer")).id == "writer"
            with pytest.raises(openai.NotFoundError, match="its LLMs are: writer"):
                await client.models.retrieve("other")

    with_proxy(test)


def test_only_the_agents_key_opens_the_proxy() -> None:
    """With a key set, a call with another one is refused and goes nowhere."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        async with client_of(proxy, key="wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="OPENAI_API_KEY"):
                await client.chat.completions.create(model="writer", messages=MESSAGES)
        async with client_of(proxy, key="agent") as client:
            await client.chat.completions.create(model="writer", messages=MESSAGES)

    assert len(with_proxy(test, api_key="agent")) == 1


def test_an_engines_error_is_passed_through() -> None:
    """Status, body and retry-after of an engine's refusal reach the client as they were."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        engine.status, engine.headers = 503, {"Retry-After": "7"}
        async with client_of(proxy) as client:
            with pytest.raises(openai.InternalServerError, match="told to fail") as caught:
                await client.chat.completions.create(model="writer", messages=MESSAGES)
            assert caught.value.response.headers["retry-after"] == "7"
            engine.status = 400
            with pytest.raises(openai.BadRequestError, match="told to fail"):
                await client.chat.completions.create(model="writer", messages=MESSAGES)

    assert [s.status for s in with_proxy(test)] == ["overloaded", "error_400"]


def test_an_unreachable_endpoint_is_named() -> None:
    """No engine at the address: a 502 that names LLM and address, and a span that says so."""
    spans: list[Span] = []
    address = f"http://127.0.0.1:{free_port()}"

    async def main() -> None:
        router = FixedRouter({"writer": CallTarget(address, "m")})
        async with RecordingProxy(router, spans.append) as proxy, client_of(proxy) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="writer", messages=MESSAGES)
            assert caught.value.status_code == 502
            assert f"LLM 'writer' at {address} cannot be reached" in str(caught.value)

    asyncio.run(main())
    assert [s.status for s in spans] == ["unreachable"]


class TwoReplicas:
    """Takes the first replica until it is to be avoided; tries three times."""

    def __init__(self, *addresses: str) -> None:
        self.targets = [CallTarget(a, "m", f"w-{i}") for i, a in enumerate(addresses)]
        self.released: list[tuple[str, str]] = []
        self.holders: list[str | None] = []

    def aliases(self, run_id: str) -> list[str]:
        return ["writer"]

    async def pick(
        self, alias: str, run_id: str, avoid: frozenset[str], holder: str | None
    ) -> CallTarget:
        self.holders.append(holder)
        return next(t for t in self.targets if t.name not in avoid)

    def release(self, target: CallTarget, outcome: CallOutcome) -> None:
        self.released.append((target.name, outcome.status))

    def retry(self, outcome: CallOutcome, attempt: int) -> float | None:
        retried = outcome.status in ("unreachable", "overloaded", "broken_off")
        return 0.02 if retried and attempt < 3 else None


@pytest.mark.parametrize("fault", ["overloaded", "unreachable", "broken_off"])
def test_the_router_may_try_another_replica(fault: str) -> None:
    """A call that failed before a byte went out is sent to the replica the router picks next; both
    attempts are spans, the second from the end of the first."""
    spans: list[Span] = []

    async def main() -> None:
        async with FakeEngine(status=503) as bad, FakeEngine() as good:
            address = bad.base_url
            if fault == "unreachable":
                address = f"http://127.0.0.1:{free_port()}/v1"
            if fault == "broken_off":
                address = await broken_server(servers)
            router = TwoReplicas(address, good.base_url)
            async with RecordingProxy(router, spans.append) as proxy, client_of(proxy) as client:
                answer = await client.chat.completions.create(model="writer", messages=MESSAGES)
            assert answer.choices[0].message.content == "hello"
            assert router.released == [("w-0", fault), ("w-1", "ok")]
        for server in servers:
            server.close()
            await server.wait_closed()

    servers: list[asyncio.Server] = []
    asyncio.run(main())
    assert [s.status for s in spans] == [f"retried_{fault}", "ok"]
    assert spans[1].start_s == spans[0].end_s


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_engine_is_given_up_is_tried_elsewhere(stream: bool) -> None:
    """The engine accepts and never answers; cut off, the call goes to the other replica.

    Of a stream only where no event of it went out: else the client is told that the rest is lost.
    """
    spans: list[Span] = []

    async def main() -> None:
        async with FakeEngine() as hung, FakeEngine() as good:
            hung.go_on.clear()
            router = TwoReplicas(hung.base_url, good.base_url)
            wire = router.targets[0].wire
            async with RecordingProxy(router, spans.append) as proxy, client_of(proxy) as client:
                asking = asyncio.create_task(ask(client, stream))
                while not hung.bodies or (stream and wire.last_byte_s is None):
                    await asyncio.sleep(0.01)
                wire.cut()
                answer = await asking
                wire.cut()
            assert answer == ("one, lost" if stream else "hello")
            assert (wire.last_byte_s is not None) == stream
            assert (router.targets[1].wire.last_byte_s is None) == stream

    asyncio.run(main())
    wanted = ["broken_off"] if stream else ["retried_unreachable", "ok"]
    assert [s.status for s in spans] == wanted


async def ask(client: openai.AsyncOpenAI, stream: bool) -> str:
    """What a client got: the answer, or pieces of a stream and `lost` where it broke off."""
    if not stream:
        whole = await client.chat.completions.create(model="writer", messages=MESSAGES)
        return str(whole.choices[0].message.content)
    pieces = []
    try:
        async for event in await client.chat.completions.create(
            model="writer", messages=MESSAGES, stream=True
        ):
            pieces += [str(choice.delta.content) for choice in event.choices]
    except openai.APIError as error:
        pieces.append("lost" if "its engine was given up" in str(error) else str(error))
    return ", ".join(pieces)


def test_an_error_is_no_sign_of_life() -> None:
    """An engine that only ever refuses does no work."""

    async def main() -> None:
        async with FakeEngine(status=500) as engine:
            target = CallTarget(engine.base_url, "m")
            router = FixedRouter({"writer": target})
            async with RecordingProxy(router, print) as proxy, client_of(proxy) as client:
                with pytest.raises(openai.InternalServerError):
                    await client.chat.completions.create(model="writer", messages=MESSAGES)
            assert target.wire.last_byte_s is None

    asyncio.run(main())


def test_connections_to_engines_notice_a_silent_node() -> None:
    """Keepalive within half a minute, on the socket that is really used."""
    found: list[int] = []

    async def main() -> None:
        async with FakeEngine() as engine:
            router = FixedRouter({"writer": CallTarget(engine.base_url, "m")})
            async with RecordingProxy(router, print) as proxy:
                port = int(engine.base_url.split(":")[2].split("/")[0])
                engine.on_call = lambda: found.extend(options_towards(port))
                async with client_of(proxy) as client:
                    await client.chat.completions.create(model="writer", messages=MESSAGES)

    asyncio.run(main())
    assert found == [1, 15, 5, 4, 35_000]


def options_towards(port: int) -> list[int]:
    """What is set on this process's one connection to that port."""
    found: list[list[int]] = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, IndexError):
            mine = socket.socket(fileno=os.dup(int(name)))
            with mine:
                if mine.getpeername()[1] == port:
                    tcp = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
                    found.append(
                        [mine.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
                        + [mine.getsockopt(socket.IPPROTO_TCP, getattr(socket, o)) for o in tcp]
                    )
    (options,) = found
    return options


async def broken_server(servers: list[asyncio.Server]) -> str:
    """A server that closes the connection in the middle of a whole (not streamed) answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    servers.append(server)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_the_engine(stream: bool) -> None:
    """When the agent closes its connection the engine's call is cancelled, and the span says so."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        engine.go_on.clear()
        called = asyncio.Event()
        engine.on_call = called.set
        body = {"model": "writer", "messages": MESSAGES, "stream": stream}
        job = asyncio.create_task(post(proxy, "chat/completions", body))
        await called.wait()
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        while engine.num_cancelled == 0 or not spans:
            await asyncio.sleep(0.01)

    (span,) = with_proxy(test)
    assert span.status == "cancelled"


def test_a_stream_that_breaks_off_ends_in_an_error() -> None:
    """An engine that dies in mid-stream: the client has its first token, then a clear error."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        engine.go_on.clear()
        engine.break_off = True
        async with client_of(proxy) as client:
            stream = await client.chat.completions.create(
                model="writer", messages=MESSAGES, stream=True
            )
            assert (await anext(stream)).choices[0].delta.content == "one"
            engine.go_on.set()
            with pytest.raises(openai.APIError, match=r"LLM 'writer' at http://127.* broke off"):
                await anext(stream)

    (span,) = with_proxy(test)
    assert span.status == "broken_off"


def test_large_bodies_and_many_calls_pass() -> None:
    """A 20 MB prompt and 200 calls at once pass, each with its own span id."""

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        big = json.dumps({"model": "writer", "input": "x" * 20_000_000}).encode()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            address = f"{proxy.base_url('r1')}/embeddings"
            async with session.post(address, data=io.BytesIO(big)) as answer:
                assert answer.status == 200
            assert len(engine.bodies[0]["input"]) == 20_000_000
            engine.go_on.clear()
            address = f"{proxy.base_url('r1')}/chat/completions"
            jobs = [session.post(address, json={"model": "writer"}) for _ in range(200)]
            answers = asyncio.gather(*jobs)
            while len(engine.bodies) < 201:
                await asyncio.sleep(0.01)
            engine.go_on.set()
            assert {a.status for a in await answers} == {200}

    spans = with_proxy(test, model="writer")
    assert len({s.span_id for s in spans}) == 201


def test_stop_cancels_calls_in_flight() -> None:
    """Stopping the proxy ends the calls it holds instead of waiting for them."""
    spans: list[Span] = []

    async def main() -> None:
        async with FakeEngine() as engine:
            engine.go_on.clear()
            called = asyncio.Event()
            engine.on_call = called.set
            proxy = RecordingProxy(
                FixedRouter({"writer": CallTarget(engine.base_url, "m")}), spans.append
            )
            await proxy.start()
            job = asyncio.create_task(post(proxy, "chat/completions", {"model": "writer"}))
            await called.wait()
            await asyncio.wait_for(proxy.stop(), 20)
            assert isinstance((await asyncio.gather(job, return_exceptions=True))[0], Exception)

    asyncio.run(main())
    assert [s.status for s in spans] == ["cancelled"]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_stream_reader_takes_any_cut(end: bytes) -> None:
    """Wherever the network cuts a stream, the events and the usage that come out are the same."""
    usage = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    text = (chunk('say "usage"') + chunk("b") + usage + b"data: [DONE]\n\n").replace(b"\n\n", end)
    kept = (chunk('say "usage"') + chunk("b") + b"data: [DONE]\n\n").replace(b"\n\n", end)
    for size in (1, 2, 3, 7, 50, len(text)):
        reader = StreamReader(drop_usage=True)
        parts = [reader.feed(text[i : i + size]) for i in range(0, len(text), size)]
        assert b"".join(parts) + reader.close() == kept
        assert reader.usage is not None
        assert reader.usage.output_tokens == 3
        assert reader.has_token


def test_stream_reader_sees_an_error_inside_a_stream() -> None:
    """An engine that reports an error in a stream that began with 200 is not taken for ok."""
    reader = StreamReader(drop_usage=False)
    reader.feed(chunk("a") + b'data: {"error": {"message": "out of memory"}}\n\n')
    assert reader.error == "out of memory"


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_that_goes_on_names_the_call_before(stream: bool) -> None:
    """`prefix_of` counts the first prompt and its answer; another run repeats nothing."""
    question = {"role": "user", "content": "q" * 500}

    async def test(engine: FakeEngine, proxy: RecordingProxy, spans: list[Span]) -> None:
        async with client_of(proxy) as client, client_of(proxy, "r2") as other:
            first: Any = await client.chat.completions.create(
                model="writer", messages=[question], stream=stream
            )
            if stream:
                said = "".join([c.choices[0].delta.content async for c in first if c.choices])
            else:
                said = first.choices[0].message.content
            assert said == ("onetwo" if stream else "hello")
            turn = [question, {"role": "assistant", "content": said}, question]
            await client.chat.completions.create(model="writer", messages=turn)
            await other.chat.completions.create(model="writer", messages=turn)

    first, second, other = with_proxy(test)
    assert (first.prefix_of, other.prefix_of) == (None, None)
    assert second.prefix_of is not None
    assert second.prefix_of.span_id == first.span_id
    # 11 tokens by the engine's count; 512 of some 1030 bytes repeat, of which 506 are the question.
    assert second.prefix_of.tokens == 11 * 512 // (
        2 * 506 + len("\0assistant\0") + len(SAID[stream])
    )


SAID = {False: "hello", True: "onetwo"}


def test_a_call_tried_again_repeats_what_came_before_it_and_not_itself() -> None:
    """The first attempt failed: the second does not continue it, and a later call continues the
    second; the router is told who holds the prompt."""
    spans: list[Span] = []
    message: Any = [{"role": "user", "content": "q" * 500}]

    async def main() -> None:
        async with FakeEngine(status=503) as bad, FakeEngine() as good:
            router = TwoReplicas(bad.base_url, good.base_url)
            async with RecordingProxy(router, spans.append) as proxy, client_of(proxy) as client:
                for _ in range(2):
                    await client.chat.completions.create(model="writer", messages=message)
            assert router.holders == [None, None, "w-1", "w-1"]

    asyncio.run(main())
    assert [s.status for s in spans] == ["retried_overloaded", "ok"] * 2
    assert [s.prefix_of and s.prefix_of.span_id for s in spans] == [
        *(None, None, None, spans[1].span_id)
    ]
