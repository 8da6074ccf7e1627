"""Part 3: `scepsy profile` of real engines with random weights, whole GPU, the usual token shapes.

One model takes 4 to 6 minutes: `--models Qwen/Qwen3-0.6B`, then the other. The bundles below
`profiles/` are measured ones; copy them to the profiles folder you plan with.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import gpu_bench
from gpu_bench import Bench, figures, save_published

from scepsy_hpc.files import write_yaml
from scepsy_hpc.formats.topology import save_topology
from scepsy_hpc.profiling import spec as profile_spec
from scepsy_hpc.profiling.array import ProfileProgress, profile_all

# Of the shapes of the shipped profiles those that take seconds, not minutes.
DEFAULT_SHAPES = ("512:1", "300:60", "1024:256", "2048:512", "4096:256")


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Write a spec, profile it as the command does, publish the bundles."""
    spec = write_spec(bench, options)
    result = await asyncio.to_thread(
        profile_all, spec, bench.folder / "raw", "local", None, False, Progress(bench).show
    )
    kept = [
        save_published(bench.folder / "profiles", b.header, b.points, "token-grid")
        for b in result.bundles
    ]
    for bundle in kept:
        bench.say(f"{bundle.header.model}: {len(bundle.points)} points in {bundle.path}")
        name = bundle.header.model.rsplit("/", 1)[-1]
        shapes = [(p.input_tokens_mean, p.output_tokens_mean, figures(p)) for p in bundle.points]
        bench.save(f"{name}.json", shapes)
    result.raise_if_failed()


def write_spec(bench: Bench, options: argparse.Namespace) -> Any:
    """``spec.yaml`` and its topology; returns its path."""
    save_topology(bench.folder / "topology.yaml", bench.topology)
    loads = profile_spec.Loads(
        concurrency=tuple(options.concurrency),
        requests_per_point=options.requests_per_point,
        limit_s=options.limit_s,
    )
    spec = {
        "topology": "topology.yaml",
        "models": [bench.model_spec(model) for model in options.models],
        "workload": {"name": "token-grid", "shapes": options.shapes},
        "loads": loads,
        "ready_timeout_s": 300.0,
    }
    path = bench.folder / "spec.yaml"
    write_yaml(path, spec, profile_spec.SPEC_SCHEMA)
    return path


class Progress:
    """Says where the profiling stands whenever that changed."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def show(self, progress: ProfileProgress) -> None:
        """One line."""
        done = f"{progress.num_points} of at most {progress.num_points_wanted} points"
        self._bench.say(f"{done}, {progress.num_failed} tasks failed")


def shape(text: str) -> list[int]:
    """``1024:256`` as [1024, 256]."""
    inputs, _, outputs = text.partition(":")
    return [int(inputs), int(outputs)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, shapes, loads."""
    models = [gpu_bench.SMALL, gpu_bench.LARGE]
    shapes = [shape(text) for text in DEFAULT_SHAPES]
    parser.add_argument("--models", nargs="+", default=models, choices=models)
    parser.add_argument("--shapes", nargs="+", type=shape, default=shapes, metavar="IN:OUT")
    parser.add_argument("--concurrency", nargs="+", type=int, default=(1, 4, 16, 64))
    parser.add_argument("--requests-per-point", type=int, default=32)
    parser.add_argument("--limit-s", type=float, default=10.0, help="for each point")


if __name__ == "__main__":
    sys.exit(gpu_bench.run("profile_models", __doc__, measure, add_arguments))
