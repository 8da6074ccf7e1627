"""How much disk a run takes: bytes of a span, a result and an engine's log line, raw and packed.

    python bench/room.py [--json FILE]

The shipped traces are written as a run writes them, repeated with new ids, times and token counts
until a part is full, and packed as a run packs them. Nothing is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scepsy_hpc.files import json_line, shipped_path
from scepsy_hpc.formats.results import TaskResult
from scepsy_hpc.formats.spans import Prefix, Span, load_spans, new_run_id
from scepsy_hpc.serving.log_room import MOST_LOG_BYTES, MOST_LOGS_OF_INSTANCE
from scepsy_hpc.serving.span_log import PART_BYTES, compress_part

MILLION = 1_000_000
WORKFLOWS = ("beam_search", "rag_rerank")
UNIX_S = 1.7e9
# As the proxy numbers them: a word of its start, then one, two, three.
_CALLS = itertools.count(1)


def main() -> None:
    """Measure, print, and write the figures where told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    figures = measure()
    for row in figures["spans"]:
        print(
            f"{row['workflow']:12} {row['raw_bytes_a_span']:6.0f} bytes a span, packed "
            f"{row['packed_bytes_a_span']:5.1f}; {row['spans_a_call']:.2f} spans a call; a "
            f"million calls: {row['raw_mib_a_million_calls']:.0f} MiB, packed "
            f"{row['packed_mib_a_million_calls']:.0f} MiB"
        )
    print(f"{figures['result_bytes']} bytes a recorded task beside its own result, in two files")
    print(f"logs of an instance: at most {figures['most_log_mib_an_instance']} MiB")
    path = parser.parse_args().json
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure() -> dict[str, Any]:
    """All figures; the same in every run but for the random part of run ids."""
    rows = [_spans_row(workflow) for workflow in WORKFLOWS]
    result = TaskResult(
        task_id="task-000001",
        status="ok",
        attempts=1,
        started_s=UNIX_S + 0.123456,
        finished_s=UNIX_S + 30.654321,
        result=None,
    )
    return {
        "part_mib": PART_BYTES // 2**20,
        "spans": rows,
        "result_bytes": len(json_line(result)),
        "most_log_mib_an_instance": MOST_LOG_BYTES * MOST_LOGS_OF_INSTANCE // 2**20,
    }


def _spans_row(workflow: str) -> dict[str, Any]:
    traced = load_spans(shipped_path("workflows") / workflow / "spans.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "000001.jsonl"
        num_spans, num_calls = _fill(part, traced)
        raw = part.stat().st_size
        compress_part(part)
        packed = part.with_name("000001.jsonl.gz").stat().st_size
    return {
        "workflow": workflow,
        "raw_bytes_a_span": round(raw / num_spans, 1),
        "packed_bytes_a_span": round(packed / num_spans, 1),
        "spans_a_call": round(num_spans / num_calls, 3),
        "raw_mib_a_million_calls": round(raw / num_calls * MILLION / 2**20),
        "packed_mib_a_million_calls": round(packed / num_calls * MILLION / 2**20),
    }


def _fill(part: Path, traced: Sequence[Span]) -> tuple[int, int]:
    num_spans = num_calls = num_bytes = 0
    with part.open("w", encoding="utf-8") as stream:
        for span in _as_run(traced):
            line = json_line(span)
            num_bytes += stream.write(line)
            num_spans += 1
            num_calls += span.kind == "llm"
            if num_bytes >= PART_BYTES:
                return num_spans, num_calls
    raise AssertionError("unreachable: runs never end")


def _as_run(traced: Sequence[Span]) -> Iterator[Span]:
    """The traced runs again and again, each with an id, times and tokens of its own."""
    runs: dict[str, list[Span]] = {}
    for span in traced:
        runs.setdefault(span.run_id, []).append(span)
    rng, number = random.Random(1), 0
    while True:
        for spans in runs.values():
            number += 1
            yield from _one_run(spans, f"task-{number:06}", UNIX_S + 0.37 * number, rng)


def _one_run(
    spans: Sequence[Span], task: str, start_s: float, rng: random.Random
) -> Iterator[Span]:
    run_id, first_s = new_run_id(task), min(span.start_s for span in spans)
    names = {span.span_id: f"0dafde65-{next(_CALLS)}" for span in spans if span.kind == "llm"}
    for span in spans:
        stretch = rng.uniform(0.9, 1.1)
        begin_s = start_s + (span.start_s - first_s) * stretch
        prefix = span.prefix_of
        yield replace(
            span,
            run_id=run_id,
            span_id=names.get(span.span_id, f"{run_id}.run"),
            start_s=begin_s,
            end_s=begin_s + span.duration_s * stretch,
            ttft_s=None if span.ttft_s is None else span.ttft_s * stretch,
            input_tokens=_near(span.input_tokens, rng),
            output_tokens=_near(span.output_tokens, rng),
            cached_tokens=span.cached_tokens,
            parents=tuple(names.get(p, p) for p in span.parents) if span.parents else None,
            prefix_of=Prefix(span_id=names[prefix.span_id], tokens=prefix.tokens)
            if prefix
            else None,
        )


def _near(tokens: int | None, rng: random.Random) -> int | None:
    return None if tokens is None else tokens + rng.randrange(16)


if __name__ == "__main__":
    main()
