"""A plan with its engines replaced by simulated ones, to be tried where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.plan import Deployment, Plan

# Arguments of vLLM that mean the same to a simulated engine.
_KEPT_ARGS = ("enable_prefix_caching", "max_num_seqs", "max_num_batched_tokens", "max_model_len")


def rehearsed(plan: Plan, bundles: Sequence[Bundle]) -> Plan:
    """The same plan on simulated engines whose timing follows the profiles it was made from.

    Raises InputError when a deployment names no bundle, or one that is not among ``bundles``.
    """
    by_sha256 = {bundle.sha256: bundle for bundle in bundles}
    llms = {name: _simulated(name, llm, by_sha256) for name, llm in plan.llms.items()}
    return replace(plan, llms=llms)


def _simulated(name: str, llm: Deployment, bundles: dict[str, Bundle]) -> Deployment:
    if llm.engine == "simulated":
        return llm
    bundle = bundles.get(llm.bundle_sha256 or "")
    if bundle is None:
        raise InputError(
            f"plan: llms.{name}.bundle_sha256: {llm.bundle_sha256!r} is in none of the profiles "
            "given; a rehearsal takes its timing from there. Give them with --profiles"
        )
    named = {key.strip("-").replace("-", "_"): value for key, value in llm.engine_args.items()}
    kept = {key: value for key, value in named.items() if key in _KEPT_ARGS}
    engine_args = {"timing_bundle": str(bundle.path), **kept}
    return replace(llm, engine="simulated", engine_args=engine_args)
