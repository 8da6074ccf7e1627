"""How many sequences an engine batches where nobody set it."""

from __future__ import annotations

from planning_cases import HEADER

from scepsy_hpc.bundles.batch_limits import batch_limit, default_num_seqs


def test_defaults_depend_on_version_and_hardware() -> None:
    """vLLM since 0.9 batches 1,024 on large GPUs that are no A100; before that 256 on all."""
    assert default_num_seqs("vllm", "0.18.0", "h100_sxm", 80) == 1024
    assert default_num_seqs("vllm", "0.18.0", "a100_sxm", 80) == 256
    assert default_num_seqs("vllm", "0.18.0", "l40s", 48) == 256
    assert default_num_seqs("vllm", "0.6.3", "h100_sxm", 80) == 256
    assert default_num_seqs("vllm", "0.32.0+cpu", "cpu_slice", 4, tp_degree=2) == 256
    assert default_num_seqs("trtllm", "1.0.0rc3", "h100_sxm", 80) == 2048


def test_what_is_not_recorded_is_unknown() -> None:
    """No engine, or a version before the first that is recorded: none, not a guess."""
    assert default_num_seqs("other", "1.0", "h100_sxm", 80) is None
    assert default_num_seqs("sglang", "0.1.9", "h100_sxm", 80) is None
    assert default_num_seqs("vllm", "0.12.0", "cpu_slice", 4) is None


def test_a_version_that_nobody_wrote_down_has_the_least() -> None:
    """`unknown` could be any version: the least of their defaults is safe."""
    assert default_num_seqs("vllm", "unknown", "h100_sxm", 80) == 256
    assert default_num_seqs("vllm", "unknown", "cpu_slice", 4) is None


def test_arguments_go_first() -> None:
    """max_num_seqs of the arguments given, else of the profile's, else the default."""
    from dataclasses import replace

    profiled = replace(HEADER, engine_args={"max_num_seqs": 64})
    assert batch_limit(HEADER, 1) == 1024
    assert batch_limit(profiled, 1) == 64
    assert batch_limit(profiled, 1, {"max_num_seqs": "16"}) == 16
