"""Traced runs as dependency graphs: what must end before what starts, and the time between.

A span's explicit ``parents`` say what it waited for. Without them a came before b iff a ended no
later than b started, reduced to the edges that no other edge implies, and the run is flagged
`inferred`. Between the end of the latest predecessor and its start a span thinks: that gap, tool
calls, and what follows the last call stay as they were; only LLM calls change with the plan.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Span, check_references


@dataclass(frozen=True, slots=True)
class RunNode:
    """One LLM or tool call of a run.

    ``llm`` is None for what takes a fixed time: a tool, or a call that failed without using
    tokens. ``parents`` index the run's nodes; the call starts ``gap_s`` after the last of them
    ended (after the run's start where there are none) and took ``traced_s``. ``prefix_of``: the
    earlier node whose prompt and answer its prompt begins like, and for how many tokens.
    """

    span_id: str
    llm: str | None
    parents: tuple[int, ...]
    gap_s: float
    traced_s: float
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    prefix_of: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class RunGraph:
    """One run; ``nodes`` stand in an order in which parents come first.

    The run ends ``tail_s`` after the last of ``end_parents`` (after its start where there are
    none). ``inferred``: at least one span did not say its parents. ``cpu_s``: CPU seconds of its
    agent.
    """

    run_id: str
    nodes: tuple[RunNode, ...]
    end_parents: tuple[int, ...]
    tail_s: float
    traced_s: float
    is_ok: bool
    inferred: bool
    cpu_s: float | None = None


@dataclass(slots=True)
class _Piece:
    """A span on its way into the graph: positions order all starts and ends of a run."""

    span: Span
    start_s: float
    start: int = 0
    end: int = 0
    begin: int = 0  # of the span itself, also where the piece is an instant at its end
    explicit: tuple[str, ...] | None = None


def run_graphs(spans: Iterable[Span]) -> list[RunGraph]:
    """One graph for each run, in the order in which the runs first appear.

    Raises InputError naming run and span: an end before its start, a span id that stands twice,
    two run spans, and what ``check_references`` refuses.
    """
    runs: dict[str, list[Span]] = {}
    for span in spans:
        runs.setdefault(span.run_id, []).append(span)
    for run_id, mine in runs.items():
        _check(run_id, mine)
    check_references([span for mine in runs.values() for span in mine])
    return [_run_graph(run_id, mine) for run_id, mine in runs.items()]


def graph_flags(graphs: Sequence[RunGraph]) -> tuple[str, ...]:
    """What the graphs rest on, for people."""
    inferred = sum(graph.inferred for graph in graphs)
    found = []
    if inferred:
        found.append(
            f"inferred: in {inferred} of {len(graphs)} runs the order of calls was taken from "
            "their times, since spans did not name their parents"
        )
    failed = sum(not graph.is_ok for graph in graphs)
    if failed:
        found.append(
            f"failed_runs: {failed} of {len(graphs)} traced runs failed; they load and count in "
            "throughput too, latencies are those of the others"
        )
    return tuple(found)


def _run_graph(run_id: str, spans: Sequence[Span]) -> RunGraph:
    roots = [span for span in spans if span.kind == "run"]
    calls = [span for span in spans if span.kind != "run"]
    start_s = roots[0].start_s if roots else min(span.start_s for span in calls)
    end_s = roots[0].end_s if roots else max(span.end_s for span in calls)
    order = _Order.of(calls)
    edges = [tuple(sorted(order.before(piece))) for piece in order.pieces]
    nodes = []
    for piece, parents in zip(order.pieces, edges, strict=True):
        ready_s = max((order.pieces[p].span.end_s for p in parents), default=start_s)
        nodes.append(_node(order, piece, parents, max(piece.start_s - ready_s, 0.0)))
    # The run's end waits for what nothing else waits for, less what was left running behind it.
    ended = [i for i, piece in enumerate(order.pieces) if piece.span.end_s <= end_s]
    waited_for = {parent for i in ended for parent in edges[i]}
    last = tuple(i for i in ended if i not in waited_for)
    ready_s = max((order.pieces[p].span.end_s for p in last), default=start_s)
    return RunGraph(
        run_id=run_id,
        nodes=tuple(nodes),
        end_parents=last,
        tail_s=max(end_s - ready_s, 0.0),
        traced_s=end_s - start_s,
        is_ok=all(root.status == "ok" for root in roots),
        inferred=any(call.parents is None for call in calls),
        cpu_s=roots[0].cpu_s if roots else None,
    )


def _check(run_id: str, spans: Sequence[Span]) -> None:
    seen: set[str] = set()
    for span in spans:
        where = f"run {run_id}: span {span.span_id}"
        if span.end_s < span.start_s:
            raise InputError(f"{where}: end_s ({span.end_s}) is before start_s ({span.start_s})")
        if span.span_id in seen:
            raise InputError(f"{where}: stands twice; span ids of one run must differ")
        seen.add(span.span_id)
    roots = [span.span_id for span in spans if span.kind == "run"]
    if len(roots) > 1:
        raise InputError(f"run {run_id}: has {len(roots)} run spans ({', '.join(roots)}); one only")


@dataclass(frozen=True, slots=True)
class _Order:
    """The pieces of a run in order of start, and who ended before when.

    ``latest_start[k]`` is the latest start among the first k + 1 pieces to end.
    """

    pieces: tuple[_Piece, ...]
    by_id: dict[str, int]
    ends: tuple[int, ...]
    ended: tuple[int, ...]
    latest_start: tuple[int, ...]

    @classmethod
    def of(cls, calls: Sequence[Span]) -> _Order:
        pieces = _pieces(calls)
        ended = sorted(range(len(pieces)), key=lambda i: pieces[i].end)
        return cls(
            pieces=tuple(pieces),
            by_id={piece.span.span_id: i for i, piece in enumerate(pieces)},
            ends=tuple(pieces[i].end for i in ended),
            ended=tuple(ended),
            latest_start=tuple(accumulate((pieces[i].start for i in ended), max)),
        )

    def before(self, piece: _Piece) -> set[int]:
        """What a piece waited for."""
        if piece.explicit is None:
            return self._latest_before(piece.start)
        found: set[int] = set()
        asked, seen = list(piece.explicit), set(piece.explicit)
        while asked:
            # The run span is no call: whoever names it waited for nothing else.
            index = self.by_id.get(asked.pop())
            if index is None:
                continue
            parent = self.pieces[index]
            if parent.end < piece.start:
                found.add(index)
            elif parent.span.parents is None:
                # Still under way (a sub-agent, a stream): the child waited for what it did.
                found |= self._latest_before(min(parent.begin, piece.start))
            else:
                asked.extend(p for p in parent.span.parents if p not in seen)
                seen.update(parent.span.parents)
        return found

    def _latest_before(self, position: int) -> set[int]:
        """What ended before a position, less what is before another of these."""
        count = bisect_left(self.ends, position)
        if not count:
            return set()
        first = bisect_right(self.ends, self.latest_start[count - 1], 0, count)
        return set(self.ended[first:count])


def _pieces(calls: Sequence[Span]) -> list[_Piece]:
    """Pieces in order of start, with positions such that `before` is one comparison.

    A tool that encloses LLM calls (a sub-agent) is no fixed time: it becomes an instant at its
    end, so that its length follows the calls inside.
    """
    models = sorted((s.start_s, s.end_s) for s in calls if s.kind == "llm")
    starts = [start_s for start_s, _ in models]
    found = []
    for span in calls:
        inside: list[tuple[float, float]] = []
        if span.kind == "tool":
            inside = models[bisect_left(starts, span.start_s) : bisect_right(starts, span.end_s)]
        encloses = any(end_s <= span.end_s for _, end_s in inside)
        start_s = span.end_s if encloses else span.start_s
        found.append(_Piece(span, start_s, explicit=None if encloses else span.parents))
    # At one instant: first what ends there, then instants one by one, then what starts there.
    marks = []
    for index, piece in enumerate(found):
        instant = piece.start_s == piece.span.end_s
        marks.append((piece.start_s, 1 if instant else 2, index, 0))
        marks.append((piece.span.end_s, 1 if instant else 0, index, 1))
        marks.append((piece.span.start_s, 2, index, -1))
    for position, (_, _, index, which) in enumerate(sorted(marks)):
        setattr(found[index], ("start", "end", "begin")[which], position)
    return sorted(found, key=lambda piece: piece.start)


def _node(order: _Order, piece: _Piece, parents: tuple[int, ...], gap_s: float) -> RunNode:
    span = piece.span
    duration_s = span.end_s - piece.start_s
    used = span.kind == "llm" and (span.status == "ok" or (span.output_tokens or 0) > 0)
    if not used:
        return RunNode(span.span_id, None, parents, gap_s, duration_s)
    return RunNode(
        span_id=span.span_id,
        llm=span.llm,
        parents=parents,
        gap_s=gap_s,
        traced_s=duration_s,
        input_tokens=span.input_tokens,
        output_tokens=span.output_tokens,
        cached_tokens=span.cached_tokens,
        prefix_of=_prefix_of(order, piece),
    )


def _prefix_of(order: _Order, piece: _Piece) -> tuple[int, int] | None:
    """The earlier call, by its index, and tokens; None where its record was lost."""
    prefix = piece.span.prefix_of
    if prefix is None:
        return None
    index = order.by_id.get(prefix.span_id)
    if index is None or order.pieces[index].start >= piece.start:
        return None
    return index, prefix.tokens
