"""Part 6, no GPU needed: the step-time model fitted to measured bundles, and shares held out.

`--profiles` are the bundles of parts 2 and 3. Says for each (model, share) how far the fitted
model misses latency, by token shape and by load; and for each share below 100 how far the
prediction from the whole GPU alone misses what was measured there, with the slow-down that was
measured in place of the one that is assumed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_bench
from gpu_bench import Bench

from scepsy_hpc.bundles.engine_model import fit_bundle, fit_engine_model
from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.bundles.mps_slowdown import slowdown
from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.points import Point


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Both tables."""
    bundles = [
        b
        for b in find_bundles(options.profiles)
        if options.model in (None, b.header.model) and (b.header.how == "measured" or bench.dry_run)
    ]
    if not bundles:
        places = ", ".join(map(str, options.profiles))
        raise RunError(f"{places}: no measured bundle; run profile_models.py or mps_shares.py")
    fits = [row for bundle in bundles for row in fits_of(bundle)]
    held_out = [
        row for model_bundles in by_model(bundles) for row in held_out_shares(model_bundles)
    ]
    bench.save("fits.json", fits)
    bench.save("held_out_shares.json", held_out)
    for row in fits:
        bench.say(f"{row['model']} TP {row['tp_degree']} {row['share']}%: {row['said']}")
    for row in held_out:
        bench.say(f"{row['model']} {row['share']}% held out: {row['said']}")


def fits_of(bundle: Bundle) -> list[dict[str, Any]]:
    """A row for each (TP, share) of a bundle: the fit's errors by shape and by load."""
    rows = []
    for tp_degree, share in sorted({(p.tp_degree, p.gpu_share_pct) for p in bundle.points}):
        points = closed(bundle, tp_degree, share)
        row: dict[str, Any] = {
            "model": bundle.header.model,
            "tp_degree": tp_degree,
            "share": share,
            "num_points": len(points),
        }
        rows.append(row)
        try:
            model = fit_engine_model(points, refuse=False)
        except InputError as error:
            row["said"] = str(error)
            continue
        misses = errors(model, points)
        row |= {
            "factors": factors(model),
            "quality": model.quality,
            "by_shape": grouped(points, misses, shape_of),
            "by_load": grouped(points, misses, load_of),
            "said": f"latency missed by {100 * statistics.median(map(abs, misses)):.1f}% (median)",
        }
    return rows


def held_out_shares(bundles: Sequence[Bundle]) -> list[dict[str, Any]]:
    """A row for each share of a model that was measured, predicted without those points."""
    # Of several sets of whole-GPU points the largest carries the best fit.
    whole = max(bundles, key=lambda b: len(closed(b, 1, 100)))
    kept = tuple(closed(whole, 1, 100))
    rows: list[dict[str, Any]] = []
    for bundle in bundles:
        for share in sorted({p.gpu_share_pct for p in bundle.points} - {100}):
            points = closed(bundle, 1, share)
            row: dict[str, Any] = {
                "model": bundle.header.model,
                "share": share,
                "num_points": len(points),
                "assumed_slowdown": slowdown(share),
                "measured_slowdown": measured_slowdown(kept, points),
            }
            rows.append(row)
            try:
                derived = fit_bundle(replace(whole, points=kept), 1, share)
            except InputError as error:
                row["said"] = str(error)
                continue
            misses = errors(derived, points)
            missed = 100 * statistics.median(map(abs, misses))
            row |= {
                "by_shape": grouped(points, misses, shape_of),
                "by_load": grouped(points, misses, load_of),
                "said": f"latency missed by {missed:.1f}% (median) from the whole GPU alone",
            }
    return rows


def measured_slowdown(whole: Sequence[Point], part: Sequence[Point]) -> dict[str, float]:
    """Latency and TPOT on the share over those on the whole GPU, at equal shape and load."""
    same = {(shape_of(p), round(p.concurrency or 0)): p for p in whole if p.load == "closed"}
    pairs = [(same.get((shape_of(p), round(p.concurrency or 0))), p) for p in part]
    found: dict[str, list[float]] = {}
    for at_whole, at_part in pairs:
        if at_whole is None:
            continue
        for name in ("latency_mean_s", "ttft_mean_s", "tpot_mean_s"):
            a, b = getattr(at_whole, name), getattr(at_part, name)
            if a and b:
                found.setdefault(name.removesuffix("_mean_s"), []).append(b / a)
    return {name: round(statistics.median(ratios), 3) for name, ratios in found.items()}


def closed(bundle: Bundle, tp_degree: int, share: int) -> list[Point]:
    """The closed points of one (TP, share)."""
    wanted = ("closed", tp_degree, share)
    return [p for p in bundle.points if (p.load, p.tp_degree, p.gpu_share_pct) == wanted]


def errors(model: EngineModel, points: Sequence[Point]) -> list[float]:
    """Relative error of the predicted latency at each point."""
    found = []
    for p in points:
        lengths = (p.input_tokens_mean, p.output_tokens_mean, p.cached_tokens_mean or 0.0)
        predicted = model.closed_loop(p.concurrency or 1.0, *lengths)
        found.append(predicted.latency_s / p.latency_mean_s - 1.0)
    return found


def grouped(
    points: Sequence[Point], misses: Sequence[float], key: Any
) -> dict[str, Mapping[str, float]]:
    """Median absolute and mean signed error of each group."""
    groups: dict[str, list[float]] = {}
    for point, miss in zip(points, misses, strict=True):
        groups.setdefault(key(point), []).append(miss)
    return {
        name: {
            "median_abs": round(statistics.median(map(abs, group)), 4),
            "mean": round(statistics.fmean(group), 4),
        }
        for name, group in groups.items()
    }


def shape_of(point: Point) -> str:
    """``1024:256``."""
    return f"{point.input_tokens_mean:.0f}:{point.output_tokens_mean:.0f}"


def load_of(point: Point) -> str:
    """Calls in flight, as they were asked for."""
    return f"{round(point.concurrency or 0)}"


def factors(model: EngineModel) -> dict[str, float]:
    """The four step-time factors in seconds."""
    names = ("step_s", "prefill_token_s", "sequence_s", "context_token_s")
    return {name: getattr(model, name) for name in names}


def by_model(bundles: Iterable[Bundle]) -> list[list[Bundle]]:
    """Bundles of the same model, GPU type and engine together."""
    groups: dict[tuple[str, ...], list[Bundle]] = {}
    for b in bundles:
        key = (b.header.model, b.header.gpu_type, b.header.engine, b.header.engine_version)
        groups.setdefault(key, []).append(b)
    return list(groups.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the bundles are."""
    parser.add_argument(
        "--profiles", type=lambda p: Path(p).absolute(), nargs="+", required=True, metavar="DIR"
    )
    parser.add_argument("--model", help="only this one")


if __name__ == "__main__":
    sys.exit(gpu_bench.run("offline_fit", __doc__, measure, add_arguments))
