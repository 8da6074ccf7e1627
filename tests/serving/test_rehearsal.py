"""What a rehearsal keeps of a plan."""

from __future__ import annotations

from dataclasses import replace

from hand_plans import BUNDLES, PLAN

from scepsy_hpc.serving.rehearsal import rehearsed


def test_arguments_that_shape_batch_and_cache_are_kept() -> None:
    """However they are written; those a simulated engine does not know are left out."""
    given = {"enable-prefix-caching": False, "max_num_seqs": 8, "enforce_eager": True}
    llm = replace(PLAN.llms["a"], bundle_sha256=BUNDLES[0].sha256, engine_args=given)
    found = rehearsed(replace(PLAN, llms={"a": llm}), BUNDLES).llms["a"]
    assert found.engine == "simulated"
    assert found.engine_args == {
        "timing_bundle": str(BUNDLES[0].path),
        "enable_prefix_caching": False,
        "max_num_seqs": 8,
    }
