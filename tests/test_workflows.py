"""The shipped agents, each driven over HTTP against a small endpoint that stands for the LLMs."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from openai import BadRequestError

from scepsy_hpc.formats.workflow import load_workflow

WORKFLOWS = Path(__file__).parents[1] / "workflows"
MODULES = {"rag_rerank": "rag_agent", "beam_search": "beam_agent"}
TIMEOUT_S = 60

Body = dict[str, Any]


def shipped_tasks(workflow: str) -> list[dict[str, Any]]:
    lines = (WORKFLOWS / workflow / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def noise(body: Body) -> str:
    """Pseudo-random text that depends on the whole request only."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def graded(grade: Callable[[Body], str]) -> Callable[[Body], str]:
    """Noise from the generator, `grade` from the reward model."""
    return lambda body: grade(body) if body["model"] == "reward" else noise(body)


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint: answers with `text`, after `hold` where there is one."""

    text: Callable[[Body], str | None] = noise
    hold: Callable[[Body], Awaitable[object]] | None = None
    num_choices: int = 1
    bodies: list[Body] = field(default_factory=list)
    url: str = ""

    @property
    def calls(self) -> Counter[str]:
        return Counter(body["model"] for body in self.bodies)

    async def completions(self, request: web.Request) -> web.Response:
        return await self._answer(request, lambda text: {"text": text})

    async def chat(self, request: web.Request) -> web.Response:
        return await self._answer(
            request, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    async def _answer(
        self, request: web.Request, choice: Callable[[str | None], dict[str, Any]]
    ) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.hold is not None:
            await self.hold(body)
        made = {"index": 0, "finish_reason": "stop", **choice(self.text(body))}
        return web.json_response(
            {
                "id": "c1",
                "object": "completion",
                "created": 0,
                "model": body["model"],
                "choices": [made] * self.num_choices,
                "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
            }
        )


@asynccontextmanager
async def serving(endpoint: Endpoint) -> AsyncIterator[None]:
    """Serve `endpoint` on loopback below a path of its own, as the recording proxy does."""
    app = web.Application()
    app.router.add_post("/run-1/v1/completions", endpoint.completions)
    app.router.add_post("/run-1/v1/chat/completions", endpoint.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/run-1/v1"
        yield
    finally:
        await runner.cleanup()


class Driver:
    """Runs tasks through an agent in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def agent(self, workflow: str) -> ModuleType:
        self._monkeypatch.syspath_prepend(str(WORKFLOWS / workflow))
        return importlib.import_module(MODULES[workflow])

    async def work(
        self, workflow: str, endpoint: Endpoint, tasks: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        agent = self.agent(workflow)
        async with serving(endpoint):
            self._monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
            return [await agent.run(task) for task in tasks]

    def run(
        self, workflow: str, endpoint: Endpoint, tasks: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        return finish(self.work(workflow, endpoint, tasks))


def finish(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work`; one that hangs fails instead of stopping the suite."""
    return asyncio.run(asyncio.wait_for(work, TIMEOUT_S))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


@pytest.mark.parametrize("workflow", MODULES)
def test_workflow_file_names_the_llms_that_the_agent_calls(workflow: str, driver: Driver) -> None:
    """The aliases in workflow.yaml are exactly those the agent calls, and its function exists."""
    declared = load_workflow(WORKFLOWS / workflow / "workflow.yaml")
    endpoint = Endpoint()
    driver.run(workflow, endpoint, shipped_tasks(workflow)[:1])
    assert set(endpoint.calls) == set(declared.llms)
    assert declared.name == workflow
    assert declared.agent is not None
    assert declared.agent.python == f"{driver.agent(workflow).__name__}:run"


@pytest.mark.parametrize("workflow", MODULES)
def test_shipped_tasks_are_many_and_distinct(workflow: str) -> None:
    """At least forty tasks a workflow, each with an id of its own."""
    task_ids = [task["task_id"] for task in shipped_tasks(workflow)]
    assert len(task_ids) >= 40
    assert len(set(task_ids)) == len(task_ids)


def test_rag_calls_the_reranker_once_per_retrieved_document(driver: Driver) -> None:
    """Each retrieved passage is judged in one single-token call, then one answer is written."""
    tasks = shipped_tasks("rag_rerank")[:6]
    endpoint = Endpoint()
    results = driver.run("rag_rerank", endpoint, tasks)
    num_documents = [task["num_documents"] for task in tasks]
    assert [result["num_retrieved"] for result in results] == num_documents
    assert endpoint.calls == {"reranker": sum(num_documents), "generator": len(tasks)}
    judged = [body for body in endpoint.bodies if body["model"] == "reranker"]
    assert {body["max_tokens"] for body in judged} == {1}
    assert len({body["prompt"] for body in judged}) == len(judged)


def test_rag_has_all_rerank_calls_of_a_run_in_flight_together(driver: Driver) -> None:
    """The endpoint answers no rerank call before the last of them has arrived."""
    task = next(t for t in shipped_tasks("rag_rerank") if t["num_documents"] >= 20)

    barrier = asyncio.Barrier(task["num_documents"])

    async def hold(body: Body) -> None:
        if body["model"] == "reranker":
            await barrier.wait()

    (result,) = driver.run("rag_rerank", Endpoint(hold=hold), [task])
    assert result["num_llm_calls"] == task["num_documents"] + 1


def test_rag_answers_from_the_passages_judged_helpful(driver: Driver) -> None:
    """Passages judged yes reach the generator's prompt, and refused ones do not."""
    task = next(t for t in shipped_tasks("rag_rerank") if t["gold_doc_id"] == "gpu-mps")
    helpful = ("Multi-Process Service lets", "Time slicing", "Multi-Instance GPU cuts")

    def text(body: Body) -> str:
        if body["model"] == "generator":
            return "<think>\n\n</think>\n\nThrough a daemon [1]."
        return " Yes" if any(start in body["prompt"] for start in helpful) else " no"

    endpoint = Endpoint(text)
    (result,) = driver.run("rag_rerank", endpoint, [task])
    assert set(result["context"]) == {"gpu-mps", "gpu-timeslice", "gpu-mig"}
    assert result["answer"] == "Through a daemon [1]."
    asked = endpoint.bodies[-1]["messages"][-1]["content"]
    assert all(start in asked for start in helpful)
    assert asked.endswith(task["question"])


def test_rag_retrieves_the_passage_that_holds_the_answer(driver: Driver) -> None:
    """BM25 finds the marked passage for at least nine in ten of the shipped questions."""
    agent = driver.agent("rag_rerank")
    tasks = shipped_tasks("rag_rerank")
    found = [
        task["gold_doc_id"]
        in {d.doc_id for d in agent.retrieve(task["question"], task["num_documents"])}
        for task in tasks
    ]
    assert sum(found) >= 0.9 * len(tasks)


def test_rag_retrieves_nothing_without_a_shared_word(driver: Driver) -> None:
    """A question of stop words or unknown words has no passages, and is still answered."""
    tasks = [
        {"task_id": "t1", "question": "what is the", "num_documents": 5},
        {"task_id": "t2", "question": "zymurgy quokka", "num_documents": 5},
    ]
    endpoint = Endpoint()
    results = driver.run("rag_rerank", endpoint, tasks)
    assert [result["num_retrieved"] for result in results] == [0, 0]
    assert endpoint.calls == {"generator": 2}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(" yes", True), ("Y", True), ("No.", False), ("\n- no", False)]
    + [(garbage, None) for garbage in ("", "northern", "�", "7", "maybe yes")],
)
def test_rag_reads_a_verdict_only_where_there_is_one(
    driver: Driver, answer: str, verdict: bool | None
) -> None:
    """Yes and no are read in their usual spellings; anything else is no verdict."""
    assert driver.agent("rag_rerank").parse_verdict(answer) is verdict


def test_rag_keeps_passages_when_all_are_refused(driver: Driver) -> None:
    """Three passages in BM25 order remain when the reranker refuses them all."""
    agent = driver.agent("rag_rerank")
    documents = agent.retrieve("GPU memory", 8)
    assert agent.choose_context(documents, [False] * 8, limit=6) == documents[:3]
    assert agent.choose_context(documents, [None] * 8, limit=6) == documents[:6]


def test_beam_calls_per_run_differ_more_than_tenfold(driver: Driver) -> None:
    """Under pseudo-random grades every fourth shipped task already spans more than 10x in calls."""
    endpoint = Endpoint(graded(lambda body: str(int(noise(body), 16) % 10)))
    results = driver.run("beam_search", endpoint, shipped_tasks("beam_search")[::4])
    num_calls = [result["num_llm_calls"] for result in results]
    assert max(num_calls) > 10 * min(num_calls)
    assert sum(num_calls) == len(endpoint.bodies)
    assert endpoint.calls["generator"] == endpoint.calls["reward"]
    assert not any(result["num_unreadable_grades"] for result in results)


BEAM_TASK = {
    "task_id": "b1",
    "problem": "How many links join four nodes pairwise?",
    "max_depth": 4,
    "max_width": 3,
    "branching": 3,
    "target_score": 0.9,
}


def test_beam_ends_after_one_round_when_a_grade_is_high_enough(driver: Driver) -> None:
    """The highest grade reaches the target at once: one round of continuations and their grades."""
    endpoint = Endpoint(graded(lambda _: "9"))
    (result,) = driver.run("beam_search", endpoint, [BEAM_TASK])
    assert (result["depth"], result["score"]) == (1, 1.0)
    assert endpoint.calls == {"generator": 3, "reward": 3}


def test_beam_is_bounded_when_no_grade_is_ever_high_enough(driver: Driver) -> None:
    """Equal low grades keep every beam: the run stops at its depth with the promised most calls."""
    endpoint = Endpoint(graded(lambda _: " 0"))
    (result,) = driver.run("beam_search", endpoint, [BEAM_TASK])
    assert result["depth"] == 4
    assert result["solution"].count("\n") == 4
    assert result["num_llm_calls"] == 2 * 3 * (1 + 3 * 3) == len(endpoint.bodies)


def test_beam_goes_on_with_the_graded_best_only(driver: Driver) -> None:
    """A beam far below the best is not continued, so grades decide the width."""
    barrier = asyncio.Barrier(3)

    async def hold(body: Body) -> None:
        # All three continuations of the first round arrive before any is answered.
        if body["model"] == "generator" and len(endpoint.bodies) <= 3:
            await barrier.wait()

    def text(body: Body) -> str:
        if body["model"] == "reward":
            return "8" if "good" in body["prompt"].rsplit("Steps:", 1)[1] else "2"
        seeds = [b["seed"] for b in endpoint.bodies if b["model"] == "generator"]
        return "good step" if body["seed"] == min(seeds) else "bad step"

    endpoint = Endpoint(text, hold)
    (result,) = driver.run("beam_search", endpoint, [{**BEAM_TASK, "max_depth": 2}])
    second = [b["prompt"] for b in endpoint.bodies if b["model"] == "generator"][3:]
    assert len(second) == 3
    assert all("1. good step\n2." in prompt for prompt in second)
    assert result["num_llm_calls"] == 2 * (3 + 3)


def test_beam_does_not_continue_a_finished_solution(driver: Driver) -> None:
    """When all continuations state an answer below the target the search ends with the best."""
    endpoint = Endpoint(lambda b: "7" if b["model"] == "reward" else " 4 * 3 / 2. Answer: 6\n")
    (result,) = driver.run("beam_search", endpoint, [BEAM_TASK])
    assert (result["depth"], result["finished"]) == (1, True)
    assert result["solution"] == "1. 4 * 3 / 2. Answer: 6\n"


@pytest.mark.parametrize("answer", ["tok", "", None, "�", "12", "a9"])
def test_beam_scores_still_vary_when_no_grade_can_be_read(
    driver: Driver, answer: str | None
) -> None:
    """Unreadable answers, all alike, give stand-in scores that vary, repeat and are counted."""
    endpoint = Endpoint(lambda _: answer)
    tasks = [{**BEAM_TASK, "task_id": f"b{n}", "max_depth": 2} for n in range(4)]
    results = driver.run("beam_search", endpoint, tasks)
    assert len({result["score"] for result in results}) == 4
    assert all(2 * r["num_unreadable_grades"] == r["num_llm_calls"] for r in results)
    assert driver.run("beam_search", Endpoint(lambda _: answer), tasks) == results


@pytest.mark.parametrize("workflow", MODULES)
@pytest.mark.parametrize("num_choices", [0, 1])
def test_empty_answers_do_not_end_a_run(workflow: str, num_choices: int, driver: Driver) -> None:
    """Answers without text or without any choice still lead to a result."""
    endpoint = Endpoint(lambda _: None, num_choices=num_choices)
    (result,) = driver.run(workflow, endpoint, shipped_tasks(workflow)[:1])
    assert json.loads(json.dumps(result)) == result
    assert result["num_llm_calls"] > 1


@pytest.mark.parametrize("workflow", MODULES)
def test_the_endpoint_is_read_anew_for_each_task(workflow: str, driver: Driver) -> None:
    """Tasks of one process go to the endpoint that the environment names when they start."""
    task = shipped_tasks(workflow)[0]
    first, second = Endpoint(), Endpoint()
    driver.run(workflow, first, [task])
    driver.run(workflow, second, [task])
    assert first.calls == second.calls
    assert first.calls


@pytest.mark.parametrize("workflow", MODULES)
def test_a_refused_call_fails_the_run_with_its_own_error(workflow: str, driver: Driver) -> None:
    """A call that the endpoint refuses surfaces as the client's error, not as a group of errors."""

    async def refuse(_: Body) -> None:
        raise web.HTTPBadRequest(text='{"error": {"message": "prompt is too long"}}')

    with pytest.raises(BadRequestError, match="prompt is too long"):
        driver.run(workflow, Endpoint(hold=refuse), shipped_tasks(workflow)[:1])


@pytest.mark.parametrize("workflow", MODULES)
def test_without_an_endpoint_nothing_is_called(
    workflow: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing OPENAI_BASE_URL is an error instead of calls to the client's public default."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="OPENAI_BASE_URL"):
        asyncio.run(driver.agent(workflow).run(shipped_tasks(workflow)[0]))


@pytest.mark.parametrize(
    ("workflow", "key", "value"),
    [
        ("rag_rerank", "question", None),
        ("rag_rerank", "num_documents", 0),
        ("rag_rerank", "num_documents", "five"),
        ("beam_search", "problem", None),
        ("beam_search", "max_depth", 0),
        ("beam_search", "target_score", 9),
    ],
)
def test_a_wrong_task_is_refused_by_name_and_value(
    workflow: str, key: str, value: object, driver: Driver
) -> None:
    """The error names the task, the key and the value before any LLM is called."""
    task = {k: v for k, v in shipped_tasks(workflow)[0].items() if k != key}
    if value is not None:
        task[key] = value
    endpoint = Endpoint()
    with pytest.raises(ValueError, match=f"{task['task_id']}: {key}: .*"):
        driver.run(workflow, endpoint, [task])
    assert not endpoint.bodies


@pytest.mark.parametrize(
    ("workflow", "used"),
    [
        ("rag_rerank", "client.completions, client.chat.completions"),
        ("beam_search", "client.completions"),
    ],
)
def test_workers_fork_from_an_agent_whose_client_is_loaded(workflow: str, used: str) -> None:
    """What the client imports on first use is there once the agent's module is: a first run is no
    longer than the next."""
    code = (
        f"import sys, {MODULES[workflow]} as agent; before = set(sys.modules)\n"
        f"client = agent.make_client(); {used}\n"
        "print(sorted(set(sys.modules) - before))"
    )
    env = {**os.environ, "OPENAI_BASE_URL": "http://localhost", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=WORKFLOWS / workflow,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


async def run_command(workflow: str, stdin: str, url: str) -> tuple[int | None, str, str]:
    """Run the agent as a command in its folder; gives exit status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        f"{MODULES[workflow]}.py",
        cwd=WORKFLOWS / workflow,
        env={**os.environ, "OPENAI_BASE_URL": url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("workflow", MODULES)
def test_the_command_form_takes_and_gives_json(workflow: str, driver: Driver) -> None:
    """One task on stdin gives one JSON object on stdout, the same as in-process."""
    task = shipped_tasks(workflow)[0]
    endpoint = Endpoint()

    async def work() -> tuple[int | None, str, str]:
        async with serving(endpoint):
            return await run_command(workflow, json.dumps(task), endpoint.url)

    status, out, err = finish(work())
    assert (status, err) == (0, "")
    assert json.loads(out) == driver.run(workflow, Endpoint(), [task])[0]


@pytest.mark.parametrize(
    ("workflow", "stdin"),
    [("rag_rerank", ""), ("beam_search", "[1]"), ("beam_search", '{"task_id": "x"}')],
)
def test_the_command_form_refuses_bad_input_in_one_line(workflow: str, stdin: str) -> None:
    """Input that is not a task ends with status 1 and one line, never a traceback."""
    status, out, err = finish(run_command(workflow, stdin, "http://127.0.0.1:1/v1"))
    assert (status, out) == (1, "")
    assert err.startswith(MODULES[workflow])
    assert err.count("\n") == 1
