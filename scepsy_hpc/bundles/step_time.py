"""The engine model: how long one engine step takes, and the steady state that follows from it.

An engine that batches continuously works in steps. A step in which P prefill tokens are computed
and B sequences decode one token each, over C tokens of context in all, is taken to last

    t = step_s + expert_s * A + prefill_token_s * P + sequence_s * B + context_token_s * C.

A is the part of a mixture's experts that the step's P + B tokens wake: 1 - (1 - k/E)^(P + B) where
each token goes to k of E. In a dense model there is no such term.

Under a closed load of k equal calls (I input, O output tokens) the engine is never idle, so over
the life of one call every other call has its life too, once. One call's life then lasts

    L(k) = step_s * N + k * (prefill_token_s * I + (O - 1) * (sequence_s + context_token_s * c)),

with N the steps it takes part in and c = I + O / 2 the mean context while it decodes. N is the
larger of its own steps and of what the token budget of a step allows all k calls together. Experts
add expert_s times what N decode steps of k sequences wake, and all of them in steps with prefill.
Throughput is k / L by Little's law. When the KV cache holds only K < k calls, the others wait:
throughput stays at K / L(K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scepsy_hpc.bundles.mps_slowdown import slowdown
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.parallelism import GIB, usable_memory_gib

DEFAULT_BATCHED_TOKENS = 8192
"""Token budget of a step where the bundle does not say (the vLLM server's default on big GPUs)."""

DEFAULT_NUM_SEQS = 256
"""Sequences in a batch where neither bundle nor engine says."""

JOIN_WINDOW_S = 0.004
"""A call this soon after a step's start still joins it: what an answer and the next call over
loopback take (see ``engines.simulated.batching.RunningBatch``)."""


MAX_POINT_ERROR = 0.15
MAX_SHAPE_ERROR = 0.25
"""Median misses of held-out points up to which a fit has passed its hold-out."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: each token goes to ``per_token`` of ``total`` experts a layer."""

    per_token: int
    total: int

    def woken(self, num_tokens: float) -> float:
        """Part of the experts that so many tokens wake, were each choice independent."""
        if self.per_token >= self.total:
            return 1.0 if num_tokens > 0 else 0.0
        return -math.expm1(num_tokens * math.log1p(-self.per_token / self.total))


@dataclass(frozen=True, slots=True)
class HalfWidths:
    """Half-widths of 95% intervals, by kind of statement: logarithms of a factor on latency.

    Between points, below the first, past the last; at token lengths, and at a TP degree, that
    nobody measured.
    """

    between: float
    below: float
    beyond: float
    shape: float
    tp_degree: float


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well a fit did: median absolute percentage errors of latency, as fractions.

    ``held_out_point`` leaves out one concurrency at a time, ``held_out_shape`` one pair of
    token lengths at a time; None where too few points are left to fit on. ``num_shapes``: one
    alone leaves prefill, sequences and context to be told apart by TTFT and proportions only.
    """

    num_points: int
    in_sample: float
    held_out_point: float | None
    held_out_shape: float | None
    num_shapes: int = 1
    half_widths: HalfWidths | None = None

    @property
    def failing(self) -> tuple[str, float, float] | None:
        """What failed its hold-out, its median miss, and what is allowed; None: it passed."""
        judged = [
            ("a held-out concurrency", self.held_out_point, MAX_POINT_ERROR),
            ("a held-out token shape", self.held_out_shape, MAX_SHAPE_ERROR),
        ]
        if self.held_out_point is None and self.held_out_shape is None:
            judged = [("its own points", self.in_sample, MAX_POINT_ERROR)]
        for what, miss, allowed in judged:
            if miss is not None and miss > allowed:
                return what, miss, allowed
        return None


@dataclass(frozen=True, slots=True)
class SteadyState:
    """Means under a closed load of equal calls; ``num_running`` of them are in the batch."""

    throughput_rps: float
    latency_s: float
    ttft_s: float
    tpot_s: float | None
    num_running: float


@dataclass(frozen=True, slots=True)
class EngineModel:
    """Step time of one engine at one (TP, share, link), with its limits.

    The three ``ttft_*`` factors are dimensionless: they weigh the step under way, the call's own
    prefill, and other calls' prefills ahead of it. ``kv_tokens`` is what the KV cache holds.
    """

    step_s: float
    prefill_token_s: float
    sequence_s: float
    context_token_s: float
    max_num_batched_tokens: int = DEFAULT_BATCHED_TOKENS
    max_num_seqs: int | None = None
    kv_tokens: float | None = None
    ttft_step_factor: float = 1.5
    ttft_own_factor: float = 1.0
    ttft_others_factor: float = 0.5
    quality: FitQuality | None = None
    derived: bool = False
    expert_s: float = 0.0
    experts: Experts | None = None

    def step_time_s(
        self, prefill_tokens: float, num_decoding: float, context_tokens: float
    ) -> float:
        """Seconds of one step; zero when there is nothing to do."""
        if prefill_tokens <= 0 and num_decoding <= 0:
            return 0.0
        step_s = self.step_s
        if self.experts is not None:
            step_s += self.expert_s * self.experts.woken(prefill_tokens + num_decoding)
        return (
            step_s
            + self.prefill_token_s * prefill_tokens
            + self.sequence_s * num_decoding
            + self.context_token_s * context_tokens
        )

    def max_running(self, input_tokens: float, output_tokens: float) -> float:
        """Calls of this length that fit the batch and the KV cache together (may be infinite).

        Raises InputError when not even one fits.
        """
        limit = math.inf if self.max_num_seqs is None else float(self.max_num_seqs)
        if self.kv_tokens is None:
            return limit
        fitting = self.kv_tokens / max(input_tokens + output_tokens, 1.0)
        if fitting < 1.0:
            raise InputError(
                f"a call of {input_tokens + output_tokens:.0f} tokens does not fit a KV cache of "
                f"{self.kv_tokens:.0f} tokens; give the model more memory (TP, GPU share)"
            )
        return min(limit, fitting)

    def closed_loop(
        self,
        concurrency: float,
        input_tokens: float,
        output_tokens: float,
        cached_tokens: float = 0.0,
    ) -> SteadyState:
        """Steady state with ``concurrency`` calls in flight (module docstring).

        ``cached_tokens`` of the input are found in the prefix cache and need no prefill.
        Raises InputError when one call does not fit the KV cache.
        """
        running = min(concurrency, self.max_running(input_tokens, output_tokens))
        prefill = max(input_tokens - cached_tokens, 1.0)
        life_s = self._life_s(running, prefill, input_tokens, output_tokens)
        throughput_rps = running / life_s
        latency_s = concurrency / throughput_rps
        ttft_s = self._ttft_s(running, prefill, input_tokens, output_tokens, life_s)
        ttft_s = min(ttft_s + latency_s - life_s, latency_s)
        if output_tokens <= 1.0:
            return SteadyState(throughput_rps, latency_s, latency_s, None, running)
        tpot_s = (latency_s - ttft_s) / (output_tokens - 1.0)
        return SteadyState(throughput_rps, latency_s, ttft_s, tpot_s, running)

    def _life_s(self, running: float, prefill: float, inputs: float, outputs: float) -> float:
        steps, work = life_terms(running, prefill, inputs, outputs, self.max_num_batched_tokens)
        factors = (self.prefill_token_s, self.sequence_s, self.context_token_s)
        per_call = sum(f * w for f, w in zip(factors, work, strict=True))
        life_s = self.step_s * steps + running * per_call
        if self.experts is not None:
            budget = self.max_num_batched_tokens
            life_s += self.expert_s * expert_steps(self.experts, running, prefill, steps, budget)
        return life_s

    def _ttft_s(
        self, running: float, prefill: float, inputs: float, outputs: float, life_s: float
    ) -> float:
        step, own, others = self.ttft_terms(running, prefill, inputs, outputs, life_s)
        return (
            self.ttft_step_factor * step
            + self.ttft_own_factor * own
            + self.ttft_others_factor * others
        )

    def ttft_terms(
        self, running: float, prefill: float, inputs: float, outputs: float, life_s: float
    ) -> tuple[float, float, float]:
        """Seconds of a step beside the prompt, of the call's own prefill, of prefills ahead of it.

        The last is the others' prefill time times the fraction of time the engine prefills.
        """
        decoding = running * max(outputs - 1.0, 0.0) / outputs
        own = self.prefill_token_s * prefill
        step = self.step_time_s(prefill, decoding, decoding * (inputs + outputs / 2.0)) - own
        prefilling = min(running * own / life_s, 1.0)
        return step, own, own * max(running - 1.0, 0.0) * prefilling

    def at_share(
        self, gpu_share_pct: float, read_s: tuple[float, float] | None = None
    ) -> EngineModel:
        """This model (of a whole GPU) on a share of it, the rest busy: *derived*, not measured.

        Prefill slows down with its own factor, everything else with that of decoding. ``read_s``
        (weights, a token of context) is what the whole memory needs to read them: on a share of
        its bandwidth a step takes no less than that over the share. Without it the share's
        throughput is bounded only by whoever holds it to the whole GPU's.
        """
        if gpu_share_pct >= 100:
            return self
        made = replace(self.slower(*slowdown(gpu_share_pct)), derived=True)
        if read_s is None:
            return made
        weights_s, context_s = (100.0 / gpu_share_pct * seconds for seconds in read_s)
        step = max(weights_s / max(made.step_s + made.expert_s, 1e-12), 1.0)
        return replace(
            made,
            step_s=made.step_s * step,
            expert_s=made.expert_s * step,
            context_token_s=max(made.context_token_s, context_s),
        )

    def slower(self, prefill: float, decode: float) -> EngineModel:
        """This model with prefill, and with all else, so many times as long."""
        return replace(
            self,
            step_s=self.step_s * decode,
            prefill_token_s=self.prefill_token_s * prefill,
            sequence_s=self.sequence_s * decode,
            context_token_s=self.context_token_s * decode,
            expert_s=self.expert_s * decode,
        )


def life_terms(
    running: float, prefill: float, inputs: float, outputs: float, budget: float
) -> tuple[float, tuple[float, float, float]]:
    """Steps in the life of a call, and its (prefill tokens, decode steps, context tokens)."""
    decodes = max(outputs - 1.0, 0.0)
    own_steps = decodes + max(prefill / budget, 1.0)
    steps = max(own_steps, running * (prefill + decodes) / budget)
    return steps, (prefill, decodes, decodes * (inputs + outputs / 2.0))


def expert_steps(
    experts: Experts, running: float, prefill: float, steps: float, budget: float
) -> float:
    """Steps in the life of a call, each weighed by the part of the experts that it wakes.

    Each of the ``running`` calls prefills once in that time, in steps that wake all of them.
    """
    woken = experts.woken(running)
    prefilling = min(running * max(prefill / budget, 1.0), steps)
    return steps * woken + prefilling * (1.0 - woken)


def kv_tokens_that_fit(
    gpu_memory_gib: float,
    tp_degree: int,
    gpu_share_pct: float,
    weights_gib: float,
    kv_bytes_per_token: float,
    num_kv_heads: int | None = None,
) -> float:
    """Tokens of KV cache beside the weights; not above zero when the weights do not fit.

    Each GPU of a group holds at least one KV head: with more GPUs than heads (latent attention
    counts as one) heads are held more than once.
    """
    usable_gib = usable_memory_gib(gpu_memory_gib, gpu_share_pct, tp_degree)
    copies = 1.0 if num_kv_heads is None else max(tp_degree / num_kv_heads, 1.0)
    return (usable_gib - weights_gib) * GIB / (kv_bytes_per_token * copies)
