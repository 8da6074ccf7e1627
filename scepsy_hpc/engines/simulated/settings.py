"""What a simulated instance is made of: its names, limits, and the engine model it follows."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace

from scepsy_hpc.bundles.engine_model import fit_bundle
from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.bundles.step_time import DEFAULT_NUM_SEQS, EngineModel
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle, load_bundle
from scepsy_hpc.formats.spans import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Settings:
    """One simulated instance, ready to serve."""

    model_name: str
    served_names: tuple[str, ...]
    model: EngineModel
    max_num_seqs: int
    max_model_len: int
    max_queued: int | None
    output_tokens_mean: float
    seed: int
    api_key: str | None
    timing: str
    prefix_caching: bool = True

    @property
    def header(self) -> str:
        """What every answer says of its origin."""
        return f"simulated; timing={self.timing}"


def timing_text(bundle: Bundle, model: EngineModel, tp_degree: int, gpu_share_pct: int) -> str:
    """One line that names the bundle behind the timing, in ASCII."""
    header = bundle.header
    derived = " (derived)" if model.derived else ""
    text = (
        f"{header.gpu_type}/{header.model}/{header.engine}-{header.engine_version} "
        f"{header.how}, TP {tp_degree}, share {gpu_share_pct}%{derived}"
    )
    return text.encode("ascii", "replace").decode()


def settings_of(options: argparse.Namespace) -> Settings:
    """Load the bundle, fit its engine model and put all options together. Raises InputError."""
    bundle = load_bundle(resolve_bundle(options.timing_bundle))
    tp_degree, share = options.tensor_parallel_size, options.gpu_share_pct
    model = fit_bundle(bundle, tp_degree, share)
    if model.step_s + model.prefill_token_s <= 0.0:
        raise InputError(f"{bundle.path}: the fitted engine would take no time; use another bundle")
    timing = timing_text(bundle, model, tp_degree, share)
    model = model.slower(options.time_scale, options.time_scale)
    if options.max_num_batched_tokens:
        model = replace(model, max_num_batched_tokens=options.max_num_batched_tokens)
    longest = options.max_model_len
    if model.kv_tokens is not None:
        longest = min(longest, int(model.kv_tokens) // BLOCK_TOKENS * BLOCK_TOKENS)
    return Settings(
        model_name=options.model,
        served_names=tuple(options.served_model_name or [options.model]),
        model=model,
        max_num_seqs=options.max_num_seqs or model.max_num_seqs or DEFAULT_NUM_SEQS,
        max_model_len=longest,
        max_queued=options.max_num_queued_reqs,
        output_tokens_mean=options.output_tokens_mean,
        seed=options.seed,
        api_key=os.environ.get(options.api_key_env) or None,
        timing=timing,
        prefix_caching=options.enable_prefix_caching,
    )


def settings_text(settings: Settings) -> str:
    """Lines for the log: what is simulated, from what, and how well the fit did."""
    quality = settings.model.quality
    lines = [f"simulated engine for {settings.model_name}; timing from {settings.timing}"]
    if settings.model.derived:
        lines.append("its GPU share has no points: derived from others' measured slow-downs")
    if quality is not None and quality.held_out_point is not None:
        lines.append(
            f"engine model fitted to {quality.num_points} points, held-out concurrency missed by "
            f"{100 * quality.held_out_point:.1f}% (median)"
        )
    return "\n".join(lines)
