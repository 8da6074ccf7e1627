"""The KV cache of a simulated replica, with what it keeps of earlier prompts for whoever comes.

The rules are those of vLLM's block pool, as in ``engines.simulated.kv_blocks``: blocks of 16
tokens, blank ones taken first, then the least recently used; of one sequence the end goes before
the beginning; what is in use never goes. Here blocks have no names: a call's blocks are stretches
of the calls whose tokens they are (`Stretch`), of which always the first so many are in the cache,
so a call costs the number of its stretches and not that of its blocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from scepsy_hpc.engines.simulated.kv_blocks import MOST_BLOCKS
from scepsy_hpc.formats.spans import BLOCK_TOKENS


class Stretch(NamedTuple):
    """Blocks ``first`` .. ``last`` - 1 of a call's tokens, which the call ``owner`` brought."""

    owner: int
    first: int
    last: int


class _Part:
    """What the cache has of the tokens that one call brought: blocks ``first`` .. ``have`` - 1.

    ``pins`` are the ends up to which running calls use it. ``marks`` are (end, release) of what is
    kept, the least recently used, which ends last, first.
    """

    __slots__ = ("first", "have", "key", "marks", "pins")

    def __init__(self, key: Hashable, first: int) -> None:
        self.key = key
        self.first = first
        self.have = first
        self.pins: list[int] = []
        self.marks: list[list[int]] = []

    def pinned(self) -> int:
        return max(self.pins) if self.pins else self.first


class Holding:
    """What one running call shares: its ``path``, and up to which block it shares it.

    ``num_twice`` of these it has computed although another call had them.
    """

    __slots__ = ("is_broken", "num_twice", "parts", "path", "run", "upto")

    def __init__(self, run: Hashable, path: Sequence[Stretch]) -> None:
        """Nothing yet."""
        self.run = run
        self.path = path
        self.upto = 0
        self.num_twice = 0
        self.parts: list[tuple[_Part, int]] = []
        self.is_broken = False


class PrefixCache:
    """``num_blocks`` blocks (infinite: unknown): in use, kept for whoever comes, or blank."""

    def __init__(self, num_blocks: float) -> None:
        """Blank."""
        self.num_blocks = num_blocks
        self.num_used = 0
        self.num_kept = 0
        self._parts: dict[Hashable, _Part] = {}
        self._oldest: deque[tuple[_Part, int]] = deque()
        self._num_releases = 0

    @property
    def num_free(self) -> float:
        """Blocks that no call uses, kept ones included."""
        return self.num_blocks - self.num_used

    def find(self, holding: Holding, most: int) -> tuple[int, int]:
        """Blocks from the beginning of a path that are there, and how many of them nobody uses."""
        found = kept = 0
        for owner, first, last in holding.path:
            part = self._parts.get((holding.run, owner))
            end = min(part.have if part is not None else first, last, most)
            if part is None or end <= first:
                break
            kept += max(end - max(part.pinned(), first), 0)
            found = end
            if end < last:
                break
        return found, kept

    def use(self, holding: Holding, found: int) -> None:
        """Share the first ``found`` blocks, all of which are there."""
        for owner, first, last in holding.path:
            if found <= first:
                break
            part = self._parts[holding.run, owner]
            end = min(last, found)
            more = max(end - part.pinned(), 0)
            self.num_used += more
            self.num_kept -= more
            while part.marks and part.marks[-1][0] <= end:
                part.marks.pop()
            part.pins.append(end)
            holding.parts.append((part, end))
        holding.upto = found

    def take(self, number: int) -> None:
        """So many blocks for new tokens."""
        self.num_used += number
        if self.num_used + self.num_kept > self.num_blocks:
            self._give_up()

    def fill(self, holding: Holding, upto: int) -> None:
        """Its first ``upto`` blocks are full now: others can share those that they do not have.

        From the first block on that another call filled meanwhile its own stay its own.
        """
        if holding.is_broken or upto <= holding.upto:
            return
        for owner, first, last in holding.path:
            if last <= holding.upto:
                continue
            if first >= upto:
                break
            key = (holding.run, owner)
            part = self._parts.get(key)
            if part is None:
                part = self._parts[key] = _Part(key, first)
            end = min(last, upto)
            if part.have != holding.upto:
                if part.have < holding.upto or part.pinned() < part.have:
                    holding.is_broken = True
                    return
                # Another has filled these meanwhile: this call's own stay its own.
                holding.num_twice += min(part.have, end) - holding.upto
                holding.upto = min(part.have, end)
                if end <= part.have:
                    continue
            if holding.parts and holding.parts[-1][0] is part:
                part.pins.remove(holding.parts.pop()[1])
            part.have = end
            part.pins.append(end)
            holding.parts.append((part, end))
            holding.upto = end

    def give_back(self, holding: Holding | None, num_blocks: int) -> None:
        """A call of so many blocks leaves; what it shares is kept while there is room."""
        if holding is None:
            self.num_used -= num_blocks
            return
        self.num_used -= num_blocks - holding.upto + holding.num_twice
        self._num_releases += 1
        for part, end in reversed(holding.parts):
            part.pins.remove(end)
            freed = end - part.pinned()
            if freed <= 0:
                continue
            self.num_used -= freed
            self.num_kept += freed
            while part.marks and part.marks[-1][0] <= end:
                part.marks.pop()
            part.marks.append([end, self._num_releases])
            self._oldest.append((part, self._num_releases))
        holding.parts.clear()
        holding.upto = holding.num_twice = 0
        holding.is_broken = False
        if self.num_kept > MOST_BLOCKS or self.num_used + self.num_kept > self.num_blocks:
            self._give_up()

    def _give_up(self) -> None:
        room = min(self.num_blocks - self.num_used, MOST_BLOCKS)
        while self.num_kept > max(room, 0):
            part, release = self._oldest[0]
            if not part.marks or part.marks[0][1] != release:
                self._oldest.popleft()  # used again since
                continue
            mark = part.marks[0]
            below = max(part.marks[1][0] if len(part.marks) > 1 else part.first, part.pinned())
            number = min(self.num_kept - math.ceil(max(room, 0)), mark[0] - below)
            part.have -= number
            mark[0] -= number
            self.num_kept -= number
            if mark[0] <= below:
                part.marks.pop(0)
                self._oldest.popleft()
            if part.have == part.first and not part.pins:
                del self._parts[part.key]


def paths_of(
    prefixes: Sequence[tuple[int, int] | None], tokens: Sequence[int]
) -> list[tuple[Stretch, ...]]:
    """Stretches of each call of a run, the last of them its own.

    ``prefixes``: the earlier call that a call's prompt begins like, and for how many tokens;
    ``tokens``: of prompt and answer. Calls stand in an order in which earlier ones come first.
    """
    found: list[tuple[Stretch, ...]] = []
    for index, (prefix, total) in enumerate(zip(prefixes, tokens, strict=True)):
        path: list[Stretch] = []
        begin = 0
        if prefix is not None:
            before, shared = prefix
            begin = min(shared, tokens[before]) // BLOCK_TOKENS
            for owner, first, last in found[before]:
                if first < begin:
                    path.append(Stretch(owner, first, min(last, begin)))
        path.append(Stretch(index, begin, max(total // BLOCK_TOKENS, begin)))
        found.append(tuple(path))
    return found
