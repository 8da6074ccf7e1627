"""The simulated engine as a real server process, driven by the openai client and by aiohttp."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from scepsy_hpc.bundles.engine_model import fit_bundle
from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.simulated.command import simulated_command
from scepsy_hpc.engines.simulated.requests import ApiError, parse_generation
from scepsy_hpc.engines.simulated.settings import Settings
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import load_bundle

TIMING = "h100_sxm/Qwen__Qwen3-0.6B/vllm-0.24.0/token-grid"
KEY = "a-key-for-tests"


def _config(port: int, **changes: Any) -> EngineConfig:
    config = EngineConfig(
        instance_id="i0",
        engine="simulated",
        model="Qwen/Qwen3-0.6B",
        served_names=("writer", "judge"),
        gpu_type="h100_sxm",
        gpu_memory_gib=80.0,
        gpus=("0",),
        port=port,
        log_path=Path("unused"),
        engine_args={"timing_bundle": TIMING, "seed": 7},
    )
    return replace(config, **changes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _server(key: str = "", **changes: Any) -> Iterator[str]:
    """Run a server process; yields its base URL. It must end by SIGTERM with exit code 0."""
    port = _free_port()
    process = subprocess.Popen(
        simulated_command(_config(port, **changes)),
        env=os.environ | {"VLLM_API_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        asyncio.run(_healthy(url, process))
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


async def _healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until and process.poll() is None:
            try:
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise AssertionError(f"the server did not come up (exit code {process.poll()})")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One server for the tests that need no options of their own."""
    with _server(key=KEY) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The openai client with the right key and no retries."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def _request(url: str, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    """Status, headers and body (JSON where it is) of one request."""

    async def send() -> tuple[int, Any, Any]:
        options.setdefault("headers", {"Authorization": f"Bearer {KEY}"})
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url + path, **options) as answer,
        ):
            if answer.content_type == "application/json":
                return answer.status, answer.headers, await answer.json()
            return answer.status, answer.headers, await answer.text()

    return asyncio.run(send())


def _ask(client: openai.OpenAI, text: str = "What is a river?", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="writer", messages=messages, **options)


def test_chat_counts_and_forces_tokens(client: openai.OpenAI) -> None:
    """ignore_eos gives exactly max_tokens, and usage adds up."""
    answer = _ask(client, max_tokens=37, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 37
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 37
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].message.content.split()) == 37


def test_answers_repeat(client: openai.OpenAI) -> None:
    """The same prompt gets the same words and length; another prompt gets others."""
    first, again, other = (_ask(client, text) for text in ("one", "one", "two"))
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content


def test_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    """Streamed pieces join to the answer of the same call without streaming, usage included."""
    whole = _ask(client, max_completion_tokens=60)
    chunks = list(
        _ask(
            client,
            max_completion_tokens=60,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.usage for c in chunks if c.usage is not None] == [whole.usage]
    assert chunks[-1].choices == []
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])


def test_a_conversation_that_goes_on_is_cached_and_usage_says_so(
    client: openai.OpenAI, url: str
) -> None:
    """The second turn finds the first with its answer: all but what is new and the last block."""
    question = {"role": "user", "content": "Of rivers and of their sources in the hills. " * 20}
    first: Any = client.chat.completions.create(
        model="writer", messages=[question], max_tokens=40, extra_body={"ignore_eos": True}
    )
    said = {"role": "assistant", "content": first.choices[0].message.content}
    before = _metric(url, "vllm:prefix_cache_hits_total")
    queried = _metric(url, "vllm:prefix_cache_queries_total")
    chunks: Any = client.chat.completions.create(
        model="writer",
        messages=[question, said, {"role": "user", "content": "And then?"}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = next(chunk.usage for chunk in chunks if chunk.usage is not None)
    cached = usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert known - 16 < cached <= known
    assert cached % 16 == 0
    assert _metric(url, "vllm:prefix_cache_hits_total") == before + cached
    assert _metric(url, "vllm:prompt_tokens_cached_total") >= cached
    assert _metric(url, "vllm:prefix_cache_queries_total") == queried + usage.prompt_tokens


def test_a_completion_shares_its_beginning(client: openai.OpenAI) -> None:
    """Texts that begin alike share full blocks; several answers to one prompt count it once."""
    begin = "Rivers begin in the hills, and some of them end in other rivers. " * 10
    texts = [begin + end for end in ("Which?", "Why do they?")]
    answers = [client.completions.create(model="judge", prompt=t, max_tokens=1) for t in texts]
    details: Any = [answer.usage for answer in answers]
    assert details[0].prompt_tokens_details.cached_tokens == 0
    assert details[1].prompt_tokens_details.cached_tokens == len(begin) // 64 * 16
    several: Any = client.completions.create(model="judge", prompt=texts[0], max_tokens=1, n=3)
    whole = (several.usage.prompt_tokens - 1) // 16 * 16
    assert several.usage.prompt_tokens_details.cached_tokens == whole


def test_usage_is_not_streamed_unasked(client: openai.OpenAI) -> None:
    """Without include_usage no chunk carries usage."""
    assert all(c.usage is None for c in _ask(client, max_tokens=5, stream=True))


def test_several_choices(client: openai.OpenAI) -> None:
    """n answers differ, and usage counts them all."""
    answer = _ask(client, n=3, max_tokens=20, extra_body={"ignore_eos": True})
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == 60


def test_completions_and_embeddings(client: openai.OpenAI) -> None:
    """A plain completion of two prompts, and unit vectors, through the client's own decoding."""
    answer = client.completions.create(model="judge", prompt=["a b", "c d"], max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    made = client.embeddings.create(model="judge", input=["x", "y"], dimensions=16)
    assert len(made.data) == 2
    assert sum(v * v for v in made.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    assert made.data[0].embedding != made.data[1].embedding


def test_rerank_and_score_prefer_common_words(url: str) -> None:
    """The document that repeats the query comes first, and scores are in 0..1."""
    body = {"model": "judge", "query": "red fish", "documents": ["a cow", "red fish"], "top_n": 1}
    status, _, answer = _request(url, "POST", "/v1/rerank", json=body)
    assert (status, [r["index"] for r in answer["results"]]) == (200, [1])
    pair = {"model": "judge", "text_1": "red fish", "text_2": ["a cow", "red fish"]}
    _, _, scored = _request(url, "POST", "/score", json=pair)
    low, high = (item["score"] for item in scored["data"])
    assert 0.0 <= low < high <= 1.0


def test_says_what_it_is(url: str) -> None:
    """Every answer, errors too, names the simulated engine and its timing; so does /version."""
    for path in ("/health", "/v1/models", "/nowhere"):
        _, headers, _ = _request(url, "GET", path)
        assert headers["x-scepsy-engine"].startswith("simulated; timing=h100_sxm/Qwen/Qwen3-0.6B")
    _, _, version = _request(url, "GET", "/version")
    assert version["engine"] == "simulated"
    assert "modelled" in version["timing"]


def test_key_guards_v1_only(url: str) -> None:
    """A wrong key gets 401 under /v1; health and metrics stay open."""
    for path, status in (("/v1/models", 401), ("/health", 200), ("/metrics", 200)):
        assert _request(url, "GET", path, headers={})[0] == status
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError),
    ):
        wrong.models.list()


