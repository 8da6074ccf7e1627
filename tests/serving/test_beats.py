"""Signs of life through files."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from scepsy_hpc.serving import beats
from scepsy_hpc.serving.beats import Pulse, beat
from scepsy_hpc.serving.run_folder import RunFolder


def test_a_full_disk_is_no_death(tmp_path, monkeypatch):
    """Where no new file can be written the time of the old one still shows that a rank lives."""
    attempt = RunFolder(tmp_path).attempt("a-0")
    monkeypatch.setattr(beats, "BEAT_S", 0.002)
    written = itertools.count()

    def write_once(path, value):
        if next(written):
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True)
        path.write_text(f"{value}\n")

    monkeypatch.setattr(beats, "write_json", write_once)

    async def main() -> None:
        beating = asyncio.create_task(beat(attempt, 3))
        pulse = Pulse(attempt, 3, 1e6)
        seen: set[object] = set()
        async with asyncio.timeout(20):
            while len(seen) < 3:
                await asyncio.sleep(0.005)
                pulse.is_lost()
                seen.add(pulse._last)
        assert attempt.beat(3).read_text() == "1\n"
        beating.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("seen", [True, False])
def test_who_never_showed_itself_is_known(tmp_path, seen):
    """Silence of one that was there is another thing than a folder that is not shared."""
    attempt = RunFolder(tmp_path).attempt("a-0")
    if seen:
        beats.write_json(attempt.beat(0), 1)
    pulse = Pulse(attempt, 0, -1.0)
    assert pulse.is_lost()
    assert pulse.was_seen == seen
