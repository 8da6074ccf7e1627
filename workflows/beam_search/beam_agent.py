"""Solve a problem by a search over reasoning steps: a generator proposes, a reward model grades.

Every live beam is continued `branching` times, each continuation is graded by one short call, and
the good ones live on. Scores decide width and depth: only beams within SCORE_MARGIN of the round's
best live on (at most `max_width`), and a beam that reaches `target_score` ends the search. It ends
after `max_depth` rounds at the latest, so a run makes at most
2 * branching * (1 + max_width * (max_depth - 1)) calls.

A task is `{"task_id", "problem", "max_depth", "max_width", "branching", "target_score"}` and may
hold `step_tokens`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from openai import AsyncOpenAI, OpenAIError

TIMEOUT_S = 300.0
SCORE_MARGIN = 0.25
STEP_TOKENS = 60
END_MARK = "Answer:"

STEP_PROMPT = """\
Solve the problem in short numbered steps, one line a step. Name the quantities, do one \
calculation or one argument in each step, and check it before you go on. Once the result is \
certain, write a last line that starts with "Answer:".

Problem: {problem}
Solution:
{steps}{number}."""

REWARD_PROMPT = """\
You grade partial solutions. Read the problem and the steps so far and reply with one digit. \
0 means that a step is wrong or leads away from the problem. 5 means that the steps are right as \
far as they go but the way to the result is still open. 9 means that the problem is solved, every \
step holds and nothing is missing. Judge what is written and not how long or how confident it is.

Problem: A node has 2 GPUs. How many GPUs do 3 nodes have?
Steps:
1. Each node has 2 GPUs, so 3 nodes have 3 * 2 = 6. Answer: 6
Grade (0 to 9): 9

Problem: A file of 10 GB is read at 2 GB per second. How long does it take?
Steps:
1. Multiply the size by the speed: 10 * 2 = 20.
Grade (0 to 9): 0

Problem: {problem}
Steps:
{steps}Grade (0 to 9):"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task:
    """One problem and the limits of its search. Raises ValueError."""

    task_id: str
    problem: str
    max_depth: int
    max_width: int
    branching: int
    target_score: float
    step_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        for name in ("max_depth", "max_width", "branching", "step_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"task {self.task_id}: {name}: must be 1 or more, is {value!r}")
        if not isinstance(self.target_score, int | float) or not 0 <= self.target_score <= 1:
            raise ValueError(
                f"task {self.task_id}: target_score: must be 0 to 1, is {self.target_score!r}"
            )


@dataclass(frozen=True, slots=True)
class Beam:
    """A partial solution; `path` holds which continuation was taken in each round."""

    path: tuple[int, ...] = ()
    steps: tuple[str, ...] = ()
    score: float = 0.0
    graded: bool = True

    @property
    def finished(self) -> bool:
        """Whether the last step states a result."""
        return bool(self.steps) and END_MARK in self.steps[-1]

    @property
    def text(self) -> str:
        """The steps as numbered lines."""
        return "".join(f"{n}. {step}\n" for n, step in enumerate(self.steps, start=1))


def parse_grade(answer: str) -> float | None:
    """The grade as 0 to 1 if the answer opens with a digit that stands alone, else None."""
    match = re.match(r"\W*(\d)(?!\w)", answer)
    return None if match is None else int(match[1]) / 9


def stand_in_score(*parts: object) -> float:
    """A stable number in [0, 1) from what it is given.

    It replaces the grade when the reward model's answer cannot be read, as with random weights: the
    search then still branches, but its choices mean nothing.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def survivors(beams: Sequence[Beam], max_width: int) -> list[Beam]:
    """The unfinished beams within SCORE_MARGIN of the best of all, best first, `max_width` at most.

    Finished beams are not continued, but they set the mark for the others.
    """
    mark = max(beam.score for beam in beams) - SCORE_MARGIN
    good = [beam for beam in beams if not beam.finished and beam.score >= mark]
    return sorted(good, key=lambda beam: (-beam.score, beam.path))[:max_width]


async def run(task: dict[str, Any]) -> dict[str, Any]:
    """Work off one task; OPENAI_BASE_URL and OPENAI_API_KEY are read now, not at import.

    Raises ValueError for a task that lacks a key, and the client's OpenAIError when a call still
    fails after its retries.
    """
    async with make_client() as client:
        return await _search(client, load_task(task))


async def _search(client: AsyncOpenAI, task: Task) -> dict[str, Any]:
    live, best, tried, depth = [Beam()], Beam(), 0, 0
    num_unreadable = 0
    while live and depth < task.max_depth and (depth == 0 or best.score < task.target_score):
        # A continuation is graded as soon as it is written: both LLMs are in flight at once.
        beams = await gather(
            _continue(client, task, beam, branch)
            for beam in live
            for branch in range(task.branching)
        )
        depth += 1
        tried += len(beams)
        num_unreadable += sum(not beam.graded for beam in beams)
        best = max([*beams, best], key=lambda beam: beam.score)
        live = survivors(beams, task.max_width)
    return {
        "solution": best.text,
        "score": round(best.score, 6),
        "finished": best.finished,
        "depth": depth,
        "num_unreadable_grades": num_unreadable,
        "num_llm_calls": 2 * tried,
    }


async def _continue(client: AsyncOpenAI, task: Task, beam: Beam, branch: int) -> Beam:
    """`beam` and one more step, graded."""
    path = (*beam.path, branch)
    number = len(path)
    response = await client.completions.create(
        model="generator",
        prompt=STEP_PROMPT.format(problem=task.problem, steps=beam.text, number=number),
        max_tokens=task.step_tokens,
        temperature=0.8,
        # Continuations of one beam share their prompt and must still differ.
        seed=int(stand_in_score(task.task_id, path) * 2**31),
        stop=["\n"],
    )
    step = (response.choices[0].text or "") if response.choices else ""
    steps = (*beam.steps, " ".join(step.split()))
    graded = Beam(path, steps)
    response = await client.completions.create(
        model="reward",
        prompt=REWARD_PROMPT.format(problem=task.problem, steps=graded.text),
        max_tokens=1,
        temperature=0,
    )
    answer = (response.choices[0].text or "") if response.choices else ""
    grade = parse_grade(answer)
    if grade is None:
        return Beam(path, steps, stand_in_score(task.task_id, path, answer), graded=False)
    return Beam(path, steps, grade)


def load_task(raw: dict[str, Any]) -> Task:
    """Take the keys that the search knows and leave the others. Raises ValueError."""
    known = {key: raw[key] for key in Task.__dataclass_fields__ if key in raw}
    missing = [key for key in Task.__dataclass_fields__ if key not in raw and key != "step_tokens"]
    if missing:
        raise ValueError(f"task {raw.get('task_id')}: {missing[0]}: is missing")
    return Task(**known)


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


def main() -> None:
    """One task's JSON on stdin, its result's JSON on stdout."""
    try:
        task = json.load(sys.stdin)
        if not isinstance(task, dict):
            raise ValueError(f"stdin: must hold one task as a JSON object, is {task!r}")
        print(json.dumps(asyncio.run(run(task))))
    except (ValueError, OpenAIError) as error:
        sys.exit(f"beam_agent: {error}")


def load_client() -> None:
    """Have the client load what it loads on first use, a tenth of a second of CPU."""
    _ = AsyncOpenAI(base_url="http://localhost", api_key="none").completions


# While the module loads, so that workers forked from here share it and their first run is as any.
load_client()

if __name__ == "__main__":
    main()
