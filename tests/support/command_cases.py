"""Command lines on the shipped workflow and profiles, and what they say of a failure."""

from __future__ import annotations

import pytest

from scepsy_hpc.files import shipped_path

FLOW = shipped_path("workflows") / "rag_rerank"
H100 = shipped_path("profiles") / "h100_sxm"
BUNDLE = H100 / "Qwen__Qwen3-8B" / "vllm-0.24.0" / "token-grid"


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on stderr that start with `error:`; stdout must be empty."""
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return [line for line in shown.err.splitlines() if line.startswith("error:")]
