"""The KV cache of a simulated engine: blocks, what they hold, and which of them is given up first.

The rules are those of vLLM's block pool (0.32): a block holds BLOCK_TOKENS tokens; a full one is
known by the chain of all tokens up to its end, so that any prompt that begins alike can share it;
what no sequence uses any more stays until room is needed, least recently used first, and of one
sequence the end goes before the beginning. Blank blocks are taken before any that holds something.

Pure: no clock. Blocks that hold nothing to share are only counted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from scepsy_hpc.formats.spans import BLOCK_TOKENS

MOST_BLOCKS = 1 << 17
"""Blocks kept for whoever comes at most, also where the cache's size is unknown: 2M tokens."""


@dataclass(slots=True)
class KvBlocks:
    """``num_blocks`` blocks (infinite: unknown), in use, kept for whoever comes, or blank."""

    num_blocks: float
    num_used: int = 0
    _shared: dict[Hashable, int] = field(default_factory=dict)
    _kept: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)

    @property
    def num_free(self) -> float:
        """Blocks that no sequence uses, kept ones included."""
        return self.num_blocks - self.num_used

    def num_found(self, chain: Sequence[Hashable]) -> int:
        """How many blocks from the beginning of ``chain`` are in the cache."""
        for number, block in enumerate(chain):
            if block not in self._shared and block not in self._kept:
                return number
        return len(chain)

    def num_kept(self, chain: Sequence[Hashable]) -> int:
        """How many of these are kept for nobody: to use them takes as many of the free ones."""
        return sum(block in self._kept for block in chain)

    def use(self, chain: Sequence[Hashable]) -> None:
        """A sequence shares these blocks, all of which are in the cache."""
        for block in chain:
            if block in self._kept:
                del self._kept[block]
                self.num_used += 1
            self._shared[block] = self._shared.get(block, 0) + 1

    def take(self, number: int) -> None:
        """So many blocks for new tokens; the caller has seen that they are free."""
        self.num_used += number
        assert self.num_used <= self.num_blocks, "more blocks in use than there are"
        self._give_up()

    def fill(self, chain: Sequence[Hashable]) -> list[Hashable]:
        """Blocks a sequence took before are full now; returns those that others can share.

        One whose tokens are in the cache already stays this sequence's own, as in vLLM.
        """
        known = [b for b in chain if b not in self._shared and b not in self._kept]
        for block in known:
            self._shared[block] = 1
        return known

    def give_back(self, shared: Sequence[Hashable], num_own: int) -> None:
        """A sequence leaves: ``shared``, in order, and so many that only it could use."""
        self.num_used -= num_own
        for block in reversed(shared):
            self._shared[block] -= 1
            if not self._shared[block]:
                del self._shared[block]
                self._kept[block] = None
                self.num_used -= 1
        self._give_up()

    def _give_up(self) -> None:
        room = min(self.num_blocks - self.num_used, MOST_BLOCKS)
        while len(self._kept) > room:
            self._kept.popitem(last=False)


def num_blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return math.ceil(tokens / BLOCK_TOKENS)
