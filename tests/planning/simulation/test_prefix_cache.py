"""Stretches of blocks: by hand."""

from __future__ import annotations

import math

from scepsy_hpc.planning.simulation.prefix_cache import Holding, PrefixCache, Stretch, paths_of


def test_paths_by_hand() -> None:
    """Blocks of 16. A call of 100 tokens; one that repeats 70 of it; one that repeats 90 of that.

    70 tokens are 4 whole blocks; of the second's 120 tokens (7 blocks) the third repeats 5.
    """
    paths = paths_of([None, (0, 70), (1, 90)], [100, 120, 33])
    assert paths[0] == (Stretch(0, 0, 6),)
    assert paths[1] == (Stretch(0, 0, 4), Stretch(1, 4, 7))
    assert paths[2] == (Stretch(0, 0, 4), Stretch(1, 4, 5), Stretch(2, 5, 5))
    assert paths_of([None, (0, 999)], [40, 200])[1] == (Stretch(0, 0, 2), Stretch(1, 2, 12))


def run(cache: PrefixCache, holding: Holding, num_blocks: int) -> int:
    """A call that takes so many blocks, fills them and leaves; how many it found."""
    found, _ = cache.find(holding, num_blocks)
    cache.use(holding, found)
    cache.take(num_blocks - found)
    cache.fill(holding, num_blocks)
    cache.give_back(holding, num_blocks)
    return found


def test_the_least_recently_used_goes_first_and_its_end_before_its_beginning() -> None:
    """Ten blocks: two calls of four are kept; a third of four takes two from the end of the first.

    Then the second call again makes it the newest, and what goes next is the rest of the first.
    """
    cache = PrefixCache(10)
    paths = [(Stretch(owner, 0, 4),) for owner in range(4)]
    assert [run(cache, Holding(0, path), 4) for path in paths[:2]] == [0, 0]
    assert (cache.num_kept, cache.num_used) == (8, 0)
    run(cache, Holding(0, paths[2]), 4)
    assert [cache.find(Holding(0, path), 9)[0] for path in paths] == [2, 4, 4, 0]
    assert run(cache, Holding(0, paths[1]), 4) == 4
    run(cache, Holding(0, paths[3]), 4)
    assert [cache.find(Holding(0, path), 9)[0] for path in paths] == [0, 4, 2, 4]
    assert cache.find(Holding(1, paths[1]), 9) == (0, 0)  # another run's tokens are others


def test_what_is_in_use_never_goes() -> None:
    """Three of four blocks in use by one call; another's needs push out only what nobody uses."""
    cache = PrefixCache(4)
    held = Holding(0, (Stretch(0, 0, 3),))
    cache.take(3)
    cache.fill(held, 3)
    assert (cache.num_free, cache.num_used) == (1, 3)
    run(cache, Holding(0, (Stretch(1, 0, 1),)), 1)
    run(cache, Holding(0, (Stretch(2, 0, 1),)), 1)
    assert [cache.find(Holding(0, (Stretch(i, 0, 3),)), 3)[0] for i in range(3)] == [3, 0, 1]
    again = Holding(0, held.path)
    cache.use(again, 2)
    assert cache.num_used == 3  # shared blocks count once
    cache.give_back(held, 3)
    assert (cache.num_used, cache.num_kept) == (2, 2)
    cache.give_back(again, 2)
    assert (cache.num_used, cache.num_kept) == (0, 4)


def test_without_a_limit_everything_is_kept() -> None:
    """A conversation of three turns finds all of the turn before."""
    cache = PrefixCache(math.inf)
    paths = paths_of([None, (0, 64), (1, 128)], [64, 128, 192])
    assert [run(cache, Holding(7, path), 4 * (i + 1)) for i, path in enumerate(paths)] == [0, 4, 8]
