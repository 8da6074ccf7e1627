"""Blocks of the KV cache: what is shared, kept and given up, by hand."""

from __future__ import annotations

from scepsy_hpc.engines.simulated.kv_blocks import MOST_BLOCKS, KvBlocks, num_blocks_of


def test_tokens_fill_blocks_of_sixteen() -> None:
    """None, one, and the first token of a second block."""
    assert [num_blocks_of(n) for n in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_a_prefix_is_found_up_to_the_first_block_that_differs() -> None:
    """What follows a block that is not there does not count, though it is in the cache."""
    blocks = KvBlocks(8)
    blocks.take(3)
    assert blocks.fill("abc") == ["a", "b", "c"]
    assert [blocks.num_found(chain) for chain in ("abc", "abx", "xbc", "")] == [3, 2, 0, 0]


def test_shared_blocks_are_used_once() -> None:
    """Two sequences on one prefix take its blocks once; it is kept until both have left."""
    blocks = KvBlocks(8)
    blocks.take(2)
    blocks.fill("ab")
    blocks.use("ab")
    assert (blocks.num_used, blocks.num_kept("ab")) == (2, 0)
    blocks.give_back("ab", 0)
    assert (blocks.num_used, blocks.num_kept("ab")) == (2, 0)
    blocks.give_back("ab", 0)
    assert (blocks.num_used, blocks.num_kept("ab"), blocks.num_free) == (0, 2, 8)


def test_a_block_that_is_known_already_stays_ones_own() -> None:
    """Two that computed the same at a time hold a block each; one of them can be shared."""
    blocks = KvBlocks(8)
    blocks.take(2)
    assert (blocks.fill("a"), blocks.fill("a")) == (["a"], [])
    blocks.give_back("", 1)
    assert (blocks.num_used, blocks.num_found("a")) == (1, 1)


def test_the_least_recently_used_goes_first_and_the_end_before_the_beginning() -> None:
    """Four blocks: two of `ab`, then one of `c` kept; one more takes `b`, the next `a`."""
    blocks = KvBlocks(4)
    for chain in ("ab", "c"):
        blocks.take(len(chain))
        blocks.give_back(blocks.fill(chain), 0)
    blocks.take(1)
    assert blocks.num_found("ab") == 2  # a blank one was left
    blocks.take(1)
    assert (blocks.num_found("ab"), blocks.num_found("c")) == (1, 1)
    blocks.take(1)
    assert (blocks.num_found("ab"), blocks.num_found("c"), blocks.num_free) == (0, 1, 1)


def test_use_makes_recent() -> None:
    """`a` was kept before `c`; used again in between it goes after it."""
    blocks = KvBlocks(2)
    for chain in ("a", "c"):
        blocks.take(1)
        blocks.give_back(blocks.fill(chain), 0)
    blocks.use("a")
    blocks.give_back("a", 0)
    blocks.take(1)
    assert (blocks.num_found("a"), blocks.num_found("c")) == (1, 0)


def test_a_cache_of_unknown_size_keeps_no_more_than_so_much() -> None:
    """An engine that runs for long does not fill this machine's memory."""
    blocks = KvBlocks(float("inf"))
    blocks.take(MOST_BLOCKS + 5)
    blocks.give_back(blocks.fill(range(MOST_BLOCKS + 5)), 0)
    assert blocks.num_found(range(MOST_BLOCKS + 5)) == MOST_BLOCKS
