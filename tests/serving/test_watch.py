"""When a living engine counts as hung: by bytes, by its counters, by a token asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine

from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.serving import watch
from scepsy_hpc.serving.patience import Patience
from scepsy_hpc.serving.watch import Watch

PATIENCE_S = 1.5
CONFIG = EngineConfig(
    instance_id="w-0",
    engine="vllm",
    model="org/writer",
    served_names=("writer",),
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    gpus=("0",),
    port=1,
    log_path=Path("nowhere"),
)


def watched(
    until: Callable[[Watch, FakeEngine], bool],
    traffic: Callable[[], object] = lambda: None,
    answers: bool = False,
    counts_work: bool = False,
) -> tuple[Watch, FakeEngine]:
    """A watch on an engine that accepts every call and may never answer one, until that holds."""

    async def main() -> tuple[Watch, FakeEngine]:
        async with FakeEngine() as engine:
            if not answers:
                engine.go_on.clear()
            engine.counts_work = counts_work
            url = engine.base_url.removesuffix("/v1")
            made = Watch(CONFIG, url, Patience(PATIENCE_S, "told"), traffic)
            looking = asyncio.create_task(made.run())
            async with asyncio.timeout(60):
                while not until(made, engine):
                    assert not looking.done()
                    await asyncio.sleep(0.01)
            looking.cancel()
            return made, engine

    return asyncio.run(main())


def test_an_engine_that_accepts_and_never_answers_is_hung() -> None:
    """Suspect first, then hung; one token was asked for meanwhile, and it says so."""
    seen = []

    def hung(made: Watch, engine: FakeEngine) -> bool:
        seen.append(made.verdict)
        return made.verdict == "hung"

    made, engine = watched(hung)
    assert list(dict.fromkeys(seen)) == ["sound", "suspect", "hung"]
    assert [body["max_tokens"] for body in engine.bodies] == [1]
    assert "(patience 1.5 s: told); a token asked for: no answer yet" in made.evidence


def test_counters_that_move_are_enough() -> None:
    """The token that was asked for waits behind others, of which the engine works off one."""
    made, engine = watched(
        lambda m, e: m.verdict != "sound" or e.num_metrics > 12, counts_work=True
    )
    assert made.verdict == "sound"
    assert engine.num_metrics > 12


def test_bytes_are_enough() -> None:
    """An engine that tells no counters and answers no token, but from which bytes come: sound.

    As long as they come, nothing else is asked.
    """
    number = itertools.count()
    made, engine = watched(lambda m, e: m.verdict != "sound" or next(number) > 400, number.__next__)
    assert made.verdict == "sound"
    assert not engine.bodies
    assert not engine.num_metrics


def test_an_idle_engine_is_asked_for_a_token_now_and_then() -> None:
    """It answers each, and is not asked again before a third of the patience is over."""
    looks = itertools.count()
    made, engine = watched(
        lambda m, e: m.verdict != "sound" or len(e.bodies) >= 3,
        traffic=lambda: next(looks) and None,
        answers=True,
    )
    assert made.verdict == "sound"
    assert next(looks) > 3 * len(engine.bodies)


def test_a_watch_that_was_stopped_itself_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by an hour at every second look, as when a machine sleeps."""
    real_s, looks = watch.monotonic, itertools.count()
    monkeypatch.setattr(watch, "monotonic", lambda: real_s() + 3600.0 * (next(looks) // 3))
    made, _ = watched(lambda m, e: m.verdict == "hung" or len(e.bodies) >= 3, answers=True)
    assert made.verdict == "sound"
