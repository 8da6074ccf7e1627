"""Would the tests notice a bug? Plants small ones in a module, one at a time, and runs its tests.

    python bench/mutants.py                                  # the modules of MODULES
    python bench/mutants.py --seeds 1,2 --per-module 40 -o found.json
    python bench/mutants.py --module scepsy_hpc/serving/routing.py=tests/serving/test_routing.py

A seeded sample of the changes that ``mutations.py`` knows of each module. A change is killed when
a test fails or takes six times as long. What survives is printed as `file:line:column`: write a
test that fails, or, where the change changes nothing, copy its entry of the JSON file into
``mutants_equivalent.json`` and say in ``same`` why. Ends with 1 where a module is below 85%.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutant_runs import Job, Place
from mutations import Site, sites

# A module to the tests that should notice: its own, and where it has none, those of what uses it.
MODULES = {
    "scepsy_hpc/planning/choose.py": ("tests/planning/test_choose.py",),
    "scepsy_hpc/planning/pipeline/pipeline.py": ("tests/planning/pipeline/test_pipeline.py",),
    "scepsy_hpc/report/comparison.py": ("tests/report/test_comparison.py",),
    "scepsy_hpc/serving/allocation.py": ("tests/serving/test_allocation.py",),
    "scepsy_hpc/serving/node_agent.py": ("tests/serving/test_node_agent.py",),
    "scepsy_hpc/serving/routing.py": ("tests/serving/test_routing.py",),
    "scepsy_hpc/tracing/demand/demand.py": ("tests/tracing/demand/test_demand.py",),
}
EQUIVALENT = "bench/mutants_equivalent.json"
GOAL_PCT = 85.0
# What names a change for good, while lines above it come and go.
KEY = ("file", "function", "code", "at", "operator", "before", "after")

Change = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Score:
    """What came of a module's mutants; ``survivors`` have a `same` where they change nothing."""

    file: str
    tests: tuple[str, ...]
    num_sites: int
    num_mutants: int
    num_killed: int
    num_timeouts: int
    num_same: int
    killed_pct: float
    unchanged_s: float
    took_s: float
    survivors: tuple[Change, ...]


@functools.cache
def _place(job: Job) -> Place:
    return Place(job)


def _try(job: Job, mutated: str) -> tuple[str, float]:
    """In a worker: what came of a mutant, and how long the tests take without one."""
    place = _place(job)
    return place.outcome(mutated), place.unchanged_s


def sample(found: Sequence[Site], seeds: Sequence[int], count: int, module: str) -> list[Site]:
    """At most ``count`` sites a seed, each once, in the order of the module."""
    picked: set[int] = set()
    for seed in seeds:
        draw = random.Random(f"{seed} {module}")
        picked |= set(draw.sample(range(len(found)), min(count, len(found))))
    return [found[i] for i in sorted(picked)]


def score(job: Job, args: argparse.Namespace, same: Mapping[Key, str]) -> Score:
    """Try a sample of one module's mutants, `args.jobs` at a time."""
    started = time.monotonic()
    found = sites(job.text)
    tried = sample(found, args.seeds, args.per_module, job.module)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.jobs, mp_context=fork) as pool:
        ends = list(pool.map(_try, itertools.repeat(job), (site.mutated for site in tried)))
    survivors = []
    for site, (end, _) in zip(tried, ends, strict=True):
        change = {"file": job.module} | asdict(site)
        del change["mutated"]
        change["same"] = same.get(_key(change))
        if end == "survived":
            survivors.append(change)
        elif change["same"]:
            print(f"{EQUIVALENT}: a test noticed {_line(change)}", file=sys.stderr)
    for key in sorted(same.keys() - {_key({"file": job.module} | asdict(site)) for site in found}):
        if key[0] == job.module:
            print(f"{EQUIVALENT}: is no change any more: {key}", file=sys.stderr)
    num_same = sum(change["same"] is not None for change in survivors)
    num_killed, num_counted = len(tried) - len(survivors), len(tried) - num_same
    return Score(
        file=job.module,
        tests=job.tests,
        num_sites=len(found),
        num_mutants=len(tried),
        num_killed=num_killed,
        num_timeouts=sum(end == "timeout" for end, _ in ends),
        num_same=num_same,
        killed_pct=100.0 * num_killed / num_counted if num_counted else 100.0,
        unchanged_s=max((seconds for _, seconds in ends), default=0.0),
        took_s=time.monotonic() - started,
        survivors=tuple(survivors),
    )


def _key(change: Change) -> Key:
    return tuple(change[name] for name in KEY)


def _line(change: Change) -> str:
    """`file:line:column operator: before -> after`, cut to where the two differ."""
    texts = change["before"], change["after"]
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    start = max(0, len(list(alike)) - 30)
    before, after = (
        ("..." if start else "") + text[start : start + 70] + ("..." if text[start + 70 :] else "")
        for text in texts
    )
    where = f"{change['file']}:{change['line']}:{change['column']}"
    return f"{where} {change['operator']}: {before} -> {after}"


def jobs_of(root: Path, scratch: Path, given: Sequence[str]) -> Iterator[Job]:
    """`MODULE=TEST,TEST` each; a module alone has the tests of MODULES, or those of its name."""
    for text in given or MODULES:
        module, _, tests = text.partition("=")
        path = Path(module)
        mirror = str(Path("tests", *path.parts[1:-1], f"test_{path.name}"))
        own = tuple(tests.split(",")) if tests else MODULES.get(module, (mirror,))
        for file in (module, *own):
            if not (root / file.partition("::")[0]).exists():
                raise SystemExit(f"{text}: there is no {file} in {root}")
        yield Job(root, scratch, module, own)


def equivalent(root: Path) -> dict[Key, str]:
    """The changes that a person found to change nothing, and why."""
    path = root / EQUIVALENT
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {_key(entry): entry["same"] for entry in entries}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=_numbers, default=[1], metavar="N,N", help="default: 1")
    parser.add_argument("--per-module", type=int, default=40, help="mutants a seed; default: 40")
    parser.add_argument("--module", action="append", default=[], metavar="MODULE[=TEST,TEST]")
    parser.add_argument("--jobs", type=int, default=2, help="at a time; default: 2")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="a checkout")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="all of it as JSON")
    return parser.parse_args()


def _commit(root: Path) -> str:
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--exclude=*",
        "--dirty",
        "--abbrev=40",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    args = _arguments()
    root, scores = args.root.resolve(), []
    same = equivalent(root)
    print(f"{'module':<44} mutants  killed  too long  same       %  s a mutant")
    with tempfile.TemporaryDirectory(prefix="mut") as scratch:
        for job in list(jobs_of(root, Path(scratch), args.module)):
            s = score(job, args, same)
            counts = f"{s.num_mutants:>7} {s.num_killed:>7} {s.num_timeouts:>9} {s.num_same:>5}"
            each_s = s.took_s / max(1, s.num_mutants)
            print(f"{s.file:<44} {counts} {s.killed_pct:>7.1f} {each_s:>11.2f}", flush=True)
            scores.append(s)
    changes = [change for s in scores for change in s.survivors]
    for title, named in (("survived", False), ("change nothing, as named", True)):
        lines = [_line(change) for change in changes if bool(change["same"]) is named]
        print(f"\n{len(lines)} {title}", *lines, sep="\n")
    if args.output:
        document = {"commit": _commit(root), "seeds": args.seeds, "per_module": args.per_module}
        document["modules"] = [asdict(s) for s in scores]
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(s.killed_pct < GOAL_PCT for s in scores))


if __name__ == "__main__":
    sys.exit(main())
