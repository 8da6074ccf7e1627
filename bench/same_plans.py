"""Do two checkouts make the same plans? Every shipped workflow, target and topology.

    python bench/same_plans.py record FILE [--checkout DIR]   # what this (or that) checkout says
    python bench/same_plans.py compare BEFORE.json AFTER.json # every figure that differs

Figures are compared to the last digit. Paths and explanations are left out: words may change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
NOT_FIGURES = frozenset(("inputs", "explanation", "folder", "path"))

NODE = "{{name: {name}, gpu_type: {type}, gpu_memory_gib: 80, nvlink_domains: {domains}{more}}}"


def _topology(*nodes: str) -> str:
    return "schema: scepsy/topology/v1\nnodes:\n" + "".join(f"- {node}\n" for node in nodes)


def _node(name: str, gpu_type: str, domains: list[list[int]], free: list[int] | None = None) -> str:
    more = "" if free is None else f", free_gpus: {free}"
    return NODE.format(name=name, type=gpu_type, domains=domains, more=more)


FOUR, EIGHT = [0, 1, 2, 3], [4, 5, 6, 7]
TOPOLOGIES = {
    "1 node of 4 H100": _topology(_node("n1", "h100_sxm", [FOUR])),
    "2 nodes of 8 A100": _topology(*(_node(f"n{i}", "a100_sxm", [FOUR, EIGHT]) for i in (1, 2))),
    "8 nodes of 8 H100": _topology(
        *(_node(f"n{i}", "h100_sxm", [[*FOUR, *EIGHT]]) for i in range(8))
    ),
    "fragments of 3 nodes": _topology(
        _node("n1", "h100_sxm", [FOUR, EIGHT], [0, 1, 5]),
        _node("n2", "h100_sxm", [FOUR], [3]),
        _node("n3", "h100_sxm", [FOUR, EIGHT], [2, 4, 5, 6, 7]),
    ),
    "H100 and A100": _topology(
        _node("n1", "h100_sxm", [FOUR]), _node("n2", "a100_sxm", [FOUR, EIGHT])
    ),
}
WORKFLOWS = {
    "rag_rerank": (("rag_rerank", 2.0),),
    "beam_search": (("beam_search", 0.5),),
    "both": (("rag_rerank", 1.0), ("beam_search", 0.25)),
}
TARGETS = {
    "rates": (),
    "rates, within 5%": ("--within", "5%"),
    "rates, at most 3 GPUs": ("--gpus", "3"),
    "rates, 1.2 s": ("--latency-limit", "1200ms"),
    "rates, p95 5 s": ("--p95-limit", "5s"),
    "throughput": ("--max-throughput",),
    "throughput, within 10%": ("--max-throughput", "--within", "10%"),
    "throughput, 3 s": ("--max-throughput", "--latency-limit", "3s"),
    "deadline": ("--tasks", "2000", "--deadline", "30min"),
}


@dataclass(frozen=True)
class Case:
    """One command line of `scepsy`; ``topology`` is a name, the plan's path is `PLAN`."""

    name: str
    topology: str
    words: tuple[str, ...]
    follow_ups: tuple[tuple[str, ...], ...] = ()


def cases(checkout: Path) -> Iterator[Case]:
    """Every workflow under every target on every topology; three plans are also predicted."""
    products = itertools.product(TOPOLOGIES, WORKFLOWS.items(), TARGETS.items())
    for topology, (flow, parts), (target, options) in products:
        words = ["plan", "--profiles", str(checkout / "profiles")]
        for name, rate in parts:
            folder = checkout / "workflows" / name
            prefix = f"{name}=" if len(parts) > 1 else ""
            words += ["--workflow", f"{prefix}{folder / 'workflow.yaml'}@{rate}"]
            words += ["--spans", f"{prefix}{folder / 'spans.jsonl'}"]
        more: tuple[tuple[str, ...], ...] = ()
        if target in ("rates", "deadline"):
            more = (("predict", "PLAN"), ("predict", "PLAN", "--rate", "0.7"))
        if target == "rates":
            more = (*more, ("simulate", "PLAN", "--rate", "0.7", "--runs", "60", "--seed", "3"))
        yield Case(f"{flow}; {target}; {topology}", topology, (*words, *options), more)


def record(checkout: Path, workers: int) -> dict[str, Any]:
    """Exit code and figures (or the error's line) of each case."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(workers) as pool:
        folder = Path(scratch)
        every = list(cases(checkout))
        done = pool.map(lambda pair: _run(*pair, folder, environment), enumerate(every))
        return {case.name: found for case, found in zip(every, done, strict=True)}


def _run(number: int, case: Case, folder: Path, environment: dict[str, str]) -> list[Any]:
    topology, plan = folder / f"{number}.topology.yaml", folder / f"{number}.plan.yaml"
    topology.write_text(TOPOLOGIES[case.topology])
    line = [*case.words, "--topology", str(topology), "-o", str(plan)]
    found = [_figures(line, environment)]
    for words in case.follow_ups if plan.exists() else ():
        found.append(_figures([str(plan) if w == "PLAN" else w for w in words], environment))
    return found


def _figures(words: list[str], environment: dict[str, str]) -> Any:
    line = [sys.executable, "-m", "scepsy_hpc", *words, "--json"]
    ended = subprocess.run(
        line, capture_output=True, text=True, env=environment, cwd=environment["PYTHONPATH"]
    )
    if ended.returncode:
        return {"exit_code": ended.returncode, "error": ended.stderr.strip().splitlines()[-1]}
    return json.loads(ended.stdout)


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Each figure that stands in one and not, or not the same, in the other."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after} - NOT_FIGURES):
            if key in before and key in after:
                yield from differences(before[key], after[key], f"{where}.{key}")
            else:
                side = "before" if key in before else "after"
                yield f"{where}.{key}: only {side}: {(before | after)[key]!r}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif before != after:
        yield f"{where}: {before!r} -> {after!r}"


def main() -> int:
    """Exit code 1 where a figure differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = parser.add_subparsers(dest="way", required=True)
    to_record = ways.add_parser("record")
    to_record.add_argument("file", type=Path)
    to_record.add_argument("--checkout", type=Path, default=HERE)
    to_record.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    to_compare = ways.add_parser("compare")
    to_compare.add_argument("before", type=Path)
    to_compare.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.way == "record":
        found = record(asked.checkout.resolve(), asked.workers)
        asked.file.write_text(json.dumps(found, indent=1, sort_keys=True))
        failed = sum("exit_code" in one[0] for one in found.values())
        print(f"{len(found)} cases, {failed} of them refused")
        return 0
    before, after = (json.loads(p.read_text()) for p in (asked.before, asked.after))
    found = list(differences(before, after))
    print("\n".join(found) or f"the same in all {len(before)} cases")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
