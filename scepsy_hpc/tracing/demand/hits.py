"""What a call finds in the prefix cache of the replica it goes to, under a routing rule.

An engine that said what it cached is believed, as far as the replica is the same: of what calls of
one run share, a replica under `least_in_flight` has only what went to it before, with r replicas
1/r of it; under `sticky_prefix` it has all, and one replica has all under any rule. What engines
found beyond a run's own repeats (a system prompt that all runs share) every replica has.

Where no engine said, a repeat counts as found in whole blocks, and nothing else does. Not counted:
what a full cache has given up, and that a sticky call sometimes has to go elsewhere.
"""

from __future__ import annotations

from scepsy_hpc.formats.plan import LlmDemand, Routing
from scepsy_hpc.formats.spans import BLOCK_TOKENS
from scepsy_hpc.metrics import Floats


def in_blocks(prefix_tokens: Floats, input_tokens: Floats) -> Floats:
    """Tokens [C] of a repeat that a cache can have: whole blocks; the last token never. NaN: 0."""
    most = (input_tokens - 1.0) // BLOCK_TOKENS
    # NaN where either is unknown.
    blocks = (prefix_tokens // BLOCK_TOKENS).clip(0.0, most.clip(0.0))
    blocks[blocks != blocks] = 0.0
    return blocks * BLOCK_TOKENS


def expected_hit_tokens(demand: LlmDemand, num_replicas: float, routing: Routing) -> float:
    """Mean tokens of a call's input that the replica has cached; see the module.

    ``num_replicas`` may be infinite: what is found however many there are.
    """
    repeated = demand.prefix_tokens_mean or 0.0
    found = repeated if demand.cached_tokens_mean is None else demand.cached_tokens_mean
    if routing.rule == "sticky_prefix":
        return found
    own = min(found, repeated)
    return found - own + own / num_replicas


def hit_flag(demand: LlmDemand, num_replicas: int, routing: Routing) -> str | None:
    """What of the input a plan counts as found, where that rests on more than an engine's word.

    A plan counts what one replica finds, or several under sticky routing.
    """
    repeated, inputs = demand.prefix_tokens_mean or 0.0, demand.input_tokens_mean or 0.0
    if repeated <= 0.0 or inputs <= 0.0:
        return None
    counted = expected_hit_tokens(demand, 1, routing)
    least = expected_hit_tokens(demand, num_replicas, routing)
    said = (
        "no engine said what it cached"
        if demand.cached_tokens_mean is None
        else f"engines found {100 * demand.cached_tokens_mean / inputs:.0f}% in the trace"
    )
    rest = ""
    if least < counted:
        rest = (
            f"; {num_replicas} replicas under {routing.rule} may find as little as "
            f"{100 * least / inputs:.0f}%, which the simulation counts"
        )
    return (
        f"cached prefix: {100 * counted / inputs:.0f}% of the input is counted as cached; "
        f"{100 * repeated / inputs:.0f}% repeats an earlier prompt of its run, {said}{rest}"
    )
