"""What a comparison rests on, in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_case import plan_of

from scepsy_hpc.report.notes import engine_notes, in_words

TIMING = "h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("few_runs: rag: fewer than 200", ("all", "few runs", "rag: fewer than 200")),
        ("a: derived: share 50%: x", ("a", "derived, not measured", "share 50%: x")),
        ("a: something else: y", ("a", "", "something else: y")),
        ("plain", ("all", "", "plain")),
    ],
)
def test_flags_in_words(flag, expected):
    """A flag is taken apart into what it is about, what it says, and details."""
    assert in_words(flag) == expected


def test_simulated_engines_name_their_timing():
    """The loud note has the profile, and that it was modelled, with its origin."""
    plan = plan_of("simulated")
    llm = replace(plan.llms["writer"], engine_args={"timing_bundle": TIMING})
    (note,) = engine_notes(replace(plan, llms={"writer": llm}))
    for word in ("SIMULATED", TIMING, "modelled", "aiconfigurator", "self-consistency"):
        assert word in note


def test_cpu_slices_are_not_taken_for_gpus():
    """vLLM on CPU slices is a real engine, and the note says that these are no GPUs."""
    plan = plan_of("vllm")
    llm = replace(plan.llms["writer"], gpu_type="cpu_slice", engine_version="0.9")
    notes = engine_notes(replace(plan, llms={"writer": llm}))
    assert notes[0] == "The engines were real: org/model by vllm 0.9 on cpu_slice."
    assert "nothing about GPUs" in notes[1]
