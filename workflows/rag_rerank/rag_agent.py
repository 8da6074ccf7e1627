"""Answer a question from a small corpus: BM25 retrieval, one rerank call a passage, one answer.

The rerank calls of a run are in flight together. A task is `{"task_id", "question",
"num_documents"}` and may hold `answer_tokens` and `num_context_documents`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import bm25s
from openai import AsyncOpenAI, OpenAIError

CORPUS = Path(__file__).parent / "corpus" / "corpus.jsonl"
TIMEOUT_S = 300.0
NUM_CONTEXT_DOCUMENTS = 6
MIN_CONTEXT_DOCUMENTS = 3
ANSWER_TOKENS = 192

# What never changes stands first and the passage last, so that a prefix cache can help.
RERANK_PROMPT = """\
You judge whether a passage helps to answer a question about computing clusters, GPUs or the \
serving of language models. A passage helps if it states a fact that belongs in the answer. A \
passage that only shares words or a general topic with the question does not help.

Question: Which command shows why a node was drained?
Passage: sinfo -R lists each drained node with the reason that the administrator gave.
Helps (yes or no): yes

Question: How large is the memory of an H200?
Passage: A GPU lowers its clocks when it reaches its power limit or becomes too hot.
Helps (yes or no): no

Question: {question}
Passage: {title}. {text}
Helps (yes or no):"""

ANSWER_SYSTEM = """\
You answer questions about computing clusters, GPUs and the serving of language models. Use only \
the numbered passages. After each statement name the passage it rests on, as in [2]. Say so when \
the passages do not hold the answer. Answer in one paragraph. /no_think"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """One passage of the corpus."""

    doc_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Index:
    """The corpus and its BM25 index."""

    documents: tuple[Document, ...]
    bm25: bm25s.BM25


@lru_cache(maxsize=1)
def load_index() -> Index:
    """Read and index the corpus, once a process."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    documents = tuple(Document(**json.loads(line)) for line in lines)
    bm25 = bm25s.BM25()
    bm25.index(_words([f"{d.title}. {d.text}" for d in documents]), show_progress=False)
    return Index(documents, bm25)


def retrieve(question: str, num_documents: int) -> list[Document]:
    """The best `num_documents` passages by BM25, best first; only those that share a word."""
    index = load_index()
    (words,) = _words([question])
    if not words:
        return []
    scores = index.bm25.get_scores(words)
    # Ties go to the earlier passage, so that a run can be repeated.
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [index.documents[i] for i in ranked[:num_documents] if scores[i] > 0]


def parse_verdict(answer: str) -> bool | None:
    """True for yes, False for no, None for anything else."""
    match = re.match(r"\W*(y|yes|n|no)\b", answer, re.IGNORECASE)
    return None if match is None else match[1].lower().startswith("y")


def choose_context(
    documents: Sequence[Document], verdicts: Sequence[bool | None], limit: int
) -> list[Document]:
    """Passages judged yes, then the unreadable verdicts, each in BM25 order, at most `limit`.

    Refused passages only fill up to MIN_CONTEXT_DOCUMENTS: a reranker may be wrong throughout.
    """
    order = {True: 0, None: 1, False: 2}
    ranked = sorted(zip(documents, verdicts, strict=True), key=lambda pair: order[pair[1]])
    num_not_refused = sum(verdict is not False for verdict in verdicts)
    num_kept = min(limit, max(num_not_refused, MIN_CONTEXT_DOCUMENTS))
    return [document for document, _ in ranked[:num_kept]]


async def run(task: dict[str, Any]) -> dict[str, Any]:
    """Work off one task; OPENAI_BASE_URL and OPENAI_API_KEY are read now, not at import.

    Raises ValueError for a task that lacks a key, and the client's OpenAIError when a call still
    fails after its retries.
    """
    async with make_client() as client:
        question = _get(task, "question", str)
        documents = retrieve(question, _get(task, "num_documents", int))
        answers = await gather(_rerank(client, question, document) for document in documents)
        verdicts = [parse_verdict(answer) for answer in answers]
        limit = _get(task, "num_context_documents", int, NUM_CONTEXT_DOCUMENTS)
        context = choose_context(documents, verdicts, limit)
        answer_tokens = _get(task, "answer_tokens", int, ANSWER_TOKENS)
        answer = await _answer(client, question, context, answer_tokens)
    return {
        "answer": answer,
        "context": [document.doc_id for document in context],
        "num_retrieved": len(documents),
        "num_unreadable_verdicts": verdicts.count(None),
        "num_llm_calls": len(documents) + 1,
    }


async def _rerank(client: AsyncOpenAI, question: str, document: Document) -> str:
    prompt = RERANK_PROMPT.format(question=question, title=document.title, text=document.text)
    response = await client.completions.create(
        model="reranker", prompt=prompt, max_tokens=1, temperature=0
    )
    return (response.choices[0].text or "") if response.choices else ""


async def _answer(
    client: AsyncOpenAI, question: str, context: Sequence[Document], max_tokens: int
) -> str:
    passages = "\n\n".join(f"[{n}] {d.title}. {d.text}" for n, d in enumerate(context, start=1))
    response = await client.chat.completions.create(
        model="generator",
        messages=[
            {"role": "system", "content": ANSWER_SYSTEM},
            {"role": "user", "content": f"{passages}\n\nQuestion: {question}"},
        ],
        max_tokens=max_tokens,
        temperature=0,
    )
    text = (response.choices[0].message.content or "") if response.choices else ""
    # Qwen3 opens with an empty block of thoughts even when told not to think.
    return re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()


def make_client() -> AsyncOpenAI:
    """A client of the endpoint in the environment. Raises ValueError when there is none."""
    base_url = os.environ.get("OPENAI_BASE_URL")
    if not base_url:
        # Without it the client would silently turn to a public service.
        raise ValueError("OPENAI_BASE_URL: is not set; give the endpoint that serves the LLMs")
    return AsyncOpenAI(base_url=base_url, max_retries=2, timeout=TIMEOUT_S)


async def gather(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure cancels the other calls and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _get(task: dict[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    value = task.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, int) and value < 1):
        wanted = "a positive integer" if kind is int else "a string"
        raise ValueError(f"task {task.get('task_id')}: {key}: must be {wanted}, is {value!r}")
    return value


def _words(texts: list[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en_plus", return_ids=False, show_progress=False
    )
    return words


def main() -> None:
    """One task's JSON on stdin, its result's JSON on stdout."""
    try:
        task = json.load(sys.stdin)
        if not isinstance(task, dict):
            raise ValueError(f"stdin: must hold one task as a JSON object, is {task!r}")
        print(json.dumps(asyncio.run(run(task))))
    except (ValueError, OpenAIError) as error:
        sys.exit(f"rag_agent: {error}")


def load_client() -> None:
    """Have the client load what it loads on first use, a tenth of a second of CPU."""
    client = AsyncOpenAI(base_url="http://localhost", api_key="none")
    _ = client.completions, client.chat.completions


# While the module loads, so that workers forked from here share both and their first run is as any.
load_index()
load_client()

if __name__ == "__main__":
    main()
