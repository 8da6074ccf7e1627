"""Which earlier call of its run a call continues: what spans say as `prefix_of`.

A prompt is cut into pieces of PIECE_BYTES, each known by a hash of everything up to its end, as an
engine's prefix cache does with tokens. Of the pieces of all earlier prompts and answers of the run
to the same LLM, the longest chain from the beginning is what the call repeats. Lengths are in bytes
here; the engine's own count of the prompt's tokens makes tokens of them, rounded down. Looking a
prompt up costs one hash a piece.

What is remembered is bounded: MOST_PIECES in all, then the run unused for longest is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from scepsy_hpc.formats.spans import Prefix

PIECE_BYTES = 64
"""About the sixteen tokens of a block of vLLM."""

MOST_PIECES = 1 << 18
"""16 MiB of text, some 30 MB of memory."""


@dataclass(slots=True, eq=False)
class EarlierCall:
    """A call as later ones see it; ``host`` took it last, None where nobody has."""

    span_id: str
    start_s: float
    host: str | None = None


@dataclass(slots=True)
class Repeat:
    """What one call has in common with an earlier one: ``num_bytes`` of its ``prompt``."""

    mine: EarlierCall
    earlier: EarlierCall | None = None
    num_bytes: int = 0
    prompt: bytes = b""

    @property
    def holder(self) -> str | None:
        """The host whose cache has the common part, as far as the proxy can know."""
        return self.earlier.host if self.earlier else None

    def prefix(self, input_tokens: int | None) -> Prefix | None:
        """As a span says it, once the prompt's tokens are known; None: repeats nothing."""
        if self.earlier is None or not input_tokens:
            return None
        # Of two bodies on their way at once the later call's may be read first.
        if self.earlier.start_s > self.mine.start_s:
            return None
        tokens = self.num_bytes * input_tokens // len(self.prompt)
        return Prefix(span_id=self.earlier.span_id, tokens=tokens) if tokens else None


@dataclass(slots=True)
class Prompts:
    """The prompts of the runs in flight, by run and LLM."""

    most_pieces: int = MOST_PIECES
    _runs: OrderedDict[str, dict[tuple[str, int], EarlierCall]] = field(default_factory=OrderedDict)
    _num_pieces: int = 0

    def look_up(
        self, run_id: str, alias: str, prompt: bytes | None, span_id: str, start_s: float = 0.0
    ) -> Repeat:
        """What a call repeats; from now on later ones may repeat it.

        ``prompt``: see ``conversation.prompt_of``; None repeats nothing.
        """
        repeat = Repeat(EarlierCall(span_id, start_s), prompt=prompt or b"")
        known = self._of_run(run_id)
        for end, piece in _pieces(repeat.prompt):
            earlier = known.get((alias, piece))
            if earlier is None:
                break
            repeat.earlier, repeat.num_bytes = earlier, end
        self._add(run_id, alias, repeat.prompt, repeat.mine)
        return repeat

    def add_answer(self, run_id: str, alias: str, repeat: Repeat, answer: bytes) -> None:
        """Later calls may begin with the prompt and what was answered to it."""
        if answer and repeat.prompt:
            self._add(run_id, alias, repeat.prompt + answer, repeat.mine)

    def forget(self, run_id: str, alias: str, repeat: Repeat) -> None:
        """The call failed: no cache has what it added."""
        known = self._of_run(run_id)
        for end, piece in _pieces(repeat.prompt):
            if known.get((alias, piece)) is not repeat.mine:
                continue
            if repeat.earlier is not None and end <= repeat.num_bytes:
                known[alias, piece] = repeat.earlier
            else:
                del known[alias, piece]
                self._num_pieces -= 1

    def _of_run(self, run_id: str) -> dict[tuple[str, int], EarlierCall]:
        known = self._runs.setdefault(run_id, {})
        self._runs.move_to_end(run_id)
        return known

    def _add(self, run_id: str, alias: str, text: bytes, mine: EarlierCall) -> None:
        known = self._of_run(run_id)
        before = len(known)
        for _, piece in _pieces(text):
            known[alias, piece] = mine
        self._num_pieces += len(known) - before
        while self._num_pieces > self.most_pieces:
            _, forgotten = self._runs.popitem(last=False)
            self._num_pieces -= len(forgotten)


def _pieces(text: bytes) -> Iterator[tuple[int, int]]:
    """End and hash of each whole piece; a hash stands for everything up to that end."""
    piece = 0
    for end in range(PIECE_BYTES, len(text) + 1, PIECE_BYTES):
        piece = hash((piece, text[end - PIECE_BYTES : end]))
        yield end, piece