def test_errors_have_openai_shape(client: openai.OpenAI, url: str) -> None:
    """Unknown model 404, bad parameter 400, no JSON 400, prompt too long 400: all say why."""
    with pytest.raises(openai.NotFoundError, match="`nobody` does not exist"):
        client.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError, match="max_tokens must be an integer"):
        _ask(client, max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        _ask(client, max_tokens=10_000_000)
    status, _, answer = _request(url, "POST", "/v1/completions", data=b"{")
    assert (status, answer["error"]["message"]) == (400, "the body is not JSON")


def test_metrics_have_vllm_names(client: openai.OpenAI, url: str) -> None:
    """Counters grow by what a call used, under vLLM's names."""
    before = _metric(url, "vllm:generation_tokens_total")
    _ask(client, max_tokens=11, extra_body={"ignore_eos": True})
    assert _metric(url, "vllm:generation_tokens_total") == before + 11
    page = _request(url, "GET", "/metrics")[2]
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "num_preemptions",
        "prompt_tokens",
        "prompt_tokens_cached",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
    ):
        assert f"vllm:{name}" in page


def _metric(url: str, name: str) -> float:
    page = _request(url, "GET", "/metrics")[2]
    found = re.search(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", page, re.MULTILINE)
    assert found, f"{name} is not on the metrics page"
    return float(found[1])


def test_a_full_queue_answers_503_and_gone_callers_make_room() -> None:
    """One seat and one place in the queue: the third call is refused; hung-up ones are dropped."""
    arguments = {"timing_bundle": TIMING, "max_num_seqs": 1, "time_scale": 1000.0}

    async def crowd(url: str) -> tuple[int, Any]:
        body = {"model": "writer", "prompt": "x", "max_tokens": 500, "ignore_eos": True}
        async with aiohttp.ClientSession() as session:

            async def ask() -> tuple[int, Any]:
                async with session.post(f"{url}/v1/completions", json=body) as answer:
                    return answer.status, await answer.json()

            hung = []
            for running, waiting in ((1.0, 0.0), (1.0, 1.0)):
                hung.append(asyncio.create_task(ask()))
                await _until(session, url, running, waiting)
            refused = await ask()
            for task in hung:
                task.cancel()
            await _until(session, url, 0.0, 0.0)
            return refused

    with _server(engine_args=arguments, max_queued=1) as url:
        status, body = asyncio.run(crowd(url))
    assert status == 503
    assert "queue is full" in body["error"]["message"]


async def _until(session: aiohttp.ClientSession, url: str, running: float, waiting: float) -> None:
    """Wait until the gauges say so."""
    until = time.monotonic() + 60
    page = ""
    while time.monotonic() < until:
        async with session.get(f"{url}/metrics") as answer:
            page = await answer.text()
        if f'running{{model_name="writer"}} {running}' in page and (
            f'waiting{{model_name="writer"}} {waiting}' in page
        ):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {running} running and {waiting} waiting; last page:\n{page}")


def test_reported_times_follow_the_engine_model(url: str, client: openai.OpenAI) -> None:
    """A lone call's latency on the engine's own clock is the fitted model's, within 1%."""
    model = fit_bundle(load_bundle(resolve_bundle(TIMING)), 1)
    before = _metric(url, "vllm:e2e_request_latency_seconds_sum")
    answer = _ask(client, "w " * 2000, max_tokens=100, extra_body={"ignore_eos": True})
    taken_s = _metric(url, "vllm:e2e_request_latency_seconds_sum") - before
    expected_s = model.closed_loop(1, answer.usage.prompt_tokens, 100).latency_s
    assert taken_s == pytest.approx(expected_s, rel=0.01)


def _bad_start(*arguments: str) -> tuple[int, str]:
    line = [
        sys.executable,
        "-m",
        "scepsy_hpc.engines.simulated.command",
        "--model",
        "m",
        *arguments,
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_bad_start_is_one_line() -> None:
    """No bundle, or a share that the weights do not fit: exit code 2, one line, no traceback."""
    code, stderr = _bad_start("--timing-bundle", "nowhere")
    assert (code, stderr.count("\n")) == (2, 1)
    code, stderr = _bad_start("--timing-bundle", TIMING, "--gpu-share-pct", "1")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "does not fit" in stderr


def test_a_taken_port_is_one_line() -> None:
    """A port in use ends the start with exit code 1 and says which."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, stderr = _bad_start("--timing-bundle", TIMING, "--port", str(port))
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in stderr
    assert "Traceback" not in stderr


def test_command_is_pure_and_strict() -> None:
    """The command line carries config and arguments; an unknown argument lists the known."""
    config = _config(9000, tp_degree=2, gpu_share_pct=50, max_queued=4, api_key="secret")
    line = simulated_command(config)
    assert line[line.index("--tensor-parallel-size") + 1] == "2"
    assert line[line.index("--gpu-share-pct") + 1] == "50"
    assert line[line.index("--max-num-queued-reqs") + 1] == "4"
    assert "--seed=7" in line
    assert not any("secret" in part for part in line)
    with pytest.raises(InputError, match=r"'max_seqs' is not known .*max_num_seqs"):
        simulated_command(replace(config, engine_args={"timing_bundle": TIMING, "max_seqs": 3}))
    with pytest.raises(InputError, match="timing_bundle is missing"):
        simulated_command(replace(config, engine_args={}))


def test_prefix_caching_can_be_turned_off() -> None:
    """engine_args say so as vLLM takes it; then no prompt has blocks to share."""
    arguments = {"timing_bundle": TIMING, "enable_prefix_caching": False}
    line = simulated_command(_config(9000, engine_args=arguments))
    assert "--no-enable-prefix-caching" in line
    arguments["enable_prefix_caching"] = True
    assert "--enable-prefix-caching" in simulated_command(_config(9000, engine_args=arguments))
    body = {"prompt": "word " * 100}
    for caching, num_blocks in ((True, 7), (False, 0)):
        settings = replace(_settings(), prefix_caching=caching)
        asked = parse_generation(body, settings, chat=False)
        assert min(len(asked.choices[0].sequence.chain), 7) == num_blocks


@cache
def _settings() -> Settings:
    return Settings(
        model_name="m",
        served_names=("m",),
        model=fit_bundle(load_bundle(resolve_bundle(TIMING)), 1),
        max_num_seqs=8,
        max_model_len=10_000,
        max_queued=None,
        output_tokens_mean=50.0,
        seed=0,
        api_key=None,
        timing="t",
    )


def _lengths(**body: Any) -> list[int]:
    found = []
    for i in range(400):
        asked = parse_generation({"prompt": f"p{i}", **body}, _settings(), chat=False)
        found.append(asked.choices[0].sequence.output_tokens)
    return found


def test_open_lengths_spread_about_their_mean() -> None:
    """With room to spare lengths average near the mean and differ widely; limits hold."""
    free = _lengths(max_tokens=5000)
    assert 40 < sum(free) / len(free) < 62
    assert max(free) > 4 * min(free)
    bounded = _lengths(max_tokens=60, min_tokens=30)
    assert min(bounded) == 30
    assert max(bounded) == 60


def test_a_short_answer_is_often_a_verdict() -> None:
    """Asked for few tokens it mostly answers with a number or yes or no, sometimes not."""
    answers = [
        parse_generation({"prompt": f"p{i}", "max_tokens": 4}, _settings(), chat=False)
        for i in range(200)
    ]
    verdicts = [re.match(r"(\d+|yes|no)\b", a.choices[0].pieces[0]) is not None for a in answers]
    assert 0.5 < sum(verdicts) / len(verdicts) < 1.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] must be an object with a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be text or a list of parts"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 1000}, "n must be at most 128"),
        ([], "must be a JSON object"),
    ],
)
def test_bad_bodies_say_why(body: Any, message: str) -> None:
    """A body that makes no sense is a 400 that names what is wrong."""
    with pytest.raises(ApiError, match=message) as caught:
        parse_generation(body, _settings(), chat=True)
    assert caught.value.status == 400
